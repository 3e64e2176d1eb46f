"""Top-p selection: its laws, and a slow float64 selection to compare it with."""

import itertools
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svg2.method.selection import COMPENSATED_METHOD, METHODS, PAPER_METHOD, ROUTED_METHOD
from svg2.method.selection.masses import cluster_mass
from svg2.method.selection.top_p import keep_top_p, min_keep_count

budgets = st.floats(0.01, 1.0)
ratios = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@st.composite
def masses(draw):
    """Mass of K key clusters for Q query clusters, from flat to peaked, some clusters empty."""
    num_q, num_k = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharpness = draw(st.sampled_from([0.0, 0.3, 3.0, 30.0]))
    sizes = torch.randint(0, 9, (1, 2, num_k), generator=generator, dtype=torch.int32)
    sizes[..., draw(st.integers(0, num_k - 1))] = 3
    logits = torch.randn(1, 2, num_q, num_k, generator=generator) * sharpness
    P = torch.softmax(logits + sizes.float().log().unsqueeze(-2), -1)
    return P, sizes


def select_slowly(P, sizes, top_p, min_keep_ratio):
    """The definition of top-p selection, applied one row at a time."""
    kept = torch.zeros_like(P, dtype=torch.bool)
    num_min = max(1, math.ceil(min_keep_ratio * P.shape[-1]))
    for b, h, q in itertools.product(*map(range, P.shape[:3])):
        row, filled = P[b, h, q].tolist(), (sizes[b, h] > 0).tolist()
        order = sorted(range(len(row)), key=lambda k: (not filled[k], -row[k], k))
        before = 0.0
        for rank, k in enumerate(order):
            wanted = before < top_p or rank < num_min or top_p == 1.0
            kept[b, h, q, k] = wanted and filled[k]
            before += row[k]
    return kept


@given(masses(), budgets, ratios)
def test_follows_its_definition(mass, top_p, ratio):
    P, sizes = mass
    kept = keep_top_p(P, sizes, top_p, ratio)
    slow = select_slowly(P.double(), sizes, top_p, ratio)
    # Rounding may put the fp32 and the fp64 sum on different sides of the budget.
    for differing in torch.nonzero(kept != slow).tolist():
        b, h, q, _ = differing
        sums = P[b, h, q].double().sort(descending=True).values.cumsum(0)
        assert (sums - top_p).abs().min() < 1e-5


@given(masses(), budgets, budgets, ratios)
def test_a_larger_budget_keeps_all_that_a_smaller_one_does(mass, one, other, ratio):
    low, high = sorted((one, other))
    less, more = (keep_top_p(*mass, top_p, ratio) for top_p in (low, high))
    assert not (less & ~more).any()


@given(masses(), budgets, ratios)
def test_laws(mass, top_p, ratio):
    P, sizes = mass
    kept = keep_top_p(P, sizes, top_p, ratio)
    filled = (sizes > 0).unsqueeze(-2).expand_as(kept)
    assert kept.any(-1).all(), "every query cluster keeps one"
    assert not (kept & ~filled).any(), "an empty cluster is never kept"
    assert kept.gather(-1, P.argmax(-1, keepdim=True)).all(), "the heaviest is kept"
    at_least = filled.sum(-1).clamp(max=min_keep_count(ratio, P.shape[-1]))
    assert (kept.sum(-1) >= at_least).all(), "the least number is kept"
    assert ((P * kept).sum(-1) >= top_p - 1e-5).all(), "the mass is reached"


@given(masses(), ratios)
def test_the_whole_budget_keeps_every_filled_cluster(mass, ratio):
    P, sizes = mass
    kept = keep_top_p(P, sizes, 1.0, ratio)
    assert torch.equal(kept, (sizes > 0).unsqueeze(-2).expand_as(kept))


def test_ties_go_to_the_lower_index():
    P = torch.full((1, 1, 1, 4), 0.25)
    sizes = torch.ones(1, 1, 4, dtype=torch.int32)
    assert keep_top_p(P, sizes, 0.5, 0.0).flatten().tolist() == [True, True, False, False]
    assert keep_top_p(P, sizes, 0.51, 0.0).sum() == 3


def test_a_cluster_whose_mass_underflows_is_kept_before_an_empty_one():
    P = torch.tensor([[[[0.0, 1.0, 0.0]]]])
    sizes = torch.tensor([[[0, 4, 5]]], dtype=torch.int32)
    assert keep_top_p(P, sizes, 0.5, 2 / 3).flatten().tolist() == [False, True, True]


def test_mass_of_single_tokens_is_their_attention():
    q, k = torch.randn(2, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0)).unbind()
    sizes = torch.ones(1, 2, 5, dtype=torch.int32)
    attention = torch.softmax(q.double() @ k.double().mT / 4, -1)
    torch.testing.assert_close(cluster_mass(q, k, sizes).double(), attention, rtol=0, atol=1e-6)


def test_mass_counts_a_cluster_by_its_size_and_an_empty_one_not_at_all():
    q, k = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 3, 8)
    sizes = torch.tensor([[[3, 0, 1]]], dtype=torch.int32)
    P = cluster_mass(q, k, sizes).flatten()
    torch.testing.assert_close(P, torch.tensor([0.75, 0.0, 0.25]))
    assert P[1] == 0


def test_mass_is_fp32_whatever_comes_in():
    q, k = (torch.randn(1, 1, 4, 8, dtype=torch.bfloat16) for _ in range(2))
    sizes = torch.ones(1, 1, 4, dtype=torch.int32)
    P = cluster_mass(q, k, sizes)
    assert P.dtype == torch.float32
    torch.testing.assert_close(P, cluster_mass(q.float(), k.float(), sizes))


def test_huge_scores_stay_finite():
    q = torch.full((1, 1, 1, 4), 1e4)
    k = torch.tensor([[[[1e4] * 4, [-1e4] * 4]]])
    sizes = torch.ones(1, 1, 2, dtype=torch.int32)
    P = cluster_mass(q, k, sizes)
    assert keep_top_p(P, sizes, 0.9, 0.0).flatten().tolist() == [True, False]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_mass_does_not_depend_on_autocast_or_matmul_precision(precision):
    """With bf16 products nearly half of the query clusters selected other key clusters."""
    generator = torch.Generator().manual_seed(0)
    q, k = (3 * torch.randn(1, 2, 60, 64, generator=generator) for _ in range(2))
    sizes = torch.ones(1, 2, 60, dtype=torch.int32)
    plain = cluster_mass(q, k, sizes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cluster_mass(q, k, sizes), plain)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(cluster_mass(q, k, sizes), plain)
        assert torch.get_float32_matmul_precision() == precision, "the setting is restored"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_registry_is_complete():
    assert {PAPER_METHOD, COMPENSATED_METHOD} <= set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert callable(method.function("select"))
        for role in ("attend", "cluster"):
            assert getattr(method, role) is None or callable(method.function(role))
        assert method.title
        assert method.line
        assert re.fullmatch(r"#[0-9a-f]{6}", method.colour)
        json.dumps(method.to_dict())
    marks = [(m.symbol, m.colour) for m in METHODS.values()]
    assert len({c for _, c in marks}) == len(METHODS)
    # There are fewer symbols than methods: those of our own have one each.
    own = [METHODS[name].symbol for name in (PAPER_METHOD, COMPENSATED_METHOD, ROUTED_METHOD)]
    assert len(set(own)) == 3


@pytest.mark.parametrize(
    ("ratio", "count"), [(0.0, 1), (0.07, 7), (0.1, 10), (0.101, 11), (1.0, 100)]
)
def test_least_number_kept(ratio, count):
    assert min_keep_count(ratio, 100) == count
