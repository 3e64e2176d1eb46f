"""The op: checks of its inputs, lists, launches."""

from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.cluster_attention.fused.lists import MAX_KEYS, make_lists
from kernels.cluster_attention.fused.problem import Problem
from kernels.cluster_attention.fused.tiling import (
    Config,
    attend_kernel,
    config_for,
    variants_for,
)
from kernels.cluster_attention.stand_ins import StandIns
from kernels.impl import INTERPRETING, MAX_K_CLUSTERS, chip_of, dense_rows, device_of


@torch.library.custom_op("svg2::cluster_attention", mutates_args=())
def cluster_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    kept: Tensor,
    scale: float,
    virtual_k: Tensor | None,
    virtual_v: Tensor | None,
    log_weights: Tensor | None,
    q_perm: Tensor | None,
    variant: str | None = None,
) -> Tensor:
    """The same as the reference; with `q_perm`, q and the result are in their original order.

    `variant` is one of `tiling.ATTEND_VARIANTS`, or None for the preferred of the chip.
    """
    stand_ins = None
    if virtual_k is not None and virtual_v is not None:
        stand_ins = StandIns(virtual_k, virtual_v, log_weights)
    with device_of(q):
        return attend_with(
            q, k, v, q_offsets, k_offsets, kept, scale, stand_ins, q_perm,
            device_config(q.device, q.shape[-1], variant),
        )  # fmt: skip


@cluster_attention.register_fake
def _(
    q, k, v, q_offsets, k_offsets, kept, scale, virtual_k, virtual_v, log_weights, q_perm,
    variant=None,
):  # fmt: skip
    return torch.empty_like(dense_rows(q))


def attend_with(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    scale: float,
    stand_ins: StandIns | None,
    q_perm: Int[Tensor, "B H N"] | None,
    config: Config,
) -> Float[Tensor, "B H N D"]:
    """Cluster attention with a given configuration.

    Raises:
        ValueError: more key clusters or keys than the kernels take, or a scale that is not above
            0.
    """
    _check_limits(scale, k.shape[2], kept.shape[-1])
    q = dense_rows(q)
    out = torch.empty_like(q)
    virtual_k = virtual_v = log_weights = None
    if stand_ins is not None:
        virtual_k, virtual_v, log_weights = _virtual_keys(stand_ins, q.dtype, kept.shape[2])
    problem = Problem(
        q, k.contiguous(), v.contiguous(), out,
        q_offsets.int().contiguous(), k_offsets.int().contiguous(), kept.contiguous(), scale,
        virtual_k, virtual_v, log_weights, None if q_perm is None else q_perm.contiguous(),
    )  # fmt: skip
    lists = make_lists(problem, config)
    attend_kernel(config.attend).launch(problem, lists, config, _num_processors(q.device))
    return out


def _virtual_keys(
    stand_ins: StandIns, dtype: torch.dtype, num_q_clusters: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and weights as the kernels read them: keys and values in one shape."""
    parts = [stand_ins.keys, stand_ins.values]
    if {part.ndim for part in parts} == {4, 5}:
        parts = [_for_each_query_cluster(x, num_q_clusters) if x.ndim == 4 else x for x in parts]
    keys, values = (part.to(dtype).contiguous() for part in parts)
    weights = stand_ins.log_weights
    if weights is not None:
        weights = weights.float().contiguous()
        if weights.ndim == 3:
            weights = _for_each_query_cluster(weights, num_q_clusters)
        weights = weights.flatten(0, 1)
    return keys, values, weights


def _for_each_query_cluster(x: Tensor, num_q_clusters: int) -> Tensor:
    """`[B, H, ...]` repeated into `[B, H, Q, ...]`, without a copy."""
    return x.unsqueeze(2).expand(-1, -1, num_q_clusters, *x.shape[2:])


def _check_limits(scale: float, num_keys: int, num_k_clusters: int) -> None:
    if not scale > 0:
        raise ValueError(f"the Triton kernels need a positive scale, not {scale}")
    if num_keys >= MAX_KEYS:
        raise ValueError(f"the Triton kernels take fewer than {MAX_KEYS} keys, not {num_keys}")
    if num_k_clusters > MAX_K_CLUSTERS:
        raise ValueError(
            f"the Triton kernels take at most {MAX_K_CLUSTERS} key clusters, not "
            f"{num_k_clusters}: take fewer clusters, or impl='reference'"
        )


@cache
def device_config(device: torch.device, head_dim: int, variant: str | None = None) -> Config:
    """The configuration for the chip behind a device, of the preferred variant or a given one.

    Raises:
        ValueError: the variant does not run there.
    """
    return config_for(chip_of(device), head_dim, variant)


def device_variants(device: torch.device, head_dim: int) -> dict[str, Config]:
    """The configurations of all variants that run on a device, by the name of the variant."""
    return variants_for(chip_of(device), head_dim)


@cache
def _num_processors(device: torch.device) -> int:
    if INTERPRETING:
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count
