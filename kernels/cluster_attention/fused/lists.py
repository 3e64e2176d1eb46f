"""The lists that attend kernels read: kept keys per query cluster, and work items."""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.build import Build
from kernels.cluster_attention.fused.problem import Items, Lists, Problem
from kernels.cluster_attention.fused.tiling import BIAS_UNIT, Config
from kernels.cluster_attention.fused.tiling import LENGTH_BITS as BITS
from kernels.impl import MAX_K_CLUSTERS

LENGTH_BITS = tl.constexpr(BITS)
LOG2_E = tl.constexpr(math.log2(math.e))
MAX_KEYS = 1 << 24
"""Below this, a key's place times the largest head dimension fits an int32."""

# Sizes are never specialised: no new length, whatever it divides by, compiles anything anew.
# Strides are, for wide loads.


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit(
    do_not_specialize=[
        "Q", "K", "tiles_stride", "chunks_stride", "weights_stride_h", "weights_stride_q",
    ]
)  # fmt: skip
def list_keys_kernel(
    kept_ptr,  # [BH, Q, K] of bytes
    q_offsets_ptr,  # [BH, Q + 1]
    k_offsets_ptr,  # [BH, K + 1]
    tiles_ptr,  # [BH * Q, tiles_stride], first key of each full tile
    chunks_ptr,  # [BH * Q, chunks_stride], start and length of each chunk
    counts_ptr,  # [BH * Q, 2], full tiles and tiles of chunks
    work_ptr,  # [3, BH * Q], cost of a query tile, and how many of the main and the tail sort
    bias_ptr,  # [BH * Q, bias_stride], of the logits of virtual keys, over ln 2
    weights_ptr,  # [BH, Q, K], natural logarithms, any strides over BH and Q; or None
    Q,
    K,
    tiles_stride,
    chunks_stride,
    bias_stride,
    weights_stride_h,
    weights_stride_q,
    COMPENSATE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TAIL_M: tl.constexpr,  # 0 for no tail
):
    """The keys that one query cluster keeps, as full tiles and chunks, and its cost."""
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
        if weights_ptr is None:
            # n equal keys weigh n·exp(score), so log n goes into the logit.
            weight = tl.log2(tl.maximum(end - start, 1).to(tl.float32))
        else:
            weights_ptr += head * weights_stride_h + tl.program_id(0) * weights_stride_q
            weight = tl.load(weights_ptr + j, mask=j < K, other=0.0) * LOG2_E
        # The kept have no virtual key.
        bias = tl.where((end > start) & (is_kept == 0), weight, float("-inf"))
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
    """Write the query tiles of one cluster at their place in the work lists."""
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


def make_lists(problem: Problem, config: Config) -> Lists:
    """The lists of one call, cut for the tiles of `config`."""
    batch, heads, num_queries, _ = problem.q.shape
    num_q_clusters, num_k_clusters = problem.kept.shape[2:]
    num_keys = problem.k.shape[2]
    rows = batch * heads * num_q_clusters
    main = config.main

    # Bounds of the lists: their lengths are known to the device alone.
    tile_chunks = main.block_n // main.chunk
    spans = (num_k_clusters + 1) // 2
    tiles_stride = num_keys // main.block_n + 1
    chunks_stride = min(spans * tile_chunks, spans + num_keys // main.chunk) + 2 * tile_chunks
    ints = {"dtype": torch.int32, "device": problem.q.device}
    tiles = torch.empty(rows, tiles_stride, **ints)
    chunks = torch.empty(rows, chunks_stride, **ints)
    counts = torch.empty(rows, 2, **ints)
    work = torch.empty(3, rows, **ints)
    bias, bias_stride = None, BIAS_UNIT * triton.cdiv(num_k_clusters, BIAS_UNIT)
    if problem.compensates:
        bias = torch.empty(rows, bias_stride, dtype=torch.float32, device=problem.q.device)
    block_k = max(BIAS_UNIT, triton.next_power_of_2(num_k_clusters))
    weights = problem.log_weights
    list_keys_kernel[num_q_clusters, batch * heads](
        problem.kept.view(torch.uint8), problem.q_offsets, problem.k_offsets,
        tiles, chunks, counts, work, bias, weights,
        num_q_clusters, num_k_clusters, tiles_stride, chunks_stride, bias_stride,
        *((0, 0) if weights is None else weights.stride()[:2]),
        **_key_constants(config, block_k, problem.compensates), num_warps=_num_warps(block_k),
    )  # fmt: skip
    items = _list_items(work.view(3, batch * heads, -1), problem.q_offsets, num_queries, config)
    return Lists(tiles, chunks, counts, bias, bias_stride, items)


def _list_items(
    work: Tensor,  # [3, BH, Q], as `list_keys_kernel` writes it
    q_offsets: Tensor,
    num_queries: int,
    config: Config,
) -> tuple[Items, ...]:
    """The work list of each launch."""
    _, num_heads, num_q_clusters = work.shape
    rows = num_heads * num_q_clusters
    order = work[0].sort(dim=-1, descending=True, stable=True).indices
    ends = work[1:].gather(-1, order.expand(2, -1, -1)).flatten(1).cumsum(1, dtype=torch.int32)
    ints = {"dtype": torch.int32, "device": work.device}
    main = torch.empty(num_heads * num_queries // config.main.block_m + rows, 2, **ints)
    tail = torch.empty(rows if config.tail else 0, 2, **ints)
    list_items_kernel[num_q_clusters, num_heads](
        order, work, ends, q_offsets, main, tail, num_q_clusters,
        **_item_constants(config), num_warps=1,
    )  # fmt: skip
    tickets = torch.zeros(2, **ints)
    places = (main, tail)[: len(config.tilings)]
    return tuple(Items(x, ends[i, -1:], tickets[i : i + 1]) for i, x in enumerate(places))


def _num_warps(block_k: int) -> int:
    return 4 if block_k <= 1024 else 8


def _query_constants(config: Config) -> dict[str, int | bool | str]:
    return {"BLOCK_M": config.main.block_m, "TAIL_M": config.tail.block_m if config.tail else 0}


def _key_constants(config: Config, block_k: int, compensate: bool) -> dict[str, int | bool | str]:
    return {
        "COMPENSATE": compensate,
        "BLOCK_K": block_k,
        "BLOCK_N": config.main.block_n,
        "CHUNK": config.main.chunk,
        **_query_constants(config),
    }


def _item_constants(config: Config) -> dict[str, int | bool | str]:
    return {**_query_constants(config), "BLOCK_T": 16}


def builds(config: Config) -> Iterator[Build]:
    """Both list kernels as a configuration needs them, up to MAX_K_CLUSTERS."""
    tile = f"{config.main.block_m}×{config.main.block_n}"
    if config.tail:
        tile += f"+{config.tail.block_m}"
    for block_k in (512, 1024, MAX_K_CLUSTERS):
        for compensate, weighed in ((False, False), (True, False), (True, True)):
            absent = () if weighed else ("weights_ptr",)
            yield Build(
                f"list keys {tile} K{block_k}{'+comp' * compensate}{'+weights' * weighed}",
                list_keys_kernel,
                "bf16",
                _key_constants(config, block_k, compensate),
                absent if compensate else ("bias_ptr", *absent),
                _num_warps(block_k),
            )
    yield Build(
        f"list items {tile}", list_items_kernel, "bf16", _item_constants(config), num_warps=1
    )
