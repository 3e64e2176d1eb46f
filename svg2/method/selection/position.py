"""Blocks of neighbouring tokens in place of clusters: block-sparse attention."""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels import KMeansResult, Permutation, cluster_means, resolve_impl
from svg2.config import SVG2Config


def cluster(
    x: Float[Tensor, "B H N D"],
    num_clusters: int,
    config: SVG2Config,
    grid: tuple[int, int, int] | None = None,
) -> KMeansResult:
    """Cut the tokens into blocks of neighbours whose sizes differ by at most one.

    Tokens are in (frame, row, column) order. The centroid of a block is the mean of its tokens.

    Args:
        num_clusters: number of blocks, at most one per token.
        config: only `impl` is used; `grid` is not.
    """
    batch, heads, num_tokens = x.shape[:3]
    ends = torch.arange(num_clusters + 1, device=x.device) * num_tokens // num_clusters
    offsets = ends.int().expand(batch, heads, -1).contiguous()
    perm = torch.arange(num_tokens, device=x.device).expand(batch, heads, -1).contiguous()
    order = Permutation(perm, offsets)
    labels = (torch.searchsorted(ends, perm, right=True) - 1).int()
    return KMeansResult(
        labels=labels,
        centroids=cluster_means(x, order, impl=config.impl),
        sizes=order.sizes,
        impl=resolve_impl(config.impl, x),
        order=order,
    )
