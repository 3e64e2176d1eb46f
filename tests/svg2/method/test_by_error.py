"""Routing by error: the laws of its budget, and what its stand-ins are worth."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import svg2
from svg2.method.selection import ROUTED_METHOD


def _tokens(n=120, heads=3, dim=16, seed=0, batch=1):
    """Queries and keys that share a smooth field, as in a model."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.linspace(0, 1, n)[:, None]
    waves = torch.randn(batch, heads, 1, dim, generator=generator) * 6
    field = (place * waves).cos() * 1.5
    noise = torch.randn(3, batch, heads, n, dim, generator=generator)
    return field + 0.3 * noise[0], field + 0.3 * noise[1], field + noise[2]


def _attend(tokens, **settings):
    settings = {"num_q_clusters": 6, "num_k_clusters": 20, "min_keep_ratio": 0.0} | settings
    return svg2.sparse_attention(*tokens, svg2.SVG2Config(method=ROUTED_METHOD, **settings))


def _error_db(result, tokens):
    dense = F.scaled_dot_product_attention(*(x.double() for x in tokens))
    return 10 * math.log10((result.out - dense).square().sum() / dense.square().sum())


def _pairs(plan):
    return plan.q_clusters.sizes[..., None] * plan.k_clusters.sizes[..., None, :]


@settings(max_examples=30)
@given(density=st.floats(0.02, 1), seed=st.integers(0, 2**16), batch=st.integers(1, 2))
def test_law_the_budget_of_a_layer_is_not_passed(density, seed, batch):
    result = _attend(_tokens(seed=seed, batch=batch), density=density)
    plan = result.plan
    pairs = _pairs(plan)
    spent = (pairs * plan.kept).flatten(1).sum(1)
    heaviest = pairs.gather(3, plan.P.argmax(-1, keepdim=True)).flatten(1).sum(1)
    budget = density * 3 * 120**2
    assert (spent <= torch.clamp(heaviest, min=budget)).all()
    assert plan.kept.any(-1)[plan.q_clusters.sizes > 0].all()
    # what is left would not have paid for the next best block
    gain = plan.error / plan.k_clusters.sizes.clamp(min=1).unsqueeze(2)
    gain = gain.masked_fill(plan.kept | (pairs == 0), -1)
    for sample in range(batch):
        best = gain[sample].argmax()
        if gain[sample].flatten()[best] > 0:
            assert spent[sample] + pairs[sample].flatten()[best] > budget


@settings(max_examples=20)
@given(low=st.floats(0.02, 1), high=st.floats(0.02, 1), seed=st.integers(0, 2**16))
def test_law_kept_sets_grow_with_the_budget(low, high, seed):
    tokens = _tokens(seed=seed)
    less, more = (_attend(tokens, density=d).plan.kept for d in sorted((low, high)))
    assert not (less & ~more).any()


@pytest.mark.parametrize("everything", [{"density": 1.0}, {"top_p": 1.0}])
@pytest.mark.parametrize("stand_ins", ["pairs", "means"])
def test_with_everything_kept_it_is_dense(everything, stand_ins):
    tokens = _tokens()
    result = _attend(tokens, **everything, stand_ins=stand_ins)
    assert result.plan.kept[_pairs(result.plan) > 0].all()
    assert _error_db(result, tokens) < -60


def test_stand_ins_of_one_token_are_exact():
    tokens = _tokens(n=40)
    result = _attend(tokens, density=0.03, num_k_clusters=40, num_q_clusters=10)
    assert (result.plan.k_clusters.sizes == 1).all()
    assert result.density.max() < 0.1
    assert _error_db(result, tokens) < -60


def test_the_top_p_budget_is_what_top_p_keeps_in_all_heads():
    tokens = _tokens()
    plan = _attend(tokens, top_p=0.5).plan
    sorted_P, order = torch.sort(plan.P, dim=-1, descending=True, stable=True)
    before = sorted_P.cumsum(-1) - sorted_P
    asked = torch.zeros_like(plan.kept).scatter_(-1, order, before < 0.5) & (_pairs(plan) > 0)
    assert (_pairs(plan) * plan.kept).sum() <= (_pairs(plan) * asked).sum()
    by_head = (_pairs(plan) * asked).sum((-1, -2))
    assert ((_pairs(plan) * plan.kept).sum((-1, -2)) > by_head).any()  # heads share it


def test_it_comes_closer_to_dense_than_the_others_at_equal_compute():
    tokens = _tokens(n=600, heads=4)
    found = {}
    for method in ("svg2", "svg2-comp", ROUTED_METHOD):
        config = svg2.SVG2Config(
            method=method, density=0.1, num_q_clusters=12, num_k_clusters=40, min_keep_ratio=0.0
        )
        found[method] = _error_db(svg2.sparse_attention(*tokens, config), tokens)
    assert found[ROUTED_METHOD] < found["svg2-comp"] - 3
    assert found["svg2-comp"] < found["svg2"]


def test_pairs_come_closer_than_means_and_cost_half_a_pass_more():
    tokens = _tokens(n=600)
    pairs, means = (_attend(tokens, density=0.05, stand_ins=x) for x in ("pairs", "means"))
    assert _error_db(pairs, tokens) < _error_db(means, tokens)
    extra = pairs.compute_density.mean() - means.compute_density.mean()
    torch.testing.assert_close(extra.item(), 0.5 * 6 / 600, rtol=0.05, atol=1e-3)


def test_everything_computed_is_counted():
    result = _attend(_tokens(), density=0.2)
    plan, n = result.plan, 120
    skipped = (~plan.kept & (_pairs(plan) > 0)).double()
    virtual = (skipped.sum(-1) * plan.q_clusters.sizes).sum(-1) / n**2
    expected = result.density + virtual + 1.5 * 6 / n
    torch.testing.assert_close(result.compute_density, expected)
    assert result.overhead_density > 0
