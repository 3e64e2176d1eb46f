"""k-means: cluster the tokens of each head by squared distance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.impl import Impl, refuse_gradients, resolve_impl
from kernels.kmeans import reference
from kernels.permutation.api import Permutation, permute


@dataclass(frozen=True)
class KMeansResult:
    """A clustering of N tokens into C clusters, per head.

    Attributes:
        labels: cluster of each token, int32, those of the last assignment.
        centroids: fp32 means of the tokens so labelled; an empty cluster keeps its old centroid.
        sizes: tokens per cluster, int32.
        impl: the implementation that ran.
        order: the tokens sorted by those labels, where the implementation sorts them anyway.
    """

    labels: Int[Tensor, "B H N"]
    centroids: Float[Tensor, "B H C D"]
    sizes: Int[Tensor, "B H C"]
    impl: str
    order: Permutation | None = None


def init_centroids(
    x: Float[Tensor, "B H N D"],
    num_clusters: int,
    generator: torch.Generator,
    *,
    first_head: int = 0,
    num_heads: int | None = None,
) -> Float[Tensor, "B H C D"]:
    """Distinct random tokens of each head, drawn from `generator` (which lives on any device).

    Where `x` holds some of a model's `num_heads` heads, from `first_head` on, each head gets the
    tokens that it gets where all heads are in one place.

    Raises:
        ValueError: `num_clusters` is below 1 or above the number of tokens.
    """
    batch, heads, num_tokens, _ = x.shape
    if not 1 <= num_clusters <= num_tokens:
        raise ValueError(
            f"num_clusters must be from 1 to the {num_tokens} tokens, not {num_clusters}"
        )
    drawn_heads = heads if num_heads is None else num_heads
    draw = torch.rand(
        *(batch, drawn_heads, num_tokens),
        generator=generator,
        device=generator.device,
        dtype=torch.float64,
    )[:, first_head : first_head + heads]
    chosen = draw.topk(num_clusters, largest=False).indices.to(x.device)
    return x.gather(2, chosen[..., None].expand(-1, -1, -1, x.shape[-1]))


def kmeans(
    x: Float[Tensor, "B H N D"],
    centroids: Float[Tensor, "B H C D"],
    iters: int,
    *,
    impl: Impl = "auto",
) -> KMeansResult:
    """Lloyd's k-means from given `centroids`: `iters` times assign, then update.

    A token goes to the centroid c with the largest `x·c - |c|²/2`, the lowest index among equals.
    The same input gives the same result, and nothing waits for the device.

    Raises:
        ValueError: `iters` is below 1, the shapes do not fit, or an input requires a gradient.
        ImplUnavailable: the implementation asked for cannot run here.
    """
    if iters < 1:
        raise ValueError(f"iters must be at least 1, not {iters}")
    if x.shape[:2] != centroids.shape[:2] or x.shape[3] != centroids.shape[3]:
        raise ValueError(
            f"tokens {tuple(x.shape)} and centroids {tuple(centroids.shape)} must agree in "
            "batch, heads and head dimension"
        )
    refuse_gradients("kmeans", x=x, centroids=centroids)
    chosen = resolve_impl(impl, x, is_matmul=True)
    if chosen == "fused":
        from kernels.kmeans import fused

        labels, means, sizes, perm, offsets = fused.kmeans(x, centroids, iters)
        return KMeansResult(labels, means, sizes, chosen, Permutation(perm, offsets))
    labels, means, sizes = reference.kmeans(x, centroids, iters)
    return KMeansResult(labels=labels, centroids=means, sizes=sizes, impl=chosen)


def cluster_means(
    x: Float[Tensor, "B H N D"], order: Permutation, *, impl: Impl = "auto"
) -> Float[Tensor, "B H C D"]:
    """fp32 mean of each cluster of tokens in their original order; 0 for an empty cluster.

    Raises:
        ValueError: an input requires a gradient.
        ImplUnavailable: the implementation asked for cannot run here.
    """
    refuse_gradients("cluster_means", x=x)
    if resolve_impl(impl, x, is_matmul=True) == "fused":
        from kernels.kmeans import fused

        return fused.cluster_means(x, order.perm, order.offsets)
    # All heads laid end to end are one run of segments; their sums do not depend on chance.
    sums = torch.segment_reduce(
        permute(x, order, impl="reference").float().flatten(0, 2),
        "sum",
        lengths=order.sizes.flatten().long(),
        unsafe=True,
    )
    return sums.view(*order.sizes.shape, -1) / order.sizes.clamp(min=1).unsqueeze(-1)
