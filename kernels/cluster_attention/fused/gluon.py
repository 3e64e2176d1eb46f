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
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.build import Build
from kernels.cluster_attention.fused import attend
from kernels.cluster_attention.fused.problem import Lists, Problem
from kernels.cluster_attention.fused.tiling import LENGTH_BITS as BITS
from kernels.cluster_attention.fused.tiling import Config, Tiling

LENGTH_BITS = gl.constexpr(BITS)
LENGTH_MASK = gl.constexpr((1 << BITS) - 1)
# Columns of 2 bytes that one swizzled row of 128 bytes holds. A wider tile is panels of as many.
PANEL = gl.constexpr(64)
_NUM_CONSUMERS = 2
NUM_CONSUMERS = gl.constexpr(_NUM_CONSUMERS)
# Of the producer and of each consumer; with 3 idle warps beside the producer they fill the file.
PRODUCER_REGISTERS = gl.constexpr(40)
CONSUMER_REGISTERS = gl.constexpr(232)

# Names that changed between Triton 3.6 and 3.9.
_copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_memory = gl.shared_memory_descriptor
_reinterpret = getattr(_memory, "reinterpret", None) or _memory._reinterpret


@gluon.jit
def _count_tiles(row, counts_ptr, K, COMPENSATE: gl.constexpr, BLOCK_N: gl.constexpr):
    """Tiles of virtual keys, of chunks, and full ones; at least one in all."""
    num_tiles = gl.load(counts_ptr + 2 * row)
    num_chunk_tiles = gl.load(counts_ptr + 2 * row + 1)
    num_virtual = 0
    if COMPENSATE:
        num_virtual = (K + BLOCK_N - 1) // BLOCK_N
    # Behind a list stands a tile of empty chunks: it serves where nothing is kept.
    is_empty = num_virtual + num_chunk_tiles + num_tiles == 0
    num_chunk_tiles = gl.where(is_empty, 1, num_chunk_tiles)
    return num_virtual, num_chunk_tiles, num_tiles


@gluon.jit
def _send_tile(desc, ring, full, empty, count, start, STAGES: gl.constexpr):
    """Copy a whole tile into the ring once its place is free."""
    stage = count % STAGES
    mbarrier.wait(empty.index(stage), (count // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(stage), desc.block_type.nbytes)
    _copy(desc, [start, 0], full.index(stage), ring.index(stage))


@gluon.jit
def _send_chunks(
    desc, boxes, full, empty, count, chunks_ptr, first_key,
    STAGES: gl.constexpr, NUM_CHUNKS: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Put a tile together from boxes: CHUNK rows of one panel each."""
    NUM_PANELS: gl.constexpr = D // PANEL
    stage = count % STAGES
    mbarrier.wait(empty.index(stage), (count // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(stage), desc.block_type.nbytes * NUM_CHUNKS * NUM_PANELS)
    for c in gl.static_range(NUM_CHUNKS):
        start = first_key + (gl.load(chunks_ptr + c) >> LENGTH_BITS)
        for panel in gl.static_range(NUM_PANELS):
            box = boxes.index((stage * NUM_PANELS + panel) * NUM_CHUNKS + c)
            _copy(desc, [start, panel * PANEL], full.index(stage), box)


@gluon.jit
def _produce(
    descs, rings, boxes, k_full, k_empty, v_full, v_empty,
    tiles_ptr, chunks_ptr, counts_ptr, items_ptr, num_items_ptr,
    S, Q, K, tiles_stride, chunks_stride,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CHUNK: gl.constexpr,
    COMPENSATE: gl.constexpr, PAIRS: gl.constexpr,
):  # fmt: skip
    """Copy the keys and values of all items of this program, in the order of the consumers."""
    NUM_CHUNKS: gl.constexpr = BLOCK_N // CHUNK
    k_desc, v_desc, k_box, v_box, virtual_k, virtual_v = descs
    k_ring, v_ring = rings
    k_boxes, v_boxes = boxes
    count = 0
    for item in range(gl.program_id(0), gl.load(num_items_ptr), gl.num_programs(0)):
        row = gl.load(items_ptr + 2 * item)
        head = row // Q
        num_virtual, num_chunk_tiles, num_tiles = _count_tiles(
            row, counts_ptr, K, COMPENSATE, BLOCK_N
        )
        first_key = head * S
        if COMPENSATE:
            first_virtual = (row if PAIRS else head) * K
            for t in range(0, num_virtual):
                start = first_virtual + t * BLOCK_N
                _send_tile(virtual_k, k_ring, k_full, k_empty, count, start, STAGES)
                _send_tile(virtual_v, v_ring, v_full, v_empty, count, start, STAGES)
                count += 1
        chunks = chunks_ptr + row * chunks_stride
        for t in range(0, num_chunk_tiles):
            _send_chunks(
                k_box, k_boxes, k_full, k_empty, count, chunks, first_key, STAGES, NUM_CHUNKS, D
            )
            _send_chunks(
                v_box, v_boxes, v_full, v_empty, count, chunks, first_key, STAGES, NUM_CHUNKS, D
            )
            chunks += NUM_CHUNKS
            count += 1
        tile = tiles_ptr + row * tiles_stride
        # What is read of the list is a step ahead, so that no copy waits for it.
        start = gl.load(tile)
        for t in range(0, num_tiles):
            this = first_key + start
            tile += 1
            start = gl.load(tile)
            _send_tile(k_desc, k_ring, k_full, k_empty, count, this, STAGES)
            _send_tile(v_desc, v_ring, v_full, v_empty, count, this, STAGES)
            count += 1


@gluon.jit
def _bias_of(
    t, mask,
    layout: gl.constexpr, CHUNK: gl.constexpr, BLOCK_N: gl.constexpr, COMPENSATE: gl.constexpr,
):  # fmt: skip
    """What is added to the logits of tile t over ln 2, whatever kind it is."""
    num_virtual, num_masked, chunks_ptr, bias_ptr, bias_stride = mask
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
    is_chunk = (t >= num_virtual) & (t < num_masked)
    place = (t - num_virtual) * (BLOCK_N // CHUNK) + n // CHUNK
    code = gl.load(chunks_ptr + place, mask=(n >= 0) & is_chunk, other=CHUNK)
    bias = gl.where(n % CHUNK < (code & LENGTH_MASK), 0.0, float("-inf"))
    if COMPENSATE:
        c = t * BLOCK_N + n
        is_virtual = (c < bias_stride) & (t < num_virtual)
        weight = gl.load(bias_ptr + c, mask=is_virtual, other=float("-inf"))
        bias = gl.where((n >= 0) & (t < num_virtual), weight, bias)
    return bias


@gluon.jit
def _step(
    q_smem, k_ring, v_ring, k_full, k_empty, v_full, v_empty, count,
    p, acc, total, highest, scale, t, mask,
    STAGES: gl.constexpr, BLOCK_N: gl.constexpr, qk_layout: gl.constexpr, pv_layout: gl.constexpr,
    CHUNK: gl.constexpr, COMPENSATE: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Scores and softmax of tile `count` while the values of the one before are added."""
    BLOCK_M: gl.constexpr = q_smem.shape[0]
    stage = count % STAGES
    before = (count - 1) % STAGES
    nothing = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, qk_layout)
    mbarrier.wait(k_full.index(stage), count // STAGES & 1)
    k = k_ring.index(stage).permute((1, 0))
    scores = warpgroup_mma(q_smem, k, nothing, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(before), (count - 1) // STAGES & 1)
    acc = warpgroup_mma(p, v_ring.index(before), acc, is_async=True)
    scores = warpgroup_mma_wait(num_outstanding=1, deps=[scores])
    mbarrier.arrive(k_empty.index(stage), count=1)
    if MASKED:
        bias = _bias_of(t, mask, qk_layout, CHUNK, BLOCK_N, COMPENSATE)
        scores = scores * scale + bias[None, :]
        new_highest = gl.maximum(highest, gl.max(scores, 1))
        base = gl.where(new_highest == float("-inf"), 0.0, new_highest)
        weights = gl.exp2(scores - base[:, None])
    else:
        new_highest = gl.maximum(highest, gl.max(scores, 1) * scale)
        base = new_highest
        weights = gl.exp2(scores * scale - base[:, None])
    shrink = gl.exp2(highest - base)
    total = total * shrink + gl.sum(weights, 1)
    # These values are here already. Waiting for them again ends a basic block, over which the
    # assembler moves nothing: else it waits for the product first, and only then comes softmax.
    mbarrier.wait(v_full.index(before), (count - 1) // STAGES & 1)
    acc, weights = warpgroup_mma_wait(num_outstanding=0, deps=[acc, weights])
    mbarrier.arrive(v_empty.index(before), count=1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, pv_layout))[:, None]
    # After the wait, for the product reads its weights from the same registers.
    p = gl.convert_layout(weights.to(p.dtype), p.type.layout)
    return p, acc, total, new_highest


@gluon.jit
def _place(
    ptr, perm_ptr, head, first, end, N, H, strides,
    BLOCK_M: gl.constexpr, D: gl.constexpr, layout: gl.constexpr, PERMUTED: gl.constexpr,
):  # fmt: skip
    """Pointers to rows of q or of the result, and which are there."""
    query = first + gl.arange(0, BLOCK_M, gl.SliceLayout(1, layout))
    inside = query < end
    if PERMUTED:
        query = gl.load(perm_ptr + head.to(gl.int64) * N + query, mask=inside, other=0)
    stride_b, stride_h, stride_n = strides
    batch = (head // H).to(gl.int64)
    ptr += batch * stride_b + (head % H).to(gl.int64) * stride_h
    d = gl.arange(0, D, gl.SliceLayout(0, layout))
    return ptr + (query.to(gl.int64) * stride_n)[:, None] + d[None, :], inside[:, None]


@gluon.jit
def _consume(
    rings, k_full, k_empty, v_full, v_empty, q_smem, pointers, sizes, scale,
    PART: gl.constexpr, D: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, CHUNK: gl.constexpr, PERMUTED: gl.constexpr, COMPENSATE: gl.constexpr,
):  # fmt: skip
    """Attention of BLOCK_M queries of each item."""
    qk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    pv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, pv_layout, 2)
    q_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    (
        q_ptr, out_ptr, perm_ptr, bias_ptr, q_offsets_ptr, chunks_ptr, counts_ptr, items_ptr,
        num_items_ptr,
    ) = pointers  # fmt: skip
    q_strides, out_strides, H, N, Q, K, chunks_stride, bias_stride = sizes
    k_ring, v_ring = rings
    count = 0
    for item in range(gl.program_id(0), gl.load(num_items_ptr), gl.num_programs(0)):
        row = gl.load(items_ptr + 2 * item)
        first = gl.load(items_ptr + 2 * item + 1) + PART * BLOCK_M
        head = row // Q
        end = gl.load(q_offsets_ptr + row + head + 1)
        num_virtual, num_chunk_tiles, num_tiles = _count_tiles(
            row, counts_ptr, K, COMPENSATE, BLOCK_N
        )
        num_masked = num_virtual + num_chunk_tiles
        chunks = chunks_ptr + row * chunks_stride
        if COMPENSATE:
            bias_row = bias_ptr + row * bias_stride
        else:
            bias_row = chunks  # not read
        mask = (num_virtual, num_masked, chunks, bias_row, bias_stride)

        place, inside = _place(
            q_ptr, perm_ptr, head, first, end, N, H, q_strides, BLOCK_M, D, q_layout, PERMUTED
        )
        q_smem.store(gl.load(place, mask=inside, other=0.0))
        fence_async_shared()

        # The first tile has no values before it.
        mbarrier.wait(k_full.index(count % STAGES), count // STAGES & 1)
        k = k_ring.index(count % STAGES).permute((1, 0))
        nothing = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, qk_layout)
        scores = warpgroup_mma(q_smem, k, nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=0, deps=[scores])
        mbarrier.arrive(k_empty.index(count % STAGES), count=1)
        bias = _bias_of(0, mask, qk_layout, CHUNK, BLOCK_N, COMPENSATE)
        scores = scores * scale + bias[None, :]
        highest = gl.max(scores, 1)
        base = gl.where(highest == float("-inf"), 0.0, highest)
        weights = gl.exp2(scores - base[:, None])
        total = gl.sum(weights, 1)
        p = gl.convert_layout(weights.to(q_smem.dtype), p_layout)
        acc = gl.zeros([BLOCK_M, D], gl.float32, pv_layout)
        count += 1

        for t in range(1, num_masked):
            p, acc, total, highest = _step(
                q_smem, k_ring, v_ring, k_full, k_empty, v_full, v_empty, count,
                p, acc, total, highest, scale, t, mask,
                STAGES, BLOCK_N, qk_layout, pv_layout, CHUNK, COMPENSATE, True,
            )  # fmt: skip
            count += 1
        for _ in range(gl.maximum(num_masked, 1), num_masked + num_tiles):
            p, acc, total, highest = _step(
                q_smem, k_ring, v_ring, k_full, k_empty, v_full, v_empty, count,
                p, acc, total, highest, scale, 0, mask,
                STAGES, BLOCK_N, qk_layout, pv_layout, CHUNK, COMPENSATE, False,
            )  # fmt: skip
            count += 1

        before = (count - 1) % STAGES
        mbarrier.wait(v_full.index(before), (count - 1) // STAGES & 1)
        acc = warpgroup_mma(p, v_ring.index(before), acc, is_async=True)
        acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
        mbarrier.arrive(v_empty.index(before), count=1)
        # A query that saw no key gets zeros.
        total = gl.where(total > 0, total, 1.0)
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, pv_layout))[:, None]
        place, inside = _place(
            out_ptr, perm_ptr, head, first, end, N, H, out_strides,
            BLOCK_M, D, pv_layout, PERMUTED,
        )  # fmt: skip
        gl.store(place, acc.to(out_ptr.dtype.element_ty), mask=inside)


@gluon.jit(do_not_specialize=["H", "N", "S", "Q", "K", "tiles_stride", "chunks_stride"])
def gluon_kernel(
    k_desc,  # [BH * S, D], boxes of a tile
    v_desc,
    k_box_desc,  # the same, boxes of a chunk and a panel
    v_box_desc,
    virtual_k_desc,  # [BH * K, D], with PAIRS [BH * Q * K, D]; unused without COMPENSATE
    virtual_v_desc,
    q_ptr,  # [B, H, N, D], any strides over B, H and N
    out_ptr,  # likewise
    perm_ptr,  # [BH, N], row of q and out of each query; unused without PERMUTED
    bias_ptr,  # [BH * Q, bias_stride]; unused without COMPENSATE
    q_offsets_ptr,  # [BH, Q + 1]
    tiles_ptr,  # [BH * Q, tiles_stride]
    chunks_ptr,  # [BH * Q, chunks_stride]
    counts_ptr,  # [BH * Q, 2]
    items_ptr,  # [., 2]
    num_items_ptr,  # [1]
    stride_qb,
    stride_qh,
    stride_qn,
    stride_ob,
    stride_oh,
    stride_on,
    H,
    N,
    S,
    Q,
    K,
    tiles_stride,
    chunks_stride,
    bias_stride,
    scale,  # of the logits, over ln 2
    D: gl.constexpr,
    BLOCK_M: gl.constexpr,  # queries of one consumer
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    CHUNK: gl.constexpr,
    PERMUTED: gl.constexpr,
    COMPENSATE: gl.constexpr,
    PAIRS: gl.constexpr,  # each query cluster has virtual keys of its own
):
    """Attention of query tiles over what their cluster keeps; program p takes items p, p + P, …"""
    NUM_BOXES: gl.constexpr = STAGES * (D // PANEL) * (BLOCK_N // CHUNK)
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], layout)
    k_boxes = _reinterpret(k_ring, dtype, [NUM_BOXES, CHUNK, PANEL], layout)
    v_boxes = _reinterpret(v_ring, dtype, [NUM_BOXES, CHUNK, PANEL], layout)
    q_first = gl.allocate_shared_memory(dtype, [BLOCK_M, D], layout)
    q_second = gl.allocate_shared_memory(dtype, [BLOCK_M, D], layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=NUM_CONSUMERS)
        mbarrier.init(v_empty.index(stage), count=NUM_CONSUMERS)
    fence_async_shared()

    rings = (k_ring, v_ring)
    pointers = (
        q_ptr, out_ptr, perm_ptr, bias_ptr, q_offsets_ptr, chunks_ptr, counts_ptr, items_ptr,
        num_items_ptr,
    )  # fmt: skip
    q_strides = (stride_qb, stride_qh, stride_qn)
    out_strides = (stride_ob, stride_oh, stride_on)
    sizes = (q_strides, out_strides, H, N, Q, K, chunks_stride, bias_stride)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    rings, k_full, k_empty, v_full, v_empty, q_first, pointers, sizes, scale,
                    0, D, BLOCK_M, BLOCK_N, STAGES, CHUNK, PERMUTED, COMPENSATE,
                ),
            ),
            (
                _consume,
                (
                    rings, k_full, k_empty, v_full, v_empty, q_second, pointers, sizes, scale,
                    1, D, BLOCK_M, BLOCK_N, STAGES, CHUNK, PERMUTED, COMPENSATE,
                ),
            ),
            (
                _produce,
                (
                    (k_desc, v_desc, k_box_desc, v_box_desc, virtual_k_desc, virtual_v_desc),
                    rings, (k_boxes, v_boxes), k_full, k_empty, v_full, v_empty,
                    tiles_ptr, chunks_ptr, counts_ptr, items_ptr, num_items_ptr,
                    S, Q, K, tiles_stride, chunks_stride,
                    D, BLOCK_N, STAGES, CHUNK, COMPENSATE, PAIRS,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


_SWIZZLED = gl.NVMMASharedLayout(128, 16, 2)


def launch(problem: Problem, lists: Lists, config: Config, processors: int) -> None:
    """Attend into `problem.out`: whole tiles with this kernel, the tail with the portable one."""
    _, heads, num_queries, head_dim = problem.q.shape
    num_q_clusters, num_k_clusters = problem.kept.shape[2:]
    tiling, items = config.main, lists.items[0]
    tile, box = (tiling.block_n, head_dim), (tiling.chunk, PANEL.value)
    k, v = problem.k, problem.v
    virtual = [None if x is None else _descriptor(x, tile) for x in (problem.virtual_k, problem.virtual_v)]
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
    return {
        "D": head_dim,
        "BLOCK_M": tiling.block_m // _NUM_CONSUMERS,
        "BLOCK_N": tiling.block_n,
        "STAGES": tiling.num_stages,
        "CHUNK": tiling.chunk,
        "PERMUTED": permuted,
        "COMPENSATE": compensate,
        "PAIRS": pairs,
    }


def builds(config: Config, head_dim: int, dtype: str) -> Iterator[Build]:
    """The kernel with each kind of virtual keys or none, and with and without `q_perm`."""
    tiling = config.main
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
                f"attend gluon main {tiling.block_m}×{tiling.block_n} D{head_dim} {dtype}{options}",
                gluon_kernel,
                dtype,
                _constants(tiling, head_dim, permuted, compensate, pairs),
                absent,
                tiling.num_warps,
                tiling.num_stages,
                types | more,
            )
