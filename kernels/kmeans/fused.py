"""k-means in Triton: assign with an online argmax, then means of the sorted tokens."""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from kernels.impl import chip_of, dense_rows, device_of
from kernels.permutation import fused as permutation
from kernels.winners import winner

# Tokens of a cluster that the update adds up side by side.
UPDATE_ROWS = 32


@dataclass(frozen=True)
class Tiling:
    """Block sizes and launch options of `assign_kernel`.

    Attributes:
        block_n: tokens of a tile.
        block_c: centroids of a tile.
        num_warps, num_stages: Triton's.
        per_tile: whether a tile's nearest centroid is found before the next tile. It takes fewer
            registers than the nearest per column, which larger tiles have no room for.
    """

    block_n: int
    block_c: int
    num_warps: int
    num_stages: int
    per_tile: bool = False


# What a race times beside the default; none spills on sm_90.
RACED = (
    *(Tiling(128, 64, 8, stages, per_tile=True) for stages in (2, 4)),
    *(Tiling(block_n, 128, 4, 1, per_tile=True) for block_n in (64, 128)),
    *(Tiling(128, 128, 8, stages, per_tile=True) for stages in (1, 2)),
    Tiling(128, 64, 4, 1),
    Tiling(128, 64, 4, 1, per_tile=True),
    Tiling(128, 256, 8, 1, per_tile=True),
    Tiling(64, 256, 4, 1, per_tile=True),
    Tiling(256, 128, 8, 1, per_tile=True),
)


def tiling_for(chip: str, head_dim: int) -> Tiling:
    """The tiling for a chip, named "sm_90" or "gfx942": what won there, or else the default."""
    won = winner(f"assign D{head_dim}", chip, lambda fields: Tiling(**fields))
    return won or default_tiling(chip)


def default_tiling(chip: str) -> Tiling:
    """The tiling where no race was run; found by compiling, not by timing."""
    if chip == "interpreter":
        return Tiling(64, 16, 4, 1)
    if chip in {"sm_90", "sm_100"}:
        return Tiling(128, 64, 8, 4)
    if chip.startswith("sm_"):
        return Tiling(128, 64, 8, 2)
    return Tiling(128, 64, 8, 1)


@triton.jit(do_not_specialize=["H", "N", "C"])
def assign_kernel(
    x_ptr,  # [B, H, N, D], any strides over B, H and N
    centroids_ptr,  # [BH, C, D], in the dtype of x
    half_norms_ptr,  # [BH, half_stride], infinite past C
    labels_ptr,  # [BH, N]
    stride_b,
    stride_h,
    stride_n,
    H,
    N,
    C,
    half_stride,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PER_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The nearest centroid of each token; the lowest index among equals."""
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    d = tl.arange(0, D)
    x_ptr += (head // H) * stride_b + (head % H) * stride_h
    x_place = n.to(tl.int64)[:, None] * stride_n + d[None, :]
    x = tl.load(x_ptr + x_place, mask=(n < N)[:, None], other=0.0)
    centroids_ptr += head * C * D
    half_norms_ptr += head * half_stride

    if PER_TILE:
        best = tl.full([BLOCK_N], float("-inf"), tl.float32)
        best_at = tl.zeros([BLOCK_N], tl.int32)
    else:
        # The best per column, so of every BLOCK_C-th centroid: columns are compared at the end.
        best = tl.full([BLOCK_N, BLOCK_C], float("-inf"), tl.float32)
        best_at = tl.zeros([BLOCK_N, BLOCK_C], tl.int32)
    for first in range(0, C, BLOCK_C):
        # Past the last centroid that one again, at an infinite distance: no load needs a mask.
        place = tl.minimum(first + c, C - 1)[:, None] * D + d[None, :]
        centroids = tl.load(centroids_ptr + place)
        half_norms = tl.load(half_norms_ptr + first + c)
        scores = tl.dot(x, tl.trans(centroids), input_precision=PRECISION) - half_norms[None, :]
        if PER_TILE:
            highest = tl.max(scores, 1)
            column = tl.min(tl.where(scores == highest[:, None], c[None, :], BLOCK_C), 1)
            best_at = tl.where(highest > best, first + column, best_at)
            best = tl.maximum(best, highest)
        else:
            better = scores > best
            best = tl.where(better, scores, best)
            best_at = tl.where(better, first, best_at)
    if PER_TILE:
        label = best_at
    else:
        highest = tl.max(best, 1)
        label = tl.min(tl.where(best == highest[:, None], best_at + c[None, :], C), 1)
    # A NaN token is nearest to no centroid, but its label must still be one.
    tl.store(labels_ptr + head * N + n, tl.minimum(label, C - 1), mask=n < N)


def assign_constants(tiling: Tiling, head_dim: int) -> dict[str, int | bool | str]:
    """The constexpr arguments of `assign_kernel`."""
    return {
        "D": head_dim,
        "BLOCK_N": tiling.block_n,
        "BLOCK_C": tiling.block_c,
        "PER_TILE": tiling.per_tile,
        "PRECISION": "ieee",
    }


@triton.jit(do_not_specialize=["H", "N", "C"])
def update_kernel(
    x_ptr,  # [B, H, N, D], any strides over B, H and N
    perm_ptr,  # [BH, N], or None where x is sorted
    offsets_ptr,  # [BH, C + 1]
    means_ptr,  # [BH, C, D], in place
    centroids_ptr,  # [BH, C, D], the same in the dtype of x, or None
    half_norms_ptr,  # [BH, half_stride], of those, or None
    stride_b,
    stride_h,
    stride_n,
    H,
    N,
    C,
    half_stride,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The mean of one cluster; its tokens are added in a fixed order."""
    head = tl.program_id(1).to(tl.int64)
    cluster = tl.program_id(0)
    offsets_ptr += head * (C + 1) + cluster
    start = tl.load(offsets_ptr)
    end = tl.load(offsets_ptr + 1)
    if end > start:  # an empty cluster keeps its centroid
        d = tl.arange(0, D)
        x_ptr += (head // H) * stride_b + (head % H) * stride_h
        if perm_ptr is not None:
            perm_ptr += head * N
        sums = tl.zeros([BLOCK_N, D], tl.float32)
        for first in range(start, end, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            if perm_ptr is not None:
                token = tl.load(perm_ptr + n, mask=n < end, other=0)
            else:
                token = n.to(tl.int64)
            x = tl.load(
                x_ptr + token[:, None] * stride_n + d[None, :], mask=(n < end)[:, None], other=0.0
            )
            sums += x.to(tl.float32)
        mean = tl.sum(sums, 0) / (end - start).to(tl.float32)
        place = (head * C + cluster) * D + d
        tl.store(means_ptr + place, mean)
        if centroids_ptr is not None:
            rounded = mean.to(centroids_ptr.dtype.element_ty)
            tl.store(centroids_ptr + place, rounded)
            norm = tl.sum(rounded.to(tl.float32) * rounded.to(tl.float32), 0)
            tl.store(half_norms_ptr + head * half_stride + cluster, 0.5 * norm)


@torch.library.custom_op("svg2::kmeans", mutates_args=())
def kmeans_and_sort(
    x: Tensor, centroids: Tensor, iters: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Labels, centroids and sizes after `iters` rounds, and `perm` and `offsets` of the labels."""
    with device_of(x):
        return lloyd(x, centroids, iters, device_tiling(x.device, x.shape[-1]))


@kmeans_and_sort.register_fake
def _(x: Tensor, centroids: Tensor, iters: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, num_tokens, _ = x.shape
    num_clusters = centroids.shape[2]
    return (
        x.new_empty((batch, heads, num_tokens), dtype=torch.int32),
        centroids.new_empty(centroids.shape, dtype=torch.float32),
        x.new_empty((batch, heads, num_clusters), dtype=torch.int32),
        x.new_empty((batch, heads, num_tokens), dtype=torch.int64),
        x.new_empty((batch, heads, num_clusters + 1), dtype=torch.int32),
    )


def lloyd(
    x: Float[Tensor, "B H N D"], centroids: Float[Tensor, "B H C D"], iters: int, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same as `kmeans_and_sort`, with a given tiling."""
    batch, heads, num_tokens, head_dim = x.shape
    num_clusters = centroids.shape[2]
    x = dense_rows(x)
    means = centroids.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    # Products are in the dtype of x: the nearest of the rounded centroids needs their own norms.
    rounded = means.to(x.dtype, copy=True)
    half_stride = tiling.block_c * triton.cdiv(num_clusters, tiling.block_c)
    half_norms = torch.full(
        (batch, heads, half_stride), torch.inf, dtype=torch.float32, device=x.device
    )
    half_norms[..., :num_clusters] = rounded.float().square().sum(-1) * 0.5
    labels = torch.empty(batch, heads, num_tokens, dtype=torch.int32, device=x.device)
    strides_and_sizes = (*x.stride()[:3], heads, num_tokens, num_clusters, half_stride)
    for _ in range(iters):
        assign_kernel[(triton.cdiv(num_tokens, tiling.block_n), batch * heads)](
            x, rounded, half_norms, labels, *strides_and_sizes,
            **assign_constants(tiling, head_dim),
            num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        )  # fmt: skip
        perm, offsets = permutation.counting_sort(labels, num_clusters)
        update_kernel[(num_clusters, batch * heads)](
            x, perm, offsets, means, rounded, half_norms, *strides_and_sizes,
            D=head_dim, BLOCK_N=UPDATE_ROWS,
        )  # fmt: skip
    return labels, means, offsets.diff(dim=-1), perm, offsets


def kmeans(
    x: Float[Tensor, "B H N D"], centroids: Float[Tensor, "B H C D"], iters: int
) -> tuple[
    Int[Tensor, "B H N"],
    Float[Tensor, "B H C D"],
    Int[Tensor, "B H C"],
    Int[Tensor, "B H N"],
    Int[Tensor, "B H C1"],
]:
    """Labels, centroids and sizes after `iters` rounds, and `perm` and `offsets` of the labels."""
    return kmeans_and_sort(x, centroids, iters)


@torch.library.custom_op("svg2::cluster_means", mutates_args=())
def cluster_means(x: Tensor, perm: Tensor, offsets: Tensor) -> Tensor:
    """fp32 mean of each cluster, 0 for an empty one; x is in the order that `perm` sorts."""
    with device_of(x):
        return _means(x, perm.contiguous(), offsets.contiguous())


def sorted_means(x: Float[Tensor, "B H N D"], offsets: Int[Tensor, "B H C1"]) -> Tensor:
    """The same for tokens in the order of their clusters; offsets are contiguous."""
    return _means(x, None, offsets)


def _means(x: Tensor, perm: Tensor | None, offsets: Tensor) -> Tensor:
    batch, heads, num_tokens, head_dim = x.shape
    num_clusters = offsets.shape[-1] - 1
    x = dense_rows(x)
    means = torch.zeros(batch, heads, num_clusters, head_dim, dtype=torch.float32, device=x.device)
    update_kernel[(num_clusters, batch * heads)](
        x, perm, offsets, means, None, None,
        *x.stride()[:3], heads, num_tokens, num_clusters, 0, D=head_dim, BLOCK_N=UPDATE_ROWS,
    )  # fmt: skip
    return means


@cluster_means.register_fake
def _(x: Tensor, perm: Tensor, offsets: Tensor) -> Tensor:
    shape = (*x.shape[:2], offsets.shape[-1] - 1, x.shape[-1])
    return x.new_empty(shape, dtype=torch.float32)


@cache
def device_tiling(device: torch.device, head_dim: int) -> Tiling:
    """The tiling for the chip behind a device."""
    return tiling_for(chip_of(device), head_dim)
