"""Permutation in Triton: a stable counting sort, and rows gathered or scattered."""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Int, Shaped
from torch import Tensor

from kernels.impl import chip_of, dense_rows, device_of
from kernels.winners import winner


@dataclass(frozen=True)
class Tiling:
    """Block sizes and launch options of the counting sort.

    Attributes:
        block_n: labels ranked among themselves by one program.
        block_compare: labels that it compares with at a time.
        num_warps: Triton's, of the ranking.
    """

    block_n: int
    block_compare: int
    num_warps: int


# What a race times beside the default: smaller blocks compare less and count more often.
RACED = (
    *(Tiling(256, compare, 4) for compare in (16, 32)),
    *(Tiling(128, compare, 4) for compare in (16, 32)),
    Tiling(512, 32, 8),
    Tiling(1024, 16, 8),
)


def tiling_for(chip: str) -> Tiling:
    """The tiling for a chip, named "sm_90" or "gfx942": what won there, or else the default."""
    return winner("sort", chip, lambda fields: Tiling(**fields)) or default_tiling(chip)


def default_tiling(chip: str) -> Tiling:
    """The tiling where no race was run."""
    return Tiling(128, 128, 8) if chip == "interpreter" else Tiling(512, 16, 8)


@cache
def device_tiling(device: torch.device) -> Tiling:
    """The tiling for the chip behind a device."""
    return tiling_for(chip_of(device))


# Tile of the prefix sum over blocks.
BLOCK_B = 32
BLOCK_C = 32
# Elements moved by one program.
MOVE_ELEMENTS = 8192


@triton.jit(do_not_specialize=["N", "C"])
def count_kernel(
    labels_ptr,  # [BH, N]
    ranks_ptr,  # [BH, N]
    counts_ptr,  # [BH, num_blocks, C], zeros
    N,
    C,
    BLOCK_N: tl.constexpr,
    BLOCK_COMPARE: tl.constexpr,
):
    """Rank of each token among those of its label in this block, and tokens per label."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    labels_ptr += head * N
    i = block * BLOCK_N + tl.arange(0, BLOCK_N)
    label = tl.load(labels_ptr + i, mask=i < N, other=-1)
    rank = tl.zeros([BLOCK_N], tl.int32)
    count = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, BLOCK_N, BLOCK_COMPARE):
        j = block * BLOCK_N + first + tl.arange(0, BLOCK_COMPARE)
        other = tl.load(labels_ptr + j, mask=j < N, other=-2)
        same = (label[:, None] == other[None, :]).to(tl.int32)
        count += tl.sum(same, 1)
        rank += tl.sum(tl.where(j[None, :] < i[:, None], same, 0), 1)
    tl.store(ranks_ptr + head * N + i, rank, mask=i < N)
    # The last token of each label writes: one writer per place, so it needs no atomics.
    counts_ptr += (head * tl.num_programs(0) + block) * C
    tl.store(counts_ptr + label, count, mask=(i < N) & (rank == count - 1))


@triton.jit(do_not_specialize=["num_blocks", "C"])
def scan_kernel(
    counts_ptr,  # [BH, num_blocks, C]; in place, an exclusive sum over blocks
    totals_ptr,  # [BH, C + 1]; the first of each head stays as it is
    num_blocks,
    C,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """For each label, the number of tokens in earlier blocks."""
    head = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    before = tl.zeros([BLOCK_C], tl.int32)
    for first in range(0, num_blocks, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        places = counts_ptr + (head * num_blocks + b[:, None]) * C + c[None, :]
        inside = (b[:, None] < num_blocks) & (c[None, :] < C)
        counts = tl.load(places, mask=inside, other=0)
        tl.store(places, tl.cumsum(counts, 0) - counts + before[None, :], mask=inside)
        before += tl.sum(counts, 0)
    tl.store(totals_ptr + head * (C + 1) + 1 + c, before, mask=c < C)


@triton.jit(do_not_specialize=["N", "C"])
def place_kernel(
    labels_ptr,  # [BH, N]
    ranks_ptr,  # [BH, N]
    counts_ptr,  # [BH, num_blocks, C]
    offsets_ptr,  # [BH, C + 1]
    perm_ptr,  # [BH, N]
    N,
    C,
    BLOCK_N: tl.constexpr,
):
    """Write each token to the place that its label, block and rank give."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = i < N
    label = tl.load(labels_ptr + head * N + i, mask=inside, other=0)
    place = tl.load(ranks_ptr + head * N + i, mask=inside, other=0)
    place += tl.load(offsets_ptr + head * (C + 1) + label, mask=inside, other=0)
    counts_ptr += (head * tl.num_programs(0) + block) * C
    place += tl.load(counts_ptr + label, mask=inside, other=0)
    tl.store(perm_ptr + head * N + place, i.to(perm_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["H", "N", "OUT_N"])
def move_kernel(
    x_ptr,  # [B, H, N, D], any strides over B, H and N
    perm_ptr,  # [BH, N]
    out_ptr,  # [BH, OUT_N, D]
    stride_b,
    stride_h,
    stride_n,
    H,
    N,
    OUT_N,
    D,
    INVERSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Move rows into the order of `perm`, or back."""
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    there = tl.load(perm_ptr + head * N + i, mask=i < N, other=0).to(tl.int64)
    here = i.to(tl.int64)
    source, target = (here, there) if INVERSE else (there, here)
    x_ptr += (head // H) * stride_b + (head % H) * stride_h
    inside = (i < N)[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + source[:, None] * stride_n + d[None, :], mask=inside)
    out_ptr += head * OUT_N * D
    tl.store(out_ptr + target[:, None] * D + d[None, :], x, mask=inside)


@torch.library.custom_op("svg2::sort_by_label", mutates_args=())
def sort_by_label(labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """`perm` and `offsets` of a stable sort; the labels are [B, H, N]."""
    with device_of(labels):
        return counting_sort(labels, num_clusters)


@sort_by_label.register_fake
def _(labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    return (
        labels.new_empty(labels.shape, dtype=torch.int64),
        labels.new_empty((*labels.shape[:2], num_clusters + 1), dtype=torch.int32),
    )


def counting_sort(
    labels: Int[Tensor, "B H N"], num_clusters: int, tiling: Tiling | None = None
) -> tuple[Int[Tensor, "B H N"], Int[Tensor, "B H C1"]]:
    """The sort without the custom op around it, for ops of which it is one step.

    Args:
        tiling: the one of the device if not given.
    """
    tiling = tiling or device_tiling(labels.device)
    batch, heads, num_tokens = labels.shape
    num_blocks = triton.cdiv(num_tokens, tiling.block_n)
    labels = labels.to(torch.int32).contiguous()
    device = labels.device
    perm = torch.empty(labels.shape, dtype=torch.int64, device=device)
    ranks = torch.empty(labels.shape, dtype=torch.int32, device=device)
    counts = torch.zeros(batch * heads, num_blocks, num_clusters, dtype=torch.int32, device=device)
    totals = torch.zeros(batch, heads, num_clusters + 1, dtype=torch.int32, device=device)
    blocks = (num_blocks, batch * heads)
    count_kernel[blocks](
        labels, ranks, counts, num_tokens, num_clusters,
        tiling.block_n, tiling.block_compare, num_warps=tiling.num_warps,
    )  # fmt: skip
    columns = (triton.cdiv(num_clusters, BLOCK_C), batch * heads)
    scan_kernel[columns](counts, totals, num_blocks, num_clusters, BLOCK_B, BLOCK_C)
    offsets = totals.cumsum(-1, dtype=torch.int32)
    place_kernel[blocks](
        labels, ranks, counts, offsets, perm, num_tokens, num_clusters, tiling.block_n
    )
    return perm, offsets


@torch.library.custom_op("svg2::move_tokens", mutates_args=())
def move_tokens(x: Tensor, perm: Tensor, inverse: bool, room: int = 0) -> Tensor:
    """x[b, h, perm[b, h, i]] in place i, or with `inverse` row i in place perm[b, h, i].

    `room` rows more per head are left for the caller to fill.
    """
    batch, heads, num_tokens, head_dim = x.shape
    x = dense_rows(x)
    out = x.new_empty(batch, heads, num_tokens + room, head_dim)
    block_d = triton.next_power_of_2(head_dim)
    block_n = max(1, MOVE_ELEMENTS // block_d)
    with device_of(x):
        move_kernel[(triton.cdiv(num_tokens, block_n), batch * heads)](
            x, perm.contiguous(), out, *x.stride()[:3],
            heads, num_tokens, num_tokens + room, head_dim,
            INVERSE=inverse, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=8,
        )  # fmt: skip
    return out


@move_tokens.register_fake
def _(x: Tensor, perm: Tensor, inverse: bool, room: int = 0) -> Tensor:
    return x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3])


def permute(
    x: Shaped[Tensor, "B H N D"], perm: Int[Tensor, "B H N"], room: int = 0
) -> Shaped[Tensor, "B H R D"]:
    """x[b, h, perm[b, h, i]] in place i; the last `room` rows hold anything."""
    return move_tokens(x, perm, False, room)


def unpermute(
    x: Shaped[Tensor, "B H N D"], perm: Int[Tensor, "B H N"]
) -> Shaped[Tensor, "B H N D"]:
    """Row i of x goes to place perm[b, h, i]."""
    return move_tokens(x, perm, True)
