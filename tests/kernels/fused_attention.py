"""Fused cluster attention against dense attention in fp64; run by `test_fused.py`."""

import pytest
import torch

import kernels
from kernels.cluster_attention import fused
from kernels.cluster_attention.fused import lists
from tests.kernels.cases import (
    AT_NIGHT,
    LENGTHS,
    assert_as_exact_as,
    compensated_attention,
    grid,
    make_case,
    masked_attention,
    run,
    stand_in_attention,
)

FP32, FP16 = torch.float32, torch.float16


def check(case, *, compensate=False):
    dense = compensated_attention if compensate else masked_attention
    actual = run(case, compensate=compensate, impl="fused")
    assert actual.dtype is case.q.dtype
    assert_as_exact_as(actual, dense(case, case.q.dtype), dense(case))


def with_first(case, q_cluster):
    """That query cluster keeps nothing."""
    kept = case.kept.clone()
    kept[:, :, q_cluster] = False
    return case.with_kept(kept)


@pytest.mark.parametrize(
    ("n", "dim", "dtype", "compensate"),
    grid(LENGTHS, (64, 128), (FP32, FP16), (False, True), at_night=AT_NIGHT),
)
def test_any_map(n, dim, dtype, compensate, poisoned_memory):
    heads = 1 if n == 1000 else 2
    check(make_case(n=n, dim=dim, heads=heads).to(dtype), compensate=compensate)


def test_batch_and_more_keys_than_queries():
    check(make_case(n=50, n_keys=170, dim=64, batch=2, heads=3, num_q=3), compensate=True)


@pytest.mark.parametrize("compensate", [False, True])
def test_everything_kept(compensate):
    case = make_case(n=257, dim=64, heads=1)
    check(case.with_kept(torch.ones_like(case.kept)), compensate=compensate)


@pytest.mark.parametrize("compensate", [False, True])
def test_one_kept_of_many_of_which_some_are_empty(compensate):
    case = make_case(n=64, dim=64, num_k=40, kept_share=0.0, heads=1)
    assert (kernels.sort_by_label(case.k_labels, 40).sizes == 0).any()
    assert (case.kept.sum(-1) == 1).all()
    check(case, compensate=compensate)


@pytest.mark.parametrize("compensate", [False, True])
def test_one_giant_cluster_among_empty_ones(compensate):
    check(make_case(n=257, dim=64, labels="giant", kept_share=0.0), compensate=compensate)


def test_more_clusters_than_published_settings_have():
    check(make_case(n=60, dim=64, heads=1, num_q=2, num_k=1100), compensate=True)


def test_more_clusters_than_the_lists_take_are_refused():
    case = make_case(n=20, dim=64, heads=1, num_q=2, num_k=2049)
    with pytest.raises(ValueError, match="at most 2048 key clusters, not 2049: take fewer"):
        run(case, impl="fused")
    check(make_case(n=20, dim=64, heads=1, num_q=1, num_k=2048))


def test_one_token_per_cluster():
    case = make_case(n=19, dim=64, heads=1, num_q=19, num_k=19, labels="own")
    check(case, compensate=True)


def test_a_query_cluster_that_keeps_nothing_gets_zeros():
    case = with_first(make_case(n=64, dim=64, num_q=3), 1)
    out = run(case, impl="fused")
    assert (out[case.q_labels == 1] == 0).all()
    assert torch.isfinite(out).all()


def test_with_compensation_it_attends_to_the_centroids_alone():
    check(with_first(make_case(n=64, dim=64, num_q=3), 1), compensate=True)


def test_a_whole_tile_of_virtual_keys_may_be_empty():
    # The first 64 clusters are empty, so that the first tile of virtual keys has no weight yet.
    case = with_first(make_case(n=40, dim=64, num_q=2, num_k=70, heads=1), 0)
    case = type(case)(
        case.q, case.k, case.v, case.q_labels, 64 + case.k_labels % 6, torch.zeros_like(case.kept)
    )
    check(case, compensate=True)


def make_stand_ins(case, by_pair):
    """Random ones; what is in `by_pair` differs between the query clusters."""
    generator = torch.Generator().manual_seed(1)
    batch, heads, num_q, num_k = case.kept.shape
    dim = case.q.shape[-1]

    def draw(name, *last):
        pair = (num_q, num_k) if name in by_pair else (num_k,)
        return torch.randn(batch, heads, *pair, *last, generator=generator).to(case.q.dtype)

    weights = 2 * draw("weights") if "weights" in by_pair else None
    if weights is not None:
        weights[..., ::3] = -torch.inf
    return kernels.StandIns(draw("keys", dim), draw("values", dim), weights)


@pytest.mark.parametrize(
    ("n", "dim", "dtype", "by_pair"),
    grid(
        (1, 63, 257),
        (64, 128),
        (FP32, FP16),
        ("weights", "keys values", "keys values weights", "values weights", ""),
    ),
)
def test_stand_ins(n, dim, dtype, by_pair, poisoned_memory):
    batch = 1 if n == 257 else 2
    case = make_case(n=n, dim=dim, batch=batch, num_q=3, num_k=70).to(dtype)
    stand_ins = make_stand_ins(case, by_pair)
    actual = run(case, stand_ins=stand_ins, impl="fused")
    assert_as_exact_as(
        actual, stand_in_attention(case, stand_ins, dtype), stand_in_attention(case, stand_ins)
    )


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_weights_shared_by_the_query_clusters(impl):
    case = make_case(n=100, dim=64, num_q=3)
    keys, values = torch.randn(2, 1, 2, 11, 64)
    sizes = kernels.sort_by_label(case.k_labels, 11).sizes
    plain = run(case, stand_ins=kernels.StandIns(keys, values), impl=impl)
    shared = run(case, stand_ins=kernels.StandIns(keys, values, sizes.float().log()), impl=impl)
    torch.testing.assert_close(shared, plain)


@pytest.mark.parametrize("compensate", [False, True])
def test_large_logits(compensate):
    case = make_case(n=100, dim=64)
    check(
        type(case)(30 * case.q, 30 * case.k, case.v, case.q_labels, case.k_labels, case.kept),
        compensate=compensate,
    )


def test_keys_that_are_not_kept_are_not_read():
    case = make_case(n=100, dim=64, heads=1, num_q=1)
    kept = case.kept.clone()
    kept[...] = torch.arange(11) % 2 == 0
    case = case.with_kept(kept)
    expected = run(case, impl="fused")
    skipped = (case.k_labels % 2 == 1)[..., None]
    k, v = (x.masked_fill(skipped, float("nan")) for x in (case.k, case.v))
    poisoned = type(case)(case.q, k, v, case.q_labels, case.k_labels, case.kept)
    assert torch.equal(run(poisoned, impl="fused"), expected)


def arguments(case):
    num_q, num_k = case.kept.shape[-2:]
    q_order = kernels.sort_by_label(case.q_labels, num_q)
    k_order = kernels.sort_by_label(case.k_labels, num_k)
    k, v = kernels.permute(case.k, k_order), kernels.permute(case.v, k_order)
    return q_order, k, v, q_order.offsets, k_order.offsets, case.kept


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_queries_in_their_original_order(impl):
    case = make_case(n=100, dim=64, batch=2, num_q=3)
    q_order, *rest = arguments(case)
    # [B, N, H, D] seen as [B, H, N, D]: the layout in which models hand q over.
    q = case.q.transpose(1, 2).contiguous().transpose(1, 2)
    out = kernels.cluster_attention(q, *rest, q_perm=q_order.perm, impl=impl)
    assert torch.equal(out, run(case, impl=impl))
    if impl == "fused":
        assert out.stride() == q.stride()


def test_other_configurations_and_twice_the_same():
    case = make_case(n=200, dim=64, heads=1)
    q_order, *rest = arguments(case)
    q = kernels.permute(case.q, q_order)
    expected = kernels.cluster_attention(q, *rest, impl="fused")
    assert torch.equal(expected, kernels.cluster_attention(q, *rest, impl="fused"))
    for config in (
        fused.Config(fused.Tiling(32, 32, 4, 1, chunk=32)),
        fused.Config(fused.Tiling(128, 16, 4, 1, chunk=8), fused.Tiling(64, 16, 4, 1, chunk=8)),
        fused.Config(fused.Tiling(64, 64, 4, 1), fused.Tiling(32, 16, 4, 1)),
    ):
        out = fused.attend_with(q, *rest, 64**-0.5, None, None, config)
        torch.testing.assert_close(out, expected)


VARIANTS = sorted(fused.device_variants(torch.device("cpu"), 64))


@pytest.fixture(scope="module")
def whole_and_small():
    """Cases and what the portable variant makes of them."""
    whole = make_case(n=257, dim=64, heads=1)
    cases = (
        whole.with_kept(torch.ones_like(whole.kept)),
        make_case(n=50, n_keys=170, dim=64, batch=2, heads=2, num_q=3),
    )
    return [(case, run(case, impl="fused", variant="portable")) for case in cases]


@pytest.mark.parametrize(
    ("variant", "n", "dim", "dtype", "compensate"),
    grid(VARIANTS, (17, 257), (64, 128), (FP32, FP16), (False, True)),
)
def test_each_variant(variant, n, dim, dtype, compensate, poisoned_memory):
    case = make_case(n=n, dim=dim).to(dtype)
    dense = compensated_attention if compensate else masked_attention
    actual = run(case, compensate=compensate, impl="fused", variant=variant)
    assert_as_exact_as(actual, dense(case, dtype), dense(case))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_in_the_corners(variant, whole_and_small):
    empty = with_first(make_case(n=64, dim=64, num_q=3), 1)
    out = run(empty, impl="fused", variant=variant)
    assert (out[empty.q_labels == 1] == 0).all()
    for case, portable in whole_and_small:
        torch.testing.assert_close(run(case, impl="fused", variant=variant), portable)


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_negative_logits_after_a_tile_of_virtual_keys_without_weight(variant):
    # Clusters 0 to 63 are empty, so that a first tile of virtual keys has no weight; the logits
    # of the others are about -800, whose weights vanish unless the highest of them is known.
    case = make_case(n=40, dim=64, num_q=2, num_k=70, heads=1)
    case = type(case)(
        torch.ones_like(case.q), case.k - 100, case.v,
        case.q_labels, 64 + case.k_labels % 6, torch.zeros_like(case.kept),
    )  # fmt: skip
    actual = run(case, compensate=True, impl="fused", variant=variant)
    assert_as_exact_as(actual, compensated_attention(case, FP32), compensated_attention(case))


def test_lists_name_every_kept_key_once():
    """The lists of one head, unpacked, against the map; adjacent clusters share their tiles."""
    generator = torch.Generator().manual_seed(0)
    num_q, num_k, n, block, chunk = 5, 30, 400, 32, 8
    labels = torch.randint(num_k, (1, 1, n), generator=generator).int()
    labels[labels == 7] = 8  # an empty cluster
    offsets = kernels.sort_by_label(labels, num_k).offsets[0]
    kept = torch.rand(1, num_q, num_k, generator=generator) < torch.linspace(0, 1, num_q)[:, None]
    kept[0, 2] = torch.arange(num_k) < 20  # one span
    stride = n // block + 1, num_k * 4 + 8
    tiles, chunks = (torch.full((num_q, s), -1, dtype=torch.int32) for s in stride)
    counts = torch.empty(num_q, 2, dtype=torch.int32)
    work = torch.empty(3, num_q, dtype=torch.int32)
    q_offsets = torch.tensor([[0, 0, 1, 64, 200, 300]], dtype=torch.int32)
    lists.list_keys_kernel[(num_q, 1)](
        kept.view(torch.uint8), q_offsets, offsets, tiles, chunks, counts, work, None, None,
        num_q, num_k, *stride, 0, 0, 0,
        COMPENSATE=False, BLOCK_K=32, BLOCK_N=block, CHUNK=chunk, BLOCK_M=64, TAIL_M=16,
    )  # fmt: skip
    for row in range(num_q):
        num_tiles, num_chunk_tiles = counts[row].tolist()
        found = [k for start in tiles[row, :num_tiles].tolist() for k in range(start, start + 32)]
        for code in chunks[row, : num_chunk_tiles * block // chunk].tolist():
            found += range(code >> 6, (code >> 6) + (code & 63))
        sizes = offsets[0].diff()
        exact = kept[0, row].repeat_interleave(sizes.long()).nonzero()[:, 0].tolist()
        assert sorted(found) == exact
    span = int(offsets[0, 20])
    assert counts[2].tolist() == [span // block, -(-(span % block) // block)]
    # 0, 1, 63, 136 and 100 queries: a tail takes at most 16, whole tiles 64.
    assert work[1].tolist() == [0, 0, 1, 2, 2]
    assert work[2].tolist() == [0, 1, 0, 1, 0]
    assert work[0].tolist() == counts.sum(-1).tolist()


def test_the_op_keeps_its_promises_to_the_compiler():
    case = make_case(n=40, dim=64, heads=1)
    q_order, *rest = arguments(case)
    q = kernels.permute(case.q, q_order)
    torch.library.opcheck(
        fused.cluster_attention, (case.q, *rest, 0.125, None, None, None, q_order.perm)
    )
    shape = (*case.kept.shape, case.q.shape[-1])
    stand_ins = (torch.randn(shape), torch.randn(shape), torch.randn(shape[:-1]))
    torch.library.opcheck(fused.cluster_attention, (q, *rest, 0.125, *stand_ins, None))


def test_compiled_whole():
    def layer(q, k, v, q_offsets, k_offsets, kept, weight):
        out = kernels.cluster_attention(q @ weight, k, v, q_offsets, k_offsets, kept, impl="fused")
        return out @ weight

    case = make_case(n=40, dim=64, heads=1)
    q_order, *rest = arguments(case)
    inputs = (kernels.permute(case.q, q_order), *rest, torch.eye(64))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), layer(*inputs))
