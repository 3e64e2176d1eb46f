"""Cluster attention in Triton: lists of what is kept, then one online softmax over them.

Three launches, and nothing waits for the device:

1. `list_keys_kernel` merges adjacent kept key clusters into spans and cuts these into *full tiles*
   of BLOCK_N keys and, for what is left of each span, *chunks* of at most CHUNK keys. Several
   chunks share one tile, so a span pays for half a chunk of padding and not for half a tile.
2. `list_items_kernel` writes the work list: (query cluster, first query), head by head so that the
   keys of one head stay in the L2 cache, and the longest first within a head.
3. `attend_kernel`, a persistent grid that draws items from the list: full tiles, then tiles of
   chunks, then virtual keys. What is left of a query cluster after whole tiles may go to a second
   launch with smaller tiles.
"""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.impl import INTERPRETING, chip_of, dense_rows, device_of

# A chunk is one int32: where it starts, and in the low bits its length.
LENGTH_BITS = tl.constexpr(6)
LENGTH_MASK = tl.constexpr(63)
MAX_KEYS = 1 << 24  # times the head dimension, still an int32
# Rows of biases are whole numbers of these long, so that tiles of virtual keys need no mask.
BIAS_UNIT = 64

# Sizes are never specialised: no new length, whatever it divides by, compiles anything anew.
# Strides are, for wide loads.


@dataclass(frozen=True)
class Tiling:
    """Block sizes and launch options of `attend_kernel`.

    Attributes:
        block_m: queries of a tile.
        block_n: keys of a tile.
        num_warps, num_stages: Triton's; stages are tiles of keys and values in flight.
        programs: programs of the persistent grid per multiprocessor.
        chunk: keys of a chunk at most.
        block_c: virtual keys of a tile.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    programs: int = 1
    chunk: int = 16
    block_c: int = 64


@dataclass(frozen=True)
class Config:
    """How `cluster_attention` runs on one kind of chip.

    Attributes:
        main: tiles of all queries, or of those that the tail leaves.
        tail: smaller tiles for the last queries of a cluster where they fit, or None.
    """

    main: Tiling
    tail: Tiling | None = None

    def __post_init__(self) -> None:
        if self.tail is not None:
            # Both read the same lists of keys, cut for the main tiles.
            assert self.main.block_n % self.tail.block_n == 0
            assert self.main.chunk == self.tail.chunk
            assert self.main.block_m > self.tail.block_m
        assert all(BIAS_UNIT % t.block_c == 0 for t in (self.main, self.tail) if t is not None)


def config_for(target: str, head_dim: int) -> Config:
    """The configuration for a chip, named "sm_90" or "gfx942"; found by compiling, not by timing.

    The largest tiles that compile without register spills and fit the chip's shared memory.
    """
    if target == "sm_90":
        return Config(Tiling(128, 128, 8, 2), Tiling(64, 64, 4, 2, programs=2))
    if target.startswith("sm_10"):
        return Config(Tiling(128, 64, 8, 2))
    if target.startswith("sm_12"):
        return Config(Tiling(64, 64, 8, 2))
    if target.startswith("sm_") and head_dim == 128:
        return Config(Tiling(64, 64, 4, 2))
    if target.startswith("sm_"):
        return Config(Tiling(128, 64, 8, 2))
    return Config(Tiling(128, 64, 4, 1))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["Q", "K", "tiles_stride", "chunks_stride"])
def list_keys_kernel(
    kept_ptr,  # [BH, Q, K] of bytes
    q_offsets_ptr,  # [BH, Q + 1]
    k_offsets_ptr,  # [BH, K + 1]
    tiles_ptr,  # [BH * Q, tiles_stride], first key of each full tile
    chunks_ptr,  # [BH * Q, chunks_stride], start and length of each chunk
    counts_ptr,  # [BH * Q, 2], full tiles and tiles of chunks
    work_ptr,  # [3, BH * Q], cost of a query tile, and how many of the main and the tail sort
    bias_ptr,  # [BH * Q, bias_stride], of the logits of virtual keys, over ln 2
    Q,
    K,
    tiles_stride,
    chunks_stride,
    bias_stride,
    COMPENSATE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TAIL_M: tl.constexpr,  # 0 for no tail
):
    """What one query cluster keeps, as full tiles and chunks, and what its queries cost."""
    TILE_CHUNKS: tl.constexpr = BLOCK_N // CHUNK
    head = tl.program_id(1).to(tl.int64)
    row = head * Q + tl.program_id(0)
    kept_ptr += row * K
    k_offsets_ptr += head * (K + 1)
    tiles_ptr += row * tiles_stride
    chunks_ptr += row * chunks_stride

    j = tl.arange(0, BLOCK_K)
    start = tl.load(k_offsets_ptr + j, mask=j < K, other=0)
    end = tl.load(k_offsets_ptr + j + 1, mask=j < K, other=0)
    # Spans are runs of kept clusters; an empty one has no keys to part its neighbours.
    before = tl.load(k_offsets_ptr + j - 1, mask=(j > 0) & (j < K), other=0)
    after = tl.load(k_offsets_ptr + j + 2, mask=j + 1 < K, other=0)
    is_kept = tl.load(kept_ptr + j, mask=j < K, other=0) != 0
    if COMPENSATE:
        # n equal keys weigh n·exp(score), so log n goes into the logit. The kept have none.
        log_size = tl.log2(tl.maximum(end - start, 1).to(tl.float32))
        bias = tl.where((end > start) & (is_kept == 0), log_size, float("-inf"))
        tl.store(bias_ptr + row * bias_stride + j, bias, mask=j < bias_stride)
    kept_before = tl.load(kept_ptr + j - 1, mask=(j > 0) & (j < K), other=0) != 0
    kept_after = tl.load(kept_ptr + j + 1, mask=j + 1 < K, other=0) != 0
    in_span = (is_kept | (start == end)) & (j < K)
    opens = in_span & ~((kept_before | (before == start)) & (j > 0))
    closes = in_span & ~((kept_after | (end == after)) & (j + 1 < K))
    span_start = tl.associative_scan(tl.where(opens, start, 0), 0, _larger)
    length = tl.where(closes, end - span_start, 0)

    num_tiles = length // BLOCK_N
    left = length - num_tiles * BLOCK_N
    num_chunks = (left + CHUNK - 1) // CHUNK
    first_tile = tl.cumsum(num_tiles, 0) - num_tiles
    first_chunk = tl.cumsum(num_chunks, 0) - num_chunks
    for t in range(0, tl.max(num_tiles, 0)):
        tl.store(tiles_ptr + first_tile + t, span_start + t * BLOCK_N, mask=t < num_tiles)
    chunk_start = span_start + num_tiles * BLOCK_N
    for t in tl.static_range(TILE_CHUNKS):
        chunk_length = tl.minimum(left - t * CHUNK, CHUNK)
        code = ((chunk_start + t * CHUNK) << LENGTH_BITS) | chunk_length
        tl.store(chunks_ptr + first_chunk + t, code, mask=t < num_chunks)

    # What is read past the end of a list: the rest of the last tile, and the one after it. Empty
    # chunks stand at a kept key, so that nothing else is ever read.
    all_tiles = tl.sum(num_tiles, 0)
    all_chunks = tl.sum(num_chunks, 0)
    tl.store(tiles_ptr + all_tiles, 0)
    padding = tl.arange(0, 2 * TILE_CHUNKS)
    nothing = tl.max(tl.where(length > 0, span_start, 0), 0) << LENGTH_BITS
    tl.store(chunks_ptr + all_chunks + padding, tl.zeros([2 * TILE_CHUNKS], tl.int32) + nothing)
    chunk_tiles = (all_chunks + TILE_CHUNKS - 1) // TILE_CHUNKS
    tl.store(counts_ptr + row * 2, all_tiles)
    tl.store(counts_ptr + row * 2 + 1, chunk_tiles)

    q_offsets_ptr += head * (Q + 1) + tl.program_id(0)
    num_queries = tl.load(q_offsets_ptr + 1) - tl.load(q_offsets_ptr)
    main = (num_queries + BLOCK_M - 1) // BLOCK_M
    tail = 0
    if TAIL_M > 0:
        rest = num_queries % BLOCK_M
        tail = ((rest > 0) & (rest <= TAIL_M)).to(tl.int32)
        main -= tail
    rows = tl.num_programs(1).to(tl.int64) * Q
    tl.store(work_ptr + row, all_tiles + chunk_tiles)
    tl.store(work_ptr + rows + row, main)
    tl.store(work_ptr + 2 * rows + row, tail)


@triton.jit(do_not_specialize=["Q"])
def list_items_kernel(
    order_ptr,  # [BH, Q], query clusters of each head, longest first
    work_ptr,  # [3, BH * Q]
    ends_ptr,  # [2, BH * Q], sums of the last two rows of `work` in that order
    q_offsets_ptr,  # [BH, Q + 1]
    main_ptr,  # [., 2], row of the query cluster and first query
    tail_ptr,  # [., 2]
    Q,
    BLOCK_M: tl.constexpr,
    TAIL_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The query tiles of one cluster, at their place in the work lists."""
    head = tl.program_id(1).to(tl.int64)
    place = head * Q + tl.program_id(0)
    rows = tl.num_programs(1).to(tl.int64) * Q
    cluster = tl.load(order_ptr + place).to(tl.int32)
    row = (head * Q + cluster).to(tl.int32)
    first = tl.load(q_offsets_ptr + head * (Q + 1) + cluster)
    num_main = tl.load(work_ptr + rows + row)
    main_ptr += 2 * (tl.load(ends_ptr + place) - num_main)
    for t0 in range(0, num_main, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        tl.store(main_ptr + 2 * t, tl.zeros([BLOCK_T], tl.int32) + row, mask=t < num_main)
        tl.store(main_ptr + 2 * t + 1, first + t * BLOCK_M, mask=t < num_main)
    if TAIL_M > 0:
        num_tail = tl.load(work_ptr + 2 * rows + row)
        if num_tail > 0:
            tail_ptr += 2 * (tl.load(ends_ptr + rows + place) - 1)
            tl.store(tail_ptr, row)
            tl.store(tail_ptr + 1, first + num_main * BLOCK_M)


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
    k_centroids_ptr,  # [BH, K, D]; unused without COMPENSATE
    v_centroids_ptr,  # [BH, K, D]; likewise
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
    PRECISION: tl.constexpr,
):
    """Attention of tiles of queries over what their cluster keeps, until the list is empty."""
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
        # Asked for here, the next ticket is there when this item ends.
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
            for c0 in range(0, K, BLOCK_C):
                c = c0 + tl.arange(0, BLOCK_C)
                bias = tl.load(bias_ptr + row * bias_stride + c)
                # Past the last centroid that one again, which the bias takes out.
                place = tl.minimum(c, K - 1)[:, None] * D + d[None, :]
                k = tl.load(k_centroids_ptr + head * K * D + place)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias[None, :]
                new_highest = tl.maximum(highest, tl.max(scores, 1))
                # Where nothing is kept and these are not skipped, nothing has been seen yet.
                new_highest = tl.where(new_highest == float("-inf"), 0.0, new_highest)
                v = tl.load(v_centroids_ptr + head * K * D + place)
                acc, total = _accumulate(scores, v, acc, total, highest, new_highest, PRECISION)
                highest = new_highest

        # A query that saw no key gets zeros.
        acc /= tl.where(total > 0, total, 1.0)[:, None]
        out_head = out_ptr + batch * stride_ob + (head - batch * H) * stride_oh
        out_place = query.to(tl.int64)[:, None] * stride_on + d[None, :]
        tl.store(out_head + out_place, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None])


@torch.library.custom_op("svg2::cluster_attention", mutates_args=())
def cluster_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    kept: Tensor,
    scale: float,
    k_centroids: Tensor | None,
    v_centroids: Tensor | None,
    q_perm: Tensor | None,
) -> Tensor:
    """As the reference; with `q_perm`, q and the result are in the order that it permutes."""
    with device_of(q):
        return attend(
            q, k, v, q_offsets, k_offsets, kept, scale, k_centroids, v_centroids, q_perm,
            device_config(q.device, q.shape[-1]),
        )  # fmt: skip


@cluster_attention.register_fake
def _(q, k, v, q_offsets, k_offsets, kept, scale, k_centroids, v_centroids, q_perm):
    return torch.empty_like(dense_rows(q))


def attend(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    scale: float,
    k_centroids: Float[Tensor, "B H K D"] | None,
    v_centroids: Float[Tensor, "B H K D"] | None,
    q_perm: Int[Tensor, "B H N"] | None,
    config: Config,
) -> Float[Tensor, "B H N D"]:
    """Cluster attention under a configuration of one's own."""
    batch, heads, num_queries, head_dim = q.shape
    num_q_clusters, num_k_clusters = kept.shape[2:]
    num_keys = k.shape[2]
    rows = batch * heads * num_q_clusters
    main, tail = config.main, config.tail
    if not scale > 0:
        raise ValueError(f"the Triton kernels need a positive scale, not {scale}")
    if num_keys >= MAX_KEYS:
        raise ValueError(f"the Triton kernels take fewer than {MAX_KEYS} keys, not {num_keys}")

    q = dense_rows(q)
    out = torch.empty_like(q)
    k, v, kept = k.contiguous(), v.contiguous(), kept.contiguous().view(torch.uint8)
    q_offsets, k_offsets = q_offsets.int().contiguous(), k_offsets.int().contiguous()
    q_perm = None if q_perm is None else q_perm.contiguous()
    compensate = k_centroids is not None and v_centroids is not None
    if compensate:
        k_centroids = k_centroids.to(q.dtype).contiguous()
        v_centroids = v_centroids.to(q.dtype).contiguous()

    # Bounds of the lists: their lengths are known to the device alone.
    tile_chunks = main.block_n // main.chunk
    spans = (num_k_clusters + 1) // 2
    tiles_stride = num_keys // main.block_n + 1
    chunks_stride = min(spans * tile_chunks, spans + num_keys // main.chunk) + 2 * tile_chunks
    ints = {"dtype": torch.int32, "device": q.device}
    tiles = torch.empty(rows, tiles_stride, **ints)
    chunks = torch.empty(rows, chunks_stride, **ints)
    counts = torch.empty(rows, 2, **ints)
    work = torch.empty(3, rows, **ints)
    bias, bias_stride = None, BIAS_UNIT * triton.cdiv(num_k_clusters, BIAS_UNIT)
    if compensate:
        bias = torch.empty(rows, bias_stride, dtype=torch.float32, device=q.device)
    tail_m = 0 if tail is None else tail.block_m
    clusters = (num_q_clusters, batch * heads)
    list_keys_kernel[clusters](
        kept, q_offsets, k_offsets, tiles, chunks, counts, work, bias,
        num_q_clusters, num_k_clusters, tiles_stride, chunks_stride, bias_stride,
        COMPENSATE=compensate, BLOCK_K=max(BIAS_UNIT, triton.next_power_of_2(num_k_clusters)),
        BLOCK_N=main.block_n, CHUNK=main.chunk,
        BLOCK_M=main.block_m, TAIL_M=tail_m,
    )  # fmt: skip

    per_head = work.view(3, batch * heads, num_q_clusters)
    order = per_head[0].sort(dim=-1, descending=True, stable=True).indices
    ends = per_head[1:].gather(-1, order.expand(2, -1, -1)).flatten(1).cumsum(1, dtype=torch.int32)
    bound = batch * heads * num_queries // main.block_m + rows
    main_items = torch.empty(bound, 2, **ints)
    tail_items = torch.empty(rows if tail else 0, 2, **ints)
    list_items_kernel[clusters](
        order, work, ends, q_offsets, main_items, tail_items, num_q_clusters,
        BLOCK_M=main.block_m, TAIL_M=tail_m, BLOCK_T=16, num_warps=1,
    )  # fmt: skip

    tickets = torch.zeros(2, **ints)
    launches = [(main, main_items), *([(tail, tail_items)] if tail else [])]
    for i, (tiling, items) in enumerate(launches):
        grid = min(_num_processors(q.device) * tiling.programs, len(items))
        attend_kernel[(grid,)](
            q, k, v, out, q_perm, k_centroids, v_centroids, bias, q_offsets,
            tiles, chunks, counts, items, ends[i, -1:], tickets[i : i + 1],
            *q.stride()[:3], *out.stride()[:3],
            heads, num_queries, num_keys, num_q_clusters, num_k_clusters,
            tiles_stride, chunks_stride, bias_stride, scale * math.log2(math.e),
            D=head_dim, BLOCK_M=tiling.block_m, BLOCK_N=tiling.block_n,
            LIST_N=main.block_n, BLOCK_C=tiling.block_c, CHUNK=tiling.chunk,
            PERMUTED=q_perm is not None, COMPENSATE=compensate, PRECISION="ieee",
            num_warps=tiling.num_warps, num_stages=tiling.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    return out


@cache
def device_config(device: torch.device, head_dim: int) -> Config:
    """The configuration for the chip behind a device."""
    if INTERPRETING:
        return Config(Tiling(64, 64, 4, 1), Tiling(32, 64, 4, 1))
    return config_for(chip_of(device), head_dim)


@cache
def _num_processors(device: torch.device) -> int:
    if INTERPRETING:
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count
