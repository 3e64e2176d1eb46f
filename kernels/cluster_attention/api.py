"""Cluster attention: exact attention over the kept blocks of variable size."""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.cluster_attention import reference
from kernels.impl import Impl, refuse_gradients, resolve_impl
from kernels.permutation.reference import permute, unpermute


@dataclass(frozen=True)
class Compensation:
    """What stands for the key clusters that a query cluster skips.

    Attributes:
        k_centroids: mean of the keys of each cluster.
        v_centroids: mean of the values of each cluster.

    Source: after SVG-EAR, arXiv 2603.08982.
    """

    k_centroids: Float[Tensor, "B H K D"]
    v_centroids: Float[Tensor, "B H K D"]


def cluster_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    *,
    scale: float | None = None,
    compensation: Compensation | None = None,
    q_perm: Int[Tensor, "B H N"] | None = None,
    impl: Impl = "auto",
) -> Float[Tensor, "B H N D"]:
    """Softmax attention of each query over the keys of the clusters that its own cluster keeps.

    All tensors are in the order of their clusters; the offsets say where each one starts, and its
    last entry is the number of tokens. With `q_perm`, the `perm` that sorts the queries, q and the
    result are in their original order instead, which spares the fused kernels a copy of each.
    `scale` is 1/sqrt(D) if not given. With `compensation` each
    skipped cluster of n keys adds one virtual key of weight `n·exp(scale·q·k_centroid)` and value
    `v_centroid`; empty clusters add nothing. A query that keeps no key and has no compensation
    gets zeros. The result has the dtype of q; sums and softmax are in fp32 or better.

    Raises:
        ValueError: the shapes do not fit; an input requires a gradient; or the fused kernels are
            asked for more clusters or keys than they take.
        ImplUnavailable: the implementation asked for cannot run here.
    Source: SVG2, arXiv 2505.18875.
    """
    _check_shapes(q, k, v, q_offsets, k_offsets, kept, compensation, q_perm)
    centroids = None
    if compensation is not None:
        centroids = (compensation.k_centroids, compensation.v_centroids)
    k_centroids, v_centroids = centroids or (None, None)
    refuse_gradients(
        "cluster_attention", q=q, k=k, v=v, k_centroids=k_centroids, v_centroids=v_centroids
    )
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1])
    if resolve_impl(impl, q, is_matmul=True) == "fused":
        from kernels.cluster_attention import fused

        return fused.cluster_attention(
            q, k, v, q_offsets, k_offsets, kept, scale, k_centroids, v_centroids, q_perm
        )
    if q_perm is not None:
        q = permute(q, q_perm)
    out = reference.cluster_attention(q, k, v, q_offsets, k_offsets, kept, scale, centroids)
    return out if q_perm is None else unpermute(out, q_perm)


def _check_shapes(q, k, v, q_offsets, k_offsets, kept, compensation, q_perm) -> None:
    batch, heads, num_q_clusters, num_k_clusters = kept.shape
    head_dim = q.shape[-1]
    num_keys = k.shape[2]
    expected = {
        "q": (q, (batch, heads, q.shape[2], head_dim)),
        "k": (k, (batch, heads, num_keys, head_dim)),
        "v": (v, (batch, heads, num_keys, head_dim)),
        "q_offsets": (q_offsets, (batch, heads, num_q_clusters + 1)),
        "k_offsets": (k_offsets, (batch, heads, num_k_clusters + 1)),
    }
    if q_perm is not None:
        expected["q_perm"] = (q_perm, (batch, heads, q.shape[2]))
    if compensation is not None:
        shape = (batch, heads, num_k_clusters, head_dim)
        expected["k_centroids"] = (compensation.k_centroids, shape)
        expected["v_centroids"] = (compensation.v_centroids, shape)
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {shape} to fit the others, not {tuple(tensor.shape)}"
            )
