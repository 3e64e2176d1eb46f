"""The portable attend kernel: pointers and `tl.dot`, on any chip and in the interpreter."""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import math
from collections.abc import Iterator

import triton
import triton.language as tl

from kernels.build import Build
from kernels.cluster_attention.fused.problem import Lists, Problem
from kernels.cluster_attention.fused.tiling import LENGTH_BITS as BITS
from kernels.cluster_attention.fused.tiling import Config, Tiling

LENGTH_BITS = tl.constexpr(BITS)
LENGTH_MASK = tl.constexpr((1 << BITS) - 1)


@triton.jit
def _accumulate(
    scores,  # [BLOCK_M, BLOCK_N], logits over ln 2
    v,  # [BLOCK_N, D]
    acc,  # [BLOCK_M, D]
    total,  # [BLOCK_M]
    highest,  # [BLOCK_M]
    new_highest,  # [BLOCK_M], finite
    PRECISION: tl.constexpr,
):
    """One step of the online softmax."""
    p = tl.exp2(scores - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total


@triton.jit(do_not_specialize=["H", "N", "S", "Q", "K", "tiles_stride", "chunks_stride"])
def attend_kernel(
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

        # What is read of a list is a step ahead, so that no address waits for it.
        tile = tiles_ptr + row * tiles_stride
        start = tl.load(tile)
        for t in range(0, num_tiles):
            place = (start + n)[:, None] * D + d[None, :]
            start = tl.load(tile + (t + 1) // SPLIT) + (t + 1) % SPLIT * BLOCK_N
            k = tl.load(k_head + place)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            v = tl.load(v_head + place)
            new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
            acc, total = _accumulate(
                scores * scale, v, acc, total, highest, new_highest, PRECISION
            )
            highest = new_highest

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

        if COMPENSATE:
            first_virtual = (row if PAIRS else head) * K * D
            for c0 in range(0, K, BLOCK_C):
                c = c0 + tl.arange(0, BLOCK_C)
                bias = tl.load(bias_ptr + row * bias_stride + c)
                # Past the last virtual key that one again, which the bias takes out.
                place = tl.minimum(c, K - 1)[:, None] * D + d[None, :]
                k = tl.load(virtual_k_ptr + first_virtual + place)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias[None, :]
                new_highest = tl.maximum(highest, tl.max(scores, 1))
                # Where nothing is kept and these are not skipped, nothing has been seen yet.
                new_highest = tl.where(new_highest == float("-inf"), 0.0, new_highest)
                v = tl.load(virtual_v_ptr + first_virtual + place)
                acc, total = _accumulate(scores, v, acc, total, highest, new_highest, PRECISION)
                highest = new_highest

        # A query that saw no key gets zeros.
        acc /= tl.where(total > 0, total, 1.0)[:, None]
        out_head = out_ptr + batch * stride_ob + (head - batch * H) * stride_oh
        out_place = query.to(tl.int64)[:, None] * stride_on + d[None, :]
        tl.store(out_head + out_place, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def launch(
    problem: Problem,
    lists: Lists,
    config: Config,
    processors: int,
    parts: tuple[str, ...] = ("main", "tail"),
) -> None:
    """Attend into `problem.out`, in one launch for each tiling that `parts` names."""
    _, heads, num_queries, head_dim = problem.q.shape
    num_q_clusters, num_k_clusters = problem.kept.shape[2:]
    permuted = problem.q_perm is not None
    for (part, tiling), items in zip(config.tilings.items(), lists.items, strict=True):
        if part not in parts:
            continue
        grid = min(processors * tiling.programs, len(items.places))
        attend_kernel[(grid,)](
            problem.q, problem.k, problem.v, problem.out, problem.q_perm,
            problem.virtual_k, problem.virtual_v, lists.bias, problem.q_offsets,
            lists.tiles, lists.chunks, lists.counts, items.places, items.count, items.ticket,
            *problem.q.stride()[:3], *problem.out.stride()[:3],
            heads, num_queries, problem.k.shape[2], num_q_clusters, num_k_clusters,
            lists.tiles.shape[1], lists.chunks.shape[1], lists.bias_stride,
            problem.scale * math.log2(math.e),
            **_constants(
                config, tiling, head_dim, permuted, problem.compensates, problem.has_pairs
            ),
            num_warps=tiling.num_warps, num_stages=tiling.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


def _constants(
    config: Config, tiling: Tiling, head_dim: int, permuted: bool, compensate: bool, pairs: bool
) -> dict[str, int | bool | str]:
    return {
        "D": head_dim,
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "LIST_N": config.main.block_n,
        "BLOCK_C": tiling.block_c,
        "CHUNK": tiling.chunk,
        "PERMUTED": permuted,
        "COMPENSATE": compensate,
        "PAIRS": pairs,
        "PRECISION": "ieee",
    }


def builds(config: Config, head_dim: int, dtype: str) -> Iterator[Build]:
    """Each tiling, with each kind of virtual keys or none, and with and without `q_perm`."""
    for part, tiling in config.tilings.items():
        for compensate, pairs in ((False, False), (True, False), (True, True)):
            for permuted in (False, True):
                absent = () if permuted else ("perm_ptr",)
                if not compensate:
                    absent += ("virtual_k_ptr", "virtual_v_ptr", "bias_ptr")
                tile = f"{part} {tiling.block_m}×{tiling.block_n}"
                options = "+comp" * compensate + "+pairs" * pairs + "+perm" * permuted
                yield Build(
                    f"attend {tile} D{head_dim} {dtype}{options}",
                    attend_kernel,
                    dtype,
                    _constants(config, tiling, head_dim, permuted, compensate, pairs),
                    absent,
                    tiling.num_warps,
                    tiling.num_stages,
                )
