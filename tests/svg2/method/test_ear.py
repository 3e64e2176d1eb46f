"""SVG-EAR as published, and blocks at random."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import svg2
from kernels import sort_by_label
from svg2.method.plan import Routed, Tokens
from svg2.method.selection import METHODS, top_p
from svg2.method.selection.ear import _SHARE_BY_MASS


def tokens(n=200, heads=2, batch=1, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(3, batch, heads, 7, dim, generator=generator)
    labels = torch.randint(0, 7, (n,), generator=generator)
    noise = torch.randn(3, batch, heads, n, dim, generator=generator)
    return (centres[..., labels, :] + noise).unbind()


def attend(method, qkv, **changes):
    settings = {"num_q_clusters": 6, "num_k_clusters": 20, "min_keep_ratio": 0.0, **changes}
    return svg2.sparse_attention(*qkv, svg2.SVG2Config(method=method, **settings))


def errors_slowly(plan, q, k, v):
    """The sum of squared deviations, key by key, at the query centroids."""
    found = torch.zeros_like(plan.P, dtype=torch.float64)
    scale = 1 / math.sqrt(q.shape[-1])
    for b, h, j in torch.cartesian_prod(*map(torch.arange, (*q.shape[:2], found.shape[-1]))):
        centroids = plan.q_clusters.centroids[b, h].double()
        weights = (centroids @ k[b, h].double().T * scale).exp()
        members = plan.k_clusters.labels[b, h] == j
        if not members.any():
            continue
        stood = (centroids @ plan.k_clusters.centroids[b, h, j].double() * scale).exp()
        values = v[b, h, members].double()
        real = weights[:, members, None] * values
        gap = real - stood[:, None, None] * values.mean(0)
        found[b, h, :, j] = gap.square().sum((1, 2)) / weights.sum(-1).square()
    return found


def kept_by_mass(plan, asked):
    """What top-p keeps of the same clusters."""
    sides = (plan.q_clusters, plan.k_clusters)
    orders = [sort_by_label(side.labels, side.sizes.shape[-1]) for side in sides]
    unread = torch.zeros(*plan.q_clusters.labels.shape, 1)
    tokens = Tokens(*(unread,) * 5, *orders, *sides)
    config = svg2.SVG2Config(min_keep_ratio=0.0, **asked)
    return top_p.select(tokens, Routed(plan.P), config)


def test_the_error_is_the_sum_of_squared_deviations_and_the_mass_exact():
    q, k, v = tokens(batch=2)
    plan = attend("svg2-ear", (q, k, v), top_p=0.5).plan
    weights = torch.softmax(plan.q_clusters.centroids.double() @ k.double().mT / 4, -1)
    members = F.one_hot(plan.k_clusters.labels.long(), 20).double()
    torch.testing.assert_close(plan.P.double(), weights @ members, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        plan.error.double(), errors_slowly(plan, q, k, v), rtol=1e-4, atol=1e-7
    )


@settings(max_examples=20)
@given(st.floats(0.05, 0.95), st.booleans(), st.integers(0, 50))
def test_a_row_gets_what_top_p_gives_it_a_part_by_mass_and_the_rest_by_error(budget, dense, seed):
    qkv = tokens(seed=seed)
    asked = {"density" if dense else "top_p": budget}
    plan = attend("svg2-ear", qkv, **asked).plan
    sizes = plan.k_clusters.sizes[:, :, None]
    keys, most = ((kept * sizes).sum(-1) for kept in (plan.kept, kept_by_mass(plan, asked)))
    assert (keys <= most).all(), "no row passes its budget"
    assert (keys > most - sizes.amax(-1)).all(), "nor leaves room for a whole cluster"
    for h in range(2):
        n = sizes[0, h, 0].tolist()
        for i in range(len(plan.P[0, h])):
            row = plan.P[0, h, i].tolist()
            kept = {max(range(len(n)), key=lambda j: row[j] if n[j] else -1.0)}
            gain = [e / max(1, m) for e, m in zip(plan.error[0, h, i].tolist(), n, strict=True)]
            share = int(most[0, h, i].item() * _SHARE_BY_MASS)
            for values, limit in ((row, share), (gain, most[0, h, i].item())):
                rest = sorted(
                    (j for j in range(len(n)) if n[j] and j not in kept), key=lambda j: -values[j]
                )
                for j in rest:
                    if sum(n[x] for x in kept) + n[j] > limit:
                        break
                    kept.add(j)
            assert kept == set(plan.kept[0, h, i].nonzero()[:, 0].tolist())


def test_queries_with_more_predicted_error_left_are_further_from_dense():
    """With a query cluster per token, whose centroid is the query itself."""
    q, k, v = tokens(n=60)
    changes = {"density": 0.4, "num_q_clusters": 60, "num_k_clusters": 30, "kmeans_iters_init": 9}
    result = attend("svg2-ear", (q, k, v), **changes)
    plan = result.plan
    single = (plan.q_clusters.sizes == 1).gather(2, plan.q_clusters.labels.long())
    gap = (result.out - F.scaled_dot_product_attention(q, k, v)).square().sum(-1)[single]
    left = (plan.error * ~plan.kept).sum(-1).gather(2, plan.q_clusters.labels.long())[single]
    ranks = torch.stack([gap, left]).argsort(-1).argsort(-1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.5


@pytest.mark.parametrize("method", ["svg2-ear", "random"])
@pytest.mark.parametrize("whole", [{"density": 1.0}, {"top_p": 1.0}])
def test_the_whole_budget_is_dense(method, whole):
    qkv = tokens()
    result = attend(method, qkv, **whole)
    assert (result.density == 1).all()
    dense = F.scaled_dot_product_attention(*qkv)
    torch.testing.assert_close(result.out, dense, rtol=0, atol=1e-5)


@settings(max_examples=20)
@given(st.floats(0.02, 1.0), st.integers(0, 50))
def test_random_blocks_spend_the_budget_and_each_row_keeps_its_heaviest(density, seed):
    plan = attend("random", tokens(seed=seed), density=density).plan
    pairs = plan.q_clusters.sizes[..., :, None] * plan.k_clusters.sizes[..., None, :]
    heaviest = plan.P.argmax(-1, keepdim=True)
    assert plan.kept.gather(-1, heaviest).all()
    always = pairs.gather(-1, heaviest).sum().item()
    spent, total = (pairs * plan.kept).sum().item(), pairs.sum().item()
    assert spent <= max(always, density * total)
    assert spent > density * total - pairs.max().item() - 1


def test_random_blocks_differ_between_heads_and_seeds_and_repeat():
    qkv = tokens()
    kept = {seed: attend("random", qkv, density=0.5, seed=seed).plan.kept for seed in (0, 1)}
    assert not torch.equal(kept[0][:, 0], kept[0][:, 1])
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], attend("random", qkv, density=0.5).plan.kept)


def test_what_the_probe_computes_is_counted():
    qkv = tokens()
    plan = attend("svg2-ear", qkv, density=0.3).plan
    skipped = ~plan.kept & (plan.k_clusters.sizes > 0)[:, :, None]
    virtual = (skipped.sum(-1) * plan.q_clusters.sizes).sum(-1) / 200**2
    expected = plan.density() + virtual + METHODS["svg2-ear"].passes * 6 / 200
    torch.testing.assert_close(plan.compute_density(), expected.double())
