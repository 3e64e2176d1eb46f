"""Blocks by position in place of clusters: block-sparse attention without permutation."""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels import KMeansResult, Permutation, cluster_means, resolve_impl
from svg2.config import SVG2Config


def cluster(x: Float[Tensor, "B H N D"], num_clusters: int, config: SVG2Config) -> KMeansResult:
    """Runs of neighbouring tokens, as equal in size as can be, each with the mean of its tokens.

    Tokens come in (frame, row, column) order, so a run is a strip of a frame.
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
