"""What the two kinds of warps of the Gluon attend kernel do: see `gluon`."""

# The types that Triton gives its language do not know what kernels do with it.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.cluster_attention.fused.tiling import LENGTH_BITS as BITS

LENGTH_BITS = gl.constexpr(BITS)
LENGTH_MASK = gl.constexpr((1 << BITS) - 1)
# Columns of 2 bytes that one swizzled row of 128 bytes holds. A wider tile is panels of as many.
PANEL = gl.constexpr(64)
NUM_CONSUMERS = gl.constexpr(2)

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
def _send_tile(desc, channel, count, start, STAGES: gl.constexpr):
    """Copy a whole tile into the ring once its place is free."""
    ring, full, empty = channel
    stage = count % STAGES
    mbarrier.wait(empty.index(stage), (count // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(stage), desc.block_type.nbytes)
    _copy(desc, [start, 0], full.index(stage), ring.index(stage))


@gluon.jit
def _send_chunks(
    desc, channel, count, chunks_ptr, first_key,
    STAGES: gl.constexpr, NUM_CHUNKS: gl.constexpr, CHUNK: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Put a tile together from boxes: CHUNK rows of one panel each."""
    NUM_PANELS: gl.constexpr = D // PANEL
    NUM_BOXES: gl.constexpr = STAGES * NUM_PANELS * NUM_CHUNKS
    ring, full, empty = channel
    boxes = _reinterpret(ring, ring.dtype, [NUM_BOXES, CHUNK, PANEL], ring.layout)
    stage = count % STAGES
    mbarrier.wait(empty.index(stage), (count // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(stage), desc.block_type.nbytes * NUM_CHUNKS * NUM_PANELS)
    for c in gl.static_range(NUM_CHUNKS):
        start = first_key + (gl.load(chunks_ptr + c) >> LENGTH_BITS)
        for panel in gl.static_range(NUM_PANELS):
            box = boxes.index((stage * NUM_PANELS + panel) * NUM_CHUNKS + c)
            _copy(desc, [start, panel * PANEL], full.index(stage), box)


@gluon.jit
def produce(
    descs, keys, values, lists, S, Q, K, tiles_stride, chunks_stride,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CHUNK: gl.constexpr,
    COMPENSATE: gl.constexpr, PAIRS: gl.constexpr,
):  # fmt: skip
    """Copy the keys and values of all items of this program, in the order of the consumers."""
    NUM_CHUNKS: gl.constexpr = BLOCK_N // CHUNK
    k_desc, v_desc, k_box, v_box, virtual_k, virtual_v = descs
    tiles_ptr, chunks_ptr, counts_ptr, items_ptr, num_items_ptr = lists
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
                _send_tile(virtual_k, keys, count, start, STAGES)
                _send_tile(virtual_v, values, count, start, STAGES)
                count += 1
        chunks = chunks_ptr + row * chunks_stride
        for _ in range(0, num_chunk_tiles):
            _send_chunks(k_box, keys, count, chunks, first_key, STAGES, NUM_CHUNKS, CHUNK, D)
            _send_chunks(v_box, values, count, chunks, first_key, STAGES, NUM_CHUNKS, CHUNK, D)
            chunks += NUM_CHUNKS
            count += 1
        tile = tiles_ptr + row * tiles_stride
        # What is read of the list is a step ahead, so that no copy waits for it.
        start = gl.load(tile)
        for t in range(0, num_tiles):
            this = first_key + start
            start = gl.load(tile + gl.minimum(t + 1, num_tiles - 1))
            _send_tile(k_desc, keys, count, this, STAGES)
            _send_tile(v_desc, values, count, this, STAGES)
            count += 1


@gluon.jit
def _chunk_bias(
    t, mask, layout: gl.constexpr, CHUNK: gl.constexpr, BLOCK_N: gl.constexpr
):  # fmt: skip
    """What is added to the logits of tile t over ln 2, a tile of chunks or a full one."""
    num_virtual, num_masked, chunks_ptr, _ = mask
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
    place = (t - num_virtual) * (BLOCK_N // CHUNK) + n // CHUNK
    is_chunk = (n >= 0) & (t >= num_virtual) & (t < num_masked)
    code = gl.load(chunks_ptr + place, mask=is_chunk, other=CHUNK)
    return gl.where(n % CHUNK < (code & LENGTH_MASK), 0.0, float("-inf"))


@gluon.jit
def _virtual_bias(t, mask, layout: gl.constexpr, BLOCK_N: gl.constexpr):
    """What is added to the logits of tile t over ln 2, a tile of virtual keys."""
    _, _, _, bias_ptr = mask
    return gl.load(bias_ptr + t * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout)))


@gluon.jit
def _add_values(p, shrink, acc, v, pv_layout: gl.constexpr):
    """Begin to add the values of a tile with weights p."""
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, pv_layout))[:, None]
    return warpgroup_mma(p, v, acc, is_async=True)


@gluon.jit
def _step(
    q_smem, keys, values, count,
    p, shrink, acc, total, highest, scale, t, mask,
    STAGES: gl.constexpr, BLOCK_N: gl.constexpr, qk_layout: gl.constexpr, pv_layout: gl.constexpr,
    CHUNK: gl.constexpr, KIND: gl.constexpr,  # virtual, chunks or full
):  # fmt: skip
    """Scores and softmax of tile `count` while the values of the one before are added."""
    BLOCK_M: gl.constexpr = q_smem.shape[0]
    k_ring, k_full, k_empty = keys
    v_ring, v_full, v_empty = values
    stage = count % STAGES
    before = (count - 1) % STAGES
    nothing = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, qk_layout)
    mbarrier.wait(k_full.index(stage), count // STAGES & 1)
    k = k_ring.index(stage).permute((1, 0))
    scores = warpgroup_mma(q_smem, k, nothing, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(before), (count - 1) // STAGES & 1)
    acc = _add_values(p, shrink, acc, v_ring.index(before), pv_layout)
    scores = warpgroup_mma_wait(num_outstanding=1, deps=[scores])
    mbarrier.arrive(k_empty.index(stage), count=1)
    if KIND != "full":
        if KIND == "virtual":
            bias = _virtual_bias(t, mask, qk_layout, BLOCK_N)
        else:
            bias = _chunk_bias(t, mask, qk_layout, CHUNK, BLOCK_N)
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
    # After the wait, for the product reads its weights from the same registers.
    p = gl.convert_layout(weights.to(p.dtype), p.type.layout)
    return p, shrink, acc, total, new_highest


@gluon.jit
def _place(
    ptr, perm_ptr, q_offsets_ptr, item_ptr, N, H, Q, strides,
    PART: gl.constexpr, BLOCK_M: gl.constexpr, D: gl.constexpr, layout: gl.constexpr,
    PERMUTED: gl.constexpr,
):  # fmt: skip
    """Pointers to the rows of an item in q or in the result, and which are there."""
    row = gl.load(item_ptr)
    head = row // Q
    end = gl.load(q_offsets_ptr + row + head + 1)
    first = gl.load(item_ptr + 1) + PART * BLOCK_M
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
def consume(
    keys, values, q_smem, pointers, sizes, scale,
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
    k_ring, k_full, k_empty = keys
    v_ring, v_full, v_empty = values
    count = 0
    for item in range(gl.program_id(0), gl.load(num_items_ptr), gl.num_programs(0)):
        row = gl.load(items_ptr + 2 * item)
        num_virtual, num_chunk_tiles, num_tiles = _count_tiles(
            row, counts_ptr, K, COMPENSATE, BLOCK_N
        )
        num_masked = num_virtual + num_chunk_tiles
        chunks = chunks_ptr + row * chunks_stride
        if COMPENSATE:
            bias_row = bias_ptr + row * bias_stride
        else:
            bias_row = chunks  # not read
        mask = (num_virtual, num_masked, chunks, bias_row)

        place, inside = _place(
            q_ptr, perm_ptr, q_offsets_ptr, items_ptr + 2 * item, N, H, Q, q_strides,
            PART, BLOCK_M, D, q_layout, PERMUTED,
        )  # fmt: skip
        q_smem.store(gl.load(place, mask=inside, other=0.0))
        fence_async_shared()

        # The first tile has no values before it.
        mbarrier.wait(k_full.index(count % STAGES), count // STAGES & 1)
        k = k_ring.index(count % STAGES).permute((1, 0))
        nothing = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, qk_layout)
        scores = warpgroup_mma(q_smem, k, nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=0, deps=[scores])
        mbarrier.arrive(k_empty.index(count % STAGES), count=1)
        bias = _chunk_bias(0, mask, qk_layout, CHUNK, BLOCK_N)
        if COMPENSATE:
            bias = _virtual_bias(0, mask, qk_layout, BLOCK_N)
        scores = scores * scale + bias[None, :]
        highest = gl.max(scores, 1)
        base = gl.where(highest == float("-inf"), 0.0, highest)
        weights = gl.exp2(scores - base[:, None])
        total = gl.sum(weights, 1)
        shrink = gl.exp2(base - base)
        p = gl.convert_layout(weights.to(q_smem.dtype), p_layout)
        acc = gl.zeros([BLOCK_M, D], gl.float32, pv_layout)
        count += 1

        for t in range(1, num_virtual):
            p, shrink, acc, total, highest = _step(
                q_smem, keys, values, count,
                p, shrink, acc, total, highest, scale, t, mask,
                STAGES, BLOCK_N, qk_layout, pv_layout, CHUNK, "virtual",
            )  # fmt: skip
            count += 1
        for t in range(gl.maximum(num_virtual, 1), num_masked):
            p, shrink, acc, total, highest = _step(
                q_smem, keys, values, count,
                p, shrink, acc, total, highest, scale, t, mask,
                STAGES, BLOCK_N, qk_layout, pv_layout, CHUNK, "chunks",
            )  # fmt: skip
            count += 1
        for _ in range(gl.maximum(num_masked, 1), num_masked + num_tiles):
            p, shrink, acc, total, highest = _step(
                q_smem, keys, values, count,
                p, shrink, acc, total, highest, scale, 0, mask,
                STAGES, BLOCK_N, qk_layout, pv_layout, CHUNK, "full",
            )  # fmt: skip
            count += 1

        before = (count - 1) % STAGES
        mbarrier.wait(v_full.index(before), (count - 1) // STAGES & 1)
        acc = _add_values(p, shrink, acc, v_ring.index(before), pv_layout)
        acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
        mbarrier.arrive(v_empty.index(before), count=1)
        # A query that saw no key gets zeros.
        total = gl.where(total > 0, total, 1.0)
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, pv_layout))[:, None]
        # Looked up again: nothing of it takes registers while the tiles go by.
        place, inside = _place(
            out_ptr, perm_ptr, q_offsets_ptr, items_ptr + 2 * item, N, H, Q, out_strides,
            PART, BLOCK_M, D, pv_layout, PERMUTED,
        )  # fmt: skip
        gl.store(place, acc.to(out_ptr.dtype.element_ty), mask=inside)


@gluon.jit
def make_channel(
    dtype: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """A ring of tiles, and for each of its places whether it is full and whether it is free."""
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=NUM_CONSUMERS)
    return ring, full, empty
