"""The attend kernel for Hopper in Gluon: a warp that copies, two warpgroups that compute.

One program has a *producer* warp and two *consumers* of 4 warps with 64 queries each. The producer
copies tiles of keys and values with the tensor memory accelerator (TMA) into a ring in shared
memory; a tile of chunks is put together from one box of CHUNK rows per chunk. A consumer issues
the product for the scores of a tile before the product with the values of the tile before, and
waits for the first alone, so that its softmax runs beside the second. What needs a mask comes
first: virtual keys, then chunks, then full tiles, in one pipeline that drains once per item.

A box reads on behind the end of a chunk, into keys that are not kept; they get weight 0.
"""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.build import Build
from kernels.cluster_attention.fused import attend
from kernels.cluster_attention.fused.gluon_roles import (
    NUM_CONSUMERS,
    PANEL,
    consume,
    make_channel,
    produce,
)
from kernels.cluster_attention.fused.problem import Lists, Problem
from kernels.cluster_attention.fused.tiling import Config, Tiling

# Registers of the producer and of each consumer, by head dimension: with the 3 idle warps beside
# the producer, all that a multiprocessor has for 3 warpgroups. Found by compiling: no spill.
_REGISTERS = {64: (104, 200), 128: (40, 232)}


@gluon.jit(do_not_specialize=["H", "N", "S", "Q", "K", "tiles_stride", "chunks_stride"])
def gluon_kernel(
    k_desc, v_desc,  # [BH * S, D], boxes of a tile
    k_box_desc, v_box_desc,  # the same, boxes of a chunk and a panel
    virtual_k_desc, virtual_v_desc,  # [BH * K, D], with PAIRS [BH * Q * K, D]; or None
    # From here as `attend.attend_kernel` has them.
    q_ptr, out_ptr, perm_ptr, bias_ptr, q_offsets_ptr, tiles_ptr, chunks_ptr, counts_ptr,
    items_ptr, num_items_ptr,
    stride_qb, stride_qh, stride_qn, stride_ob, stride_oh, stride_on,
    H, N, S, Q, K, tiles_stride, chunks_stride, bias_stride, scale,
    D: gl.constexpr,
    BLOCK_M: gl.constexpr,  # queries of one consumer
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CHUNK: gl.constexpr,
    PERMUTED: gl.constexpr, COMPENSATE: gl.constexpr, PAIRS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attention of query tiles over what their cluster keeps; program p takes items p, p + P, …"""
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    keys = make_channel(q_ptr.dtype.element_ty, BLOCK_N, D, STAGES, layout)
    values = make_channel(q_ptr.dtype.element_ty, BLOCK_N, D, STAGES, layout)
    q_first = gl.allocate_shared_memory(q_ptr.dtype.element_ty, [BLOCK_M, D], layout)
    q_second = gl.allocate_shared_memory(q_ptr.dtype.element_ty, [BLOCK_M, D], layout)
    fence_async_shared()

    pointers = (
        q_ptr, out_ptr, perm_ptr, bias_ptr, q_offsets_ptr, chunks_ptr, counts_ptr, items_ptr,
        num_items_ptr,
    )  # fmt: skip
    q_strides = (stride_qb, stride_qh, stride_qn)
    out_strides = (stride_ob, stride_oh, stride_on)
    sizes = (q_strides, out_strides, H, N, Q, K, chunks_stride, bias_stride)
    descs = (k_desc, v_desc, k_box_desc, v_box_desc, virtual_k_desc, virtual_v_desc)
    lists = (tiles_ptr, chunks_ptr, counts_ptr, items_ptr, num_items_ptr)
    gl.warp_specialize(
        [
            (
                consume,
                (
                    keys, values, q_first, pointers, sizes, scale, 0,
                    D, BLOCK_M, BLOCK_N, STAGES, CHUNK, PERMUTED, COMPENSATE,
                ),
            ),
            (
                consume,
                (
                    keys, values, q_second, pointers, sizes, scale, 1,
                    D, BLOCK_M, BLOCK_N, STAGES, CHUNK, PERMUTED, COMPENSATE,
                ),
            ),
            (
                produce,
                (
                    descs, keys, values, lists, S, Q, K, tiles_stride, chunks_stride,
                    D, BLOCK_N, STAGES, CHUNK, COMPENSATE, PAIRS,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


_SWIZZLED = gl.NVMMASharedLayout(128, 16, 2)


def launch(problem: Problem, lists: Lists, config: Config, processors: int) -> None:
    """Attend into `problem.out`: the main tiles with this kernel, the tail with the portable one.

    Raises:
        ValueError: the lists are longer than an int32 counts.
    """
    largest = max(x.numel() for x in (lists.tiles, lists.chunks, lists.bias) if x is not None)
    if largest >= 1 << 31 or problem.k.numel() // problem.k.shape[-1] >= 1 << 31:
        raise ValueError(
            "this call has more keys or longer lists than the attend variant 'gluon' can count: "
            "take fewer heads at a time, or variant='portable'"
        )
    attend.launch(problem, lists, config, processors, ("tail",))
    _, heads, num_queries, head_dim = problem.q.shape
    num_q_clusters, num_k_clusters = problem.kept.shape[2:]
    tiling, items = config.main, lists.items[0]
    tile, box = (tiling.block_n, head_dim), (tiling.chunk, PANEL.value)
    k, v = problem.k, problem.v
    virtual = [
        None if x is None else _descriptor(x, tile) for x in (problem.virtual_k, problem.virtual_v)
    ]
    gluon_kernel[(min(processors * tiling.programs, len(items.places)),)](
        _descriptor(k, tile), _descriptor(v, tile), _descriptor(k, box), _descriptor(v, box),
        *virtual,
        problem.q, problem.out, problem.q_perm, lists.bias, problem.q_offsets,
        lists.tiles, lists.chunks, lists.counts, items.places, items.count,
        *problem.q.stride()[:3], *problem.out.stride()[:3],
        heads, num_queries, k.shape[2], num_q_clusters, num_k_clusters,
        lists.tiles.shape[1], lists.chunks.shape[1], lists.bias_stride,
        problem.scale * math.log2(math.e),
        **_constants(
            tiling, head_dim, problem.q_perm is not None, problem.compensates, problem.has_pairs
        ),
        num_warps=tiling.num_warps, enable_fp_fusion=True,
    )  # fmt: skip


def _descriptor(x: Tensor, box: tuple[int, int]) -> Any:
    """`[..., D]`, contiguous, as rows of D for the TMA; a copy where its start is not aligned."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.data_ptr() % 16:
        rows = rows.clone()
    return TensorDescriptor(rows, list(rows.shape), list(rows.stride()), list(box), _SWIZZLED)


def _constants(
    tiling: Tiling, head_dim: int, permuted: bool, compensate: bool, pairs: bool
) -> dict[str, int | bool | str]:
    producer, consumer = _REGISTERS[head_dim]
    return {
        "D": head_dim,
        "BLOCK_M": tiling.block_m // NUM_CONSUMERS.value,
        "BLOCK_N": tiling.block_n,
        "STAGES": tiling.num_stages,
        "CHUNK": tiling.chunk,
        "PERMUTED": permuted,
        "COMPENSATE": compensate,
        "PAIRS": pairs,
        "PRODUCER_REGISTERS": producer,
        "CONSUMER_REGISTERS": consumer,
    }


def builds(config: Config, head_dim: int, dtype: str) -> Iterator[Build]:
    """The kernel with each kind of virtual keys or none, and with and without `q_perm`.

    The tail is built as that of the portable kernel.
    """
    tiling = config.main
    tile = f"{tiling.block_m}×{tiling.block_n}"
    boxes = {"": (tiling.block_n, head_dim), "_box": (tiling.chunk, PANEL.value)}
    types = {
        f"{x}{kind}_desc": f"tensordesc<{dtype}[{box[0]}, {box[1]}],{_SWIZZLED!r}>"
        for x in ("k", "v")
        for kind, box in boxes.items()
    }
    for compensate, pairs in ((False, False), (True, False), (True, True)):
        for permuted in (False, True):
            absent = () if permuted else ("perm_ptr",)
            more = {}
            if compensate:
                more = {f"virtual_{x}_desc": types[f"{x}_desc"] for x in ("k", "v")}
            else:
                absent += ("virtual_k_desc", "virtual_v_desc", "bias_ptr")
            options = "+comp" * compensate + "+pairs" * pairs + "+perm" * permuted
            yield Build(
                f"attend gluon {tile} D{head_dim} {dtype}{options}",
                gluon_kernel,
                dtype,
                _constants(tiling, head_dim, permuted, compensate, pairs),
                absent,
                tiling.num_warps,
                tiling.num_stages,
                types | more,
            )
