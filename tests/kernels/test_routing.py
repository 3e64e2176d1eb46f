"""Routing: masses, errors and stand-ins against plain fp64 arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from tests.kernels.cases import cluster_means, grid, make_case
from tests.kernels.routing_cases import check, check_exact_at_the_centroid


def _problem(n=90, num_q=5, num_k=8, dim=16, batch=1, heads=2, sharpness=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = sharpness * torch.randn(batch, heads, num_q, dim, generator=generator)
    k, v = torch.randn(2, batch, heads, n, dim, generator=generator)
    # Squares leave some clusters empty.
    uniform = torch.rand(batch, heads, n, generator=generator)
    labels = (uniform.square() * num_k).int().clamp(max=num_k - 1)
    return q, k, v, labels


def _route(q, k, v, labels, num_k, **options):
    order = kernels.sort_by_label(labels, num_k)
    k_sorted, v_sorted = (kernels.permute(x, order) for x in (k, v))
    return kernels.route(q, k_sorted, v_sorted, order.offsets, **options)


def _plain(q, k, v, labels, num_k):
    """Mass, error, and what was seen of each cluster: its sum of weights, and means."""
    q, k, v = q.double(), k.double(), v.double()
    members = torch.nn.functional.one_hot(labels.long(), num_k).double()  # [B, H, N, K]
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    weights = logits.exp()
    seen = weights @ members
    values, keys = (
        torch.einsum("bhqn,bhnk,bhnd->bhqkd", weights, members, x) / seen.unsqueeze(-1)
        for x in (v, k)
    )
    mass = seen / seen.sum(-1, keepdim=True)
    error = (values - cluster_means(v, labels, num_k).unsqueeze(2)).norm(dim=-1) * mass
    return mass, error.nan_to_num(0), seen, keys.nan_to_num(0), values.nan_to_num(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("per_pair", [True, False])
def test_routes_are_what_the_query_centroids_see(dtype, per_pair):
    q, k, v, labels = _problem()
    k, v = k.to(dtype), v.to(dtype)
    routes = _route(q, k, v, labels, 8, per_pair=per_pair)
    mass, error, _, keys, values = _plain(q, k, v, labels, 8)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(routes.mass.double(), mass, **close)
    torch.testing.assert_close(routes.error.double(), error, **close)
    if per_pair:
        torch.testing.assert_close(routes.stand_ins.keys.double(), keys, **close)
        torch.testing.assert_close(routes.stand_ins.values.double(), values, **close)
    else:
        torch.testing.assert_close(
            routes.stand_ins.keys.double(), cluster_means(k.double(), labels, 8), **close
        )


def test_a_stand_in_of_a_pair_weighs_at_its_centroid_what_its_keys_weigh():
    q, k, v, labels = _problem()
    stand_ins = _route(q, k, v, labels, 8).stand_ins
    _, _, seen, keys, _ = _plain(q, k, v, labels, 8)
    logits = (keys @ q.double().unsqueeze(-1)).squeeze(-1) / math.sqrt(q.shape[-1])
    weight = (logits + stand_ins.log_weights.double()).exp()
    torch.testing.assert_close(weight, seen, rtol=1e-4, atol=1e-6)


def test_weights_of_plain_means_are_bounded():
    q, k, v, labels = _problem(sharpness=30.0)
    log_weights = _route(q, k, v, labels, 8, per_pair=False).stand_ins.log_weights
    sizes = torch.nn.functional.one_hot(labels.long(), 8).sum(-2).unsqueeze(2)
    factor = (log_weights - sizes.log())[sizes.expand_as(log_weights) > 0]
    assert factor.min() >= -1 - 1e-6
    assert factor.max() <= 3 + 1e-6


def test_large_logits_stay_finite():
    q, k, v, labels = _problem(sharpness=300.0)
    for per_pair in (True, False):
        routes = _route(q, k, v, labels, 8, per_pair=per_pair)
        for x in (routes.mass, routes.error, routes.stand_ins.keys, routes.stand_ins.values):
            assert torch.isfinite(x).all()
        assert not routes.stand_ins.log_weights.isnan().any()


@settings(max_examples=25)
@given(n=st.integers(2, 80), num_q=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_law_equal_queries_get_their_dense_output_whatever_is_skipped(n, num_q, seed):
    generator = torch.Generator().manual_seed(seed)
    num_k = min(6, n)
    centres, k, v, labels = _problem(n=n, num_q=num_q, num_k=num_k, heads=1, seed=seed)
    q_labels = torch.randint(num_q, (1, 1, n), generator=generator)
    q = centres.gather(2, q_labels.unsqueeze(-1).expand(-1, -1, -1, centres.shape[-1]))
    q_order, k_order = kernels.sort_by_label(q_labels, num_q), kernels.sort_by_label(labels, num_k)
    k_sorted, v_sorted = (kernels.permute(x, k_order) for x in (k, v))
    stand_ins = kernels.route(centres, k_sorted, v_sorted, k_order.offsets).stand_ins
    kept = torch.rand(1, 1, num_q, num_k, generator=generator) < 0.3
    out = kernels.cluster_attention(
        *(q, k_sorted, v_sorted, q_order.offsets, k_order.offsets, kept),
        stand_ins=stand_ins,
        q_perm=q_order.perm,
    )
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), dense, rtol=0, atol=1e-5)


def test_nothing_changes_with_the_number_of_threads():
    q, k, v, labels = _problem(heads=3)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(_route(q, k, v, labels, 8))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.mass, found[0].mass)
        assert torch.equal(other.stand_ins.values, found[0].stand_ins.values)


LENGTHS = (1, 17, 63, 64, 257, 1000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("n", "dtype", "per_pair", "labels"),
    grid(LENGTHS, DTYPES, (False, True), ("ragged", "giant")),
)
def test_any_clusters_are_as_exact_as_plain_arithmetic(n, dtype, per_pair, labels):
    check(make_case(n=n, batch=2, labels=labels).to(dtype), per_pair)


@pytest.mark.parametrize("per_pair", [False, True])
def test_one_token_per_cluster(per_pair):
    check(make_case(n=37, num_q=37, num_k=37, labels="own"), per_pair)


@pytest.mark.parametrize("per_pair", [False, True])
def test_large_logits_are_as_exact(per_pair):
    case = make_case(n=257)
    case = type(case)(30 * case.q, 30 * case.k, case.v, case.q_labels, case.k_labels, case.kept)
    check(case, per_pair, least_mass=1e-30)


def test_stand_ins_are_exact_at_the_centroid():
    check_exact_at_the_centroid(make_case(n=257), "reference", torch.float32)
