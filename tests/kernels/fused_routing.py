"""Fused routing against its plain definition in fp64; run by `test_fused.py`."""

import pytest
import torch

import kernels
from kernels.routing import fused
from tests.kernels.cases import AT_NIGHT, LENGTHS, grid, make_case
from tests.kernels.routing_cases import arguments, check, check_exact_at_the_centroid

FP32, FP16 = torch.float32, torch.float16


@pytest.mark.parametrize(
    ("n", "dim", "dtype", "per_pair", "num_q"),
    grid(LENGTHS, (64, 128), (FP32, FP16), (False, True), (1, 17), at_night=AT_NIGHT),
)
def test_any_clusters(n, dim, dtype, per_pair, num_q, poisoned_memory):
    heads = 1 if n == 1000 else 2
    check(make_case(n=n, dim=dim, heads=heads, num_q=num_q).to(dtype), per_pair, "fused")


@pytest.mark.parametrize("per_pair", [False, True])
def test_batch_and_more_keys_than_queries(per_pair):
    check(make_case(n=50, n_keys=170, dim=64, batch=2, heads=3), per_pair, "fused")


@pytest.mark.parametrize("per_pair", [False, True])
def test_one_giant_cluster_among_empty_ones(per_pair, poisoned_memory):
    check(make_case(n=100, dim=64, labels="giant"), per_pair, "fused")


@pytest.mark.parametrize("per_pair", [False, True])
def test_one_token_per_cluster(per_pair):
    check(make_case(n=19, dim=64, num_q=19, num_k=19, labels="own"), per_pair, "fused")


@pytest.mark.parametrize("per_pair", [False, True])
def test_large_logits(per_pair):
    case = make_case(n=100, dim=64)
    case = type(case)(30 * case.q, 30 * case.k, case.v, case.q_labels, case.k_labels, case.kept)
    check(case, per_pair, "fused")


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_stand_ins_are_exact_at_the_centroid(dtype):
    check_exact_at_the_centroid(make_case(n=257, dim=64, num_q=3), "fused", dtype)


def flat(routes):
    stand_ins = routes.stand_ins
    return (
        *(routes.mass, routes.error),
        *(stand_ins.keys, stand_ins.values, stand_ins.log_weights),
    )


@pytest.mark.parametrize("per_pair", [False, True])
def test_room_behind_the_keys_and_other_layouts(per_pair):
    centroids, k, v, offsets = arguments(make_case(n=100, dim=64, batch=2, num_q=3))
    expected = flat(kernels.route(centroids, k, v, offsets, per_pair=per_pair, impl="fused"))
    with_room = torch.nn.functional.pad(k, (0, 0, 0, 7), value=float("nan"))[:, :, :100]
    strided = v.transpose(1, 2).contiguous().transpose(1, 2)
    actual = kernels.route(centroids, with_room, strided, offsets, per_pair=per_pair, impl="fused")
    for x, y in zip(flat(actual), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("per_pair", [False, True])
def test_some_heads_by_themselves(per_pair):
    inputs = arguments(make_case(n=100, dim=64, heads=3, num_q=3))
    expected = flat(kernels.route(*inputs, per_pair=per_pair, impl="fused"))
    some = kernels.route(*(x[:, 1:] for x in inputs), per_pair=per_pair, impl="fused")
    for x, y in zip(flat(some), expected, strict=True):
        assert torch.equal(x, y[:, 1:])


def test_masses_and_errors_do_not_depend_on_the_stand_ins():
    inputs = arguments(make_case(n=100, dim=64))
    pairs, means = (kernels.route(*inputs, per_pair=p, impl="fused") for p in (True, False))
    assert torch.equal(pairs.mass, means.mass)
    assert torch.equal(pairs.error, means.error)


@pytest.mark.parametrize("per_pair", [False, True])
def test_other_tilings(per_pair):
    inputs = arguments(make_case(n=200, dim=64, heads=1, num_q=20))
    expected = flat(kernels.route(*inputs, per_pair=per_pair, impl="fused"))
    for sizes in ((32, 64, 4, 1, 1), (64, 32, 8, 2, 16)):
        actual = fused.route_with(*inputs, 64**-0.5, per_pair, fused.Tiling(*sizes))
        for x, y in zip(actual, expected, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("per_pair", [False, True])
def test_the_op_keeps_its_promises_to_the_compiler(per_pair):
    inputs = arguments(make_case(n=40, dim=64, heads=1))
    torch.library.opcheck(fused.route, (*inputs, 0.125, per_pair))


def test_compiled_whole():
    def layer(q_centroids, k, v, offsets):
        routes = kernels.route(2 * q_centroids, k, v, offsets, impl="fused")
        return routes.error * 2, routes.stand_ins.keys

    inputs = arguments(make_case(n=40, dim=64, heads=1))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(*inputs), layer(*inputs), strict=True):
        assert torch.equal(actual, expected)
