"""An attend kernel that reads full tiles through descriptors, by the tensor memory accelerator.

The descriptors are made by the host, once per call: one for all heads. Made on the device they
would need memory that Triton asks the host program for. No key of a full tile has an address of
its own, which saves registers. Chunks and virtual keys are read through pointers as in `attend`.
"""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.build import Build
from kernels.cluster_attention.fused import attend
from kernels.cluster_attention.fused.attend import LENGTH_BITS, LENGTH_MASK, LOWEST, _accumulate
from kernels.cluster_attention.fused.problem import Lists, Problem
from kernels.cluster_attention.fused.tiling import Config


@triton.jit(do_not_specialize=["H", "N", "S", "Q", "K", "tiles_stride", "chunks_stride"])
def tma_kernel(
    k_desc,  # [BH * S, D], boxes of a tile
    v_desc,  # likewise
    q_ptr,  # [B, H, N, D], any strides over B, H and N
    k_ptr,  # [BH, S, D]
    v_ptr,  # [BH, S, D]
    out_ptr,  # [B, H, N, D], any strides over B, H and N
    perm_ptr,  # [BH, N], row of q and out of each query; unused without PERMUTED
    virtual_k_ptr,  # [BH, K, D], with PAIRS [BH * Q, K, D]; unused without COMPENSATE
    virtual_v_ptr,  # likewise
    bias_ptr,  # [BH * Q, bias_stride]; likewise
    q_offsets_ptr,  # [BH, Q + 1]
    tiles_ptr,  # [BH * Q, tiles_stride]
    chunks_ptr,  # [BH * Q, chunks_stride]
    counts_ptr,  # [BH * Q, 2]
    items_ptr,  # [., 2]
    num_items_ptr,  # [1]
    ticket_ptr,  # [1], zero: items given out beyond the first of each program
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
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LIST_N: tl.constexpr,  # keys of a tile in the lists, a multiple of BLOCK_N
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
    PERMUTED: tl.constexpr,
    COMPENSATE: tl.constexpr,
    PAIRS: tl.constexpr,  # each query cluster has virtual keys of its own
    PRECISION: tl.constexpr,
):
    """Attention of query tiles over what their cluster keeps, until the work list is empty."""
    TILE_CHUNKS: tl.constexpr = BLOCK_N // CHUNK
    SPLIT: tl.constexpr = LIST_N // BLOCK_N
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, D)
    num_items = tl.load(num_items_ptr)
    item = tl.program_id(0)
    while item < num_items:
        row = tl.load(items_ptr + 2 * item).to(tl.int64)
        first = tl.load(items_ptr + 2 * item + 1)
        # Asked for here, the next ticket has arrived when this item ends.
        item = tl.num_programs(0) + tl.atomic_add(ticket_ptr, 1, sem="relaxed")
        head = row // Q
        end = tl.load(q_offsets_ptr + row + head + 1)
        num_tiles = tl.load(counts_ptr + 2 * row) * SPLIT
        num_chunk_tiles = tl.load(counts_ptr + 2 * row + 1) * SPLIT

        inside = first + m < end
        query = first + m
        if PERMUTED:
            query = tl.load(perm_ptr + head * N + query, mask=inside, other=0).to(tl.int32)
        batch = head // H
        q_head = q_ptr + batch * stride_qb + (head - batch * H) * stride_qh
        q_place = query.to(tl.int64)[:, None] * stride_qn + d[None, :]
        q = tl.load(q_head + q_place, mask=inside[:, None], other=0.0)
        k_head = k_ptr + head * S * D
        v_head = v_ptr + head * S * D
        acc = tl.zeros([BLOCK_M, D], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)

        # Chunks first: what needs a mask is done before the longer loop of full tiles.
        chunks = chunks_ptr + row * chunks_stride + n // CHUNK
        code = tl.load(chunks)
        for t in range(0, num_chunk_tiles):
            # Past the end of a chunk its last key again: always kept, and no load needs a mask.
            inner = tl.maximum(tl.minimum(n % CHUNK, (code & LENGTH_MASK) - 1), 0)
            place = ((code >> LENGTH_BITS) + inner)[:, None] * D + d[None, :]
            code = tl.load(chunks + (t + 1) * TILE_CHUNKS)
            k = tl.load(k_head + place)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            v = tl.load(v_head + place)
            # Loaded again where columns need it: moving it there costs more.
            length = tl.load(chunks + t * TILE_CHUNKS) & LENGTH_MASK
            scores = tl.where((n % CHUNK < length)[None, :], scores, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
            acc, total = _accumulate(
                scores * scale, v, acc, total, highest, new_highest, PRECISION
            )
            highest = new_highest

        tile = tiles_ptr + row * tiles_stride
        first_key = (head * S).to(tl.int32)
        for t in range(0, num_tiles):
            start = first_key + tl.load(tile + t // SPLIT) + t % SPLIT * BLOCK_N
            k = k_desc.load([start, 0])
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            v = v_desc.load([start, 0])
            new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
            acc, total = _accumulate(
                scores * scale, v, acc, total, highest, new_highest, PRECISION
            )
            highest = new_highest

        if COMPENSATE:
            first_virtual = (row if PAIRS else head) * K * D
            for c0 in range(0, K, BLOCK_C):
                c = c0 + tl.arange(0, BLOCK_C)
                bias = tl.load(bias_ptr + row * bias_stride + c)
                # Past the last virtual key that one again, which the bias takes out.
                place = tl.minimum(c, K - 1)[:, None] * D + d[None, :]
                k = tl.load(virtual_k_ptr + first_virtual + place)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias[None, :]
                # Finite also where nothing is kept and these are not skipped.
                new_highest = tl.maximum(tl.maximum(highest, tl.max(scores, 1)), LOWEST)
                v = tl.load(virtual_v_ptr + first_virtual + place)
                acc, total = _accumulate(scores, v, acc, total, highest, new_highest, PRECISION)
                highest = new_highest

        # A query that saw no key gets zeros.
        acc /= tl.where(total > 0, total, 1.0)[:, None]
        out_head = out_ptr + batch * stride_ob + (head - batch * H) * stride_oh
        out_place = query.to(tl.int64)[:, None] * stride_on + d[None, :]
        tl.store(out_head + out_place, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def launch(problem: Problem, lists: Lists, config: Config, processors: int) -> None:
    """Attend into `problem.out`, in one launch for each tiling."""
    keys, values = (_aligned_rows(x) for x in (problem.k, problem.v))

    def launch_tma(grid: tuple[int], block_n: int, *args: Any, **options: Any) -> None:
        boxes = (TensorDescriptor.from_tensor(x, [block_n, x.shape[1]]) for x in (keys, values))
        tma_kernel[grid](*boxes, *args, **options)

    attend.launch(problem, lists, config, processors, kernel=launch_tma)


def _aligned_rows(x: Tensor) -> Tensor:
    """`[..., D]` as rows of D; a copy where the start is not aligned as a descriptor needs it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows.clone() if rows.data_ptr() % 16 else rows


def builds(config: Config, head_dim: int, dtype: str) -> Iterator[Build]:
    """The same variants as of the portable kernel."""
    for build in attend.builds(config, head_dim, dtype):
        box = f"tensordesc<{dtype}[{build.constants['BLOCK_N']}, {head_dim}]>"
        yield replace(
            build,
            name=build.name.replace("attend", "attend tma"),
            kernel=tma_kernel,
            types=dict.fromkeys(("k_desc", "v_desc"), box),
        )
