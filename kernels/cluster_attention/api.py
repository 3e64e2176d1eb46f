"""Cluster attention: exact attention over the kept blocks of variable size."""

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.cluster_attention import reference
from kernels.cluster_attention.stand_ins import StandIns
from kernels.exact import check_first_call
from kernels.impl import Impl, refuse_gradients, resolve_impl


def cluster_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    *,
    scale: float | None = None,
    stand_ins: StandIns | None = None,
    q_perm: Int[Tensor, "B H N"] | None = None,
    impl: Impl = "auto",
    variant: str | None = None,
) -> Float[Tensor, "B H N D"]:
    """Softmax attention of each query over the keys of the clusters that its own cluster keeps.

    All tensors are in the order of their clusters; the offsets say where each one starts, and its
    last entry is the number of tokens. With `q_perm`, the `perm` that sorts the queries, q and the
    result are in their original order instead, which spares the fused kernels a copy of each.
    `scale` is 1/sqrt(D) if not given. With `stand_ins` each skipped cluster adds one virtual key
    of weight `exp(scale·q·key + log_weight)`; empty clusters add nothing. A query that keeps no
    key and has no stand-in gets zeros. The result has the dtype of q; sums and softmax are in fp32
    or better. `variant` names the attend kernel of the fused implementation, one of those in
    `kernels/README.md`; without it the preferred of the chip runs.

    Raises:
        ValueError: the shapes do not fit; an input requires a gradient; the fused kernels are
            asked for more clusters or keys than they take; or the variant does not run here.
        ImplUnavailable: the implementation asked for cannot run here, or the first fused result
            on this chip was wrong.
    Source: SVG2, arXiv 2505.18875.
    """
    _check_shapes(q, k, v, q_offsets, k_offsets, kept, stand_ins, q_perm)
    keys = values = log_weights = None
    if stand_ins is not None:
        keys, values, log_weights = stand_ins.keys, stand_ins.values, stand_ins.log_weights
    virtual = {"keys": keys, "values": values, "log_weights": log_weights}
    refuse_gradients("cluster_attention", q=q, k=k, v=v, **virtual)
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1])
    if resolve_impl(impl, q, is_matmul=True) == "fused":
        from kernels.cluster_attention import fused

        out = fused.cluster_attention(
            q, k, v, q_offsets, k_offsets, kept, scale, keys, values, log_weights, q_perm, variant
        )
        check_first_call(
            *(out, q, k, v, q_offsets, k_offsets, kept, scale, stand_ins, q_perm, variant)
        )
        return out
    if variant is not None:
        raise ValueError(
            f"variant={variant!r} names an attend kernel of impl='fused', but the reference runs "
            "here: leave variant out"
        )
    return reference.cluster_attention(
        q, k, v, q_offsets, k_offsets, kept, scale, **virtual, q_perm=q_perm
    )


def _check_shapes(q, k, v, q_offsets, k_offsets, kept, stand_ins, q_perm) -> None:
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
    if stand_ins is not None:
        for name in ("keys", "values"):
            tensor = getattr(stand_ins, name)
            pairs = (num_k_clusters,) if tensor.ndim == 4 else kept.shape[2:]
            expected[f"stand_ins.{name}"] = (tensor, (batch, heads, *pairs, head_dim))
        if stand_ins.log_weights is not None:
            tensor = stand_ins.log_weights
            pairs = (num_k_clusters,) if tensor.ndim == 3 else kept.shape[2:]
            expected["stand_ins.log_weights"] = (tensor, (batch, heads, *pairs))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {shape} to fit the others, not {tuple(tensor.shape)}"
            )
