"""Routing in Triton: attention from query centroids to each key cluster by itself."""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kernels.build import Build
from kernels.impl import chip_of, device_of
from kernels.kmeans.fused import sorted_means
from kernels.routing.reference import LEAST_LOG_FACTOR, MOST_LOG_FACTOR
from kernels.winners import winner

LN_2 = tl.constexpr(math.log(2.0))
LEAST = tl.constexpr(LEAST_LOG_FACTOR)
MOST = tl.constexpr(MOST_LOG_FACTOR)


@dataclass(frozen=True)
class Tiling:
    """Block sizes and launch options of `route_kernel`.

    Attributes:
        block_m: query centroids of a tile.
        block_n: keys of a tile.
        num_warps, num_stages: Triton's.
        clusters: key clusters that one program takes, one after the other.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    clusters: int = 4


# What a race times beside the default. Larger tiles, or fewer warps, spill with stand-ins for
# each pair at D 128.
RACED = (
    *(Tiling(64, 32, 8, 2, clusters) for clusters in (1, 2, 8)),
    *(Tiling(64, 32, 8, stages) for stages in (1, 3)),
)


def tiling_for(chip: str, head_dim: int) -> Tiling:
    """The tiling for a chip, named "sm_90" or "gfx942": what won there, or else the default."""
    won = winner(f"route D{head_dim}", chip, lambda fields: Tiling(**fields))
    return won or default_tiling(chip)


def default_tiling(chip: str) -> Tiling:
    """The tiling where no race was run; found by compiling, not by timing."""
    if chip == "interpreter":
        return Tiling(16, 16, 4, 1)
    return Tiling(64, 32, 8, 2 if chip.startswith("sm_") else 1)


@triton.jit(do_not_specialize=["H", "Q", "K"])
def route_kernel(
    q_ptr,  # [BH, Q, D], query centroids in the dtype of k
    k_ptr,  # [B, H, S, D], any strides over B and H
    v_ptr,  # [B, H, S, D], any strides over B and H
    offsets_ptr,  # [BH, K + 1]
    k_means_ptr,  # [BH, K, D], in the dtype of k; None with PAIRS
    v_means_ptr,  # [BH, K, D]
    mass_ptr,  # [BH, Q, K], logarithm of the mass, before it is normalised
    error_ptr,  # [BH, Q, K], length of V / M - v_mean
    weights_ptr,  # [BH, Q, K], logarithms, of the stand-ins
    keys_ptr,  # [BH, Q, K, D], mean key as it is seen; None without PAIRS
    values_ptr,  # [BH, Q, K, D], mean value as it is seen; None without PAIRS
    stride_kb,
    stride_kh,
    stride_vb,
    stride_vh,
    H,
    Q,
    K,
    scale,  # of the logits, over ln 2
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a tile of query centroids sees of each of a few key clusters."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, D)
    head = tl.program_id(2).to(tl.int64)
    centroid = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = centroid < Q
    # Past the last centroid that one again, which is not stored.
    row = head * Q + tl.minimum(centroid, Q - 1)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :])
    offsets_ptr += head * (K + 1)
    batch = head // H
    k_head = k_ptr + batch * stride_kb + (head - batch * H) * stride_kh
    v_head = v_ptr + batch * stride_vb + (head - batch * H) * stride_vh

    first = tl.program_id(1) * CLUSTERS
    for j in range(first, tl.minimum(first + CLUSTERS, K)):
        start = tl.load(offsets_ptr + j)
        size = tl.load(offsets_ptr + j + 1) - start
        k_cluster = k_head + start.to(tl.int64) * D
        v_cluster = v_head + start.to(tl.int64) * D
        seen_v = tl.zeros([BLOCK_M, D], tl.float32)
        if PAIRS:
            seen_k = tl.zeros([BLOCK_M, D], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        for t in range(0, size, BLOCK_N):
            # Past the last key of a cluster that one again, without weight: no load needs a mask.
            place = tl.minimum(t + n, size - 1)[:, None] * D + d[None, :]
            k = tl.load(k_cluster + place)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            v = tl.load(v_cluster + place)
            scores = tl.where((t + n < size)[None, :], scores, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(scores, 1))
            shrink = tl.exp2(highest - new_highest)
            # The sum of the rounded weights: what they average has a weight of exactly 1.
            p = tl.exp2(scores - new_highest[:, None]).to(v.dtype)
            total = total * shrink + tl.sum(p.to(tl.float32), 1)
            seen_v = tl.dot(p, v, seen_v * shrink[:, None], input_precision=PRECISION)
            if PAIRS:
                seen_k = tl.dot(p, k, seen_k * shrink[:, None], input_precision=PRECISION)
            highest = new_highest

        # An empty cluster is seen with a weight of 0, and its means are 0.
        total = tl.where(size > 0, total, 1.0)
        log_mass = highest + tl.log2(total)
        seen_v /= total[:, None]
        mean = (head * K + j) * D + d
        gap = seen_v - tl.load(v_means_ptr + mean)[None, :]
        if PAIRS:
            # The weight is that of the key as it is rounded.
            key = (seen_k / total[:, None]).to(k_ptr.dtype.element_ty)
            logit = tl.sum(q.to(tl.float32) * key.to(tl.float32), 1) * scale
            weight = (log_mass - logit) * LN_2
            virtual = (row * K + j)[:, None] * D + d[None, :]
            tl.store(keys_ptr + virtual, key, mask=inside[:, None])
            value = seen_v.to(k_ptr.dtype.element_ty)
            tl.store(values_ptr + virtual, value, mask=inside[:, None])
        else:
            key = tl.load(k_means_ptr + mean).to(tl.float32)
            logit = tl.sum(q.to(tl.float32) * key[None, :], 1) * scale
            log_size = tl.log2(tl.maximum(size, 1).to(tl.float32))
            factor = (log_mass - logit - log_size) * LN_2
            factor = tl.minimum(tl.maximum(factor, LEAST), MOST)
            weight = tl.where(size > 0, log_size * LN_2 + factor, float("-inf"))
        pair = row * K + j
        tl.store(mass_ptr + pair, log_mass * LN_2, mask=inside)
        tl.store(error_ptr + pair, tl.sqrt(tl.sum(gap * gap, 1)), mask=inside)
        tl.store(weights_ptr + pair, weight, mask=inside)


@torch.library.custom_op("svg2::route", mutates_args=())
def route(
    q_centroids: Tensor, k: Tensor, v: Tensor, k_offsets: Tensor, scale: float, per_pair: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mass and error, and keys, values and weights of stand-ins; keys and values are like k."""
    with device_of(k):
        tiling = device_tiling(k.device, k.shape[-1])
        return route_with(q_centroids, k, v, k_offsets, scale, per_pair, tiling)


@route.register_fake
def _(
    q_centroids: Tensor, k: Tensor, v: Tensor, k_offsets: Tensor, scale: float, per_pair: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, num_q, dim = q_centroids.shape
    num_k = k_offsets.shape[-1] - 1
    mass, error, weights = (
        k.new_empty((batch, heads, num_q, num_k), dtype=torch.float32) for _ in range(3)
    )
    virtual = (batch, heads, num_q, num_k, dim) if per_pair else (batch, heads, num_k, dim)
    return mass, error, k.new_empty(virtual), k.new_empty(virtual), weights


def route_with(
    q_centroids: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    k_offsets: Int[Tensor, "B H K1"],
    scale: float,
    per_pair: bool,
    tiling: Tiling,
) -> tuple[
    Float32[Tensor, "B H Q K"],
    Float32[Tensor, "B H Q K"],
    Float[Tensor, "B H ... D"],
    Float[Tensor, "B H ... D"],
    Float32[Tensor, "B H Q K"],
]:
    """The same with a given tiling."""
    batch, heads, num_q, dim = q_centroids.shape
    num_k = k_offsets.shape[-1] - 1
    k, v, offsets = _dense_heads(k), _dense_heads(v), k_offsets.int().contiguous()
    v_means = sorted_means(v, offsets)
    log_mass, error, weights = (
        torch.empty(batch, heads, num_q, num_k, dtype=torch.float32, device=k.device)
        for _ in range(3)
    )
    if per_pair:
        k_means = None
        keys, values = (k.new_empty(batch, heads, num_q, num_k, dim) for _ in range(2))
    else:
        k_means = sorted_means(k, offsets).to(k.dtype)
        keys, values = k_means, v_means.to(v.dtype)
    grid = triton.cdiv(num_q, tiling.block_m), triton.cdiv(num_k, tiling.clusters), batch * heads
    route_kernel[grid](
        q_centroids.to(k.dtype).contiguous(), k, v, offsets, k_means, v_means,
        log_mass, error, weights, *((keys, values) if per_pair else (None, None)),
        *k.stride()[:2], *v.stride()[:2], heads, num_q, num_k, scale * math.log2(math.e),
        **_constants(tiling, dim, per_pair),
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    mass = log_mass.softmax(-1)
    return mass, error.mul_(mass), keys, values, weights


def _dense_heads(x: Tensor) -> Tensor:
    """`x` with the tokens of each head one after the other; a copy only where they are not."""
    return x if x.stride()[2:] == (x.shape[-1], 1) else x.contiguous()


@cache
def device_tiling(device: torch.device, head_dim: int) -> Tiling:
    """The tiling for the chip behind a device."""
    return tiling_for(chip_of(device), head_dim)


def _constants(tiling: Tiling, head_dim: int, per_pair: bool) -> dict[str, int | bool | str]:
    return {
        "D": head_dim,
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "CLUSTERS": tiling.clusters,
        "PAIRS": per_pair,
        "PRECISION": "ieee",
    }


def builds(chip: str, head_dim: int, dtype: str, tiling: Tiling | None = None) -> Iterator[Build]:
    """Routing with and without stand-ins for each pair of clusters.

    Args:
        tiling: the default of the chip if not given.
    """
    tiling = tiling or default_tiling(chip)
    for per_pair in (False, True):
        yield Build(
            f"route {tiling.block_m}×{tiling.block_n} D{head_dim} {dtype}{'+pairs' * per_pair}",
            route_kernel,
            dtype,
            _constants(tiling, head_dim, per_pair),
            ("k_means_ptr",) if per_pair else ("keys_ptr", "values_ptr"),
            tiling.num_warps,
            tiling.num_stages,
        )
