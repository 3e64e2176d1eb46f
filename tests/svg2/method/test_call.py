"""One sparse call against stock attention; its plan and its densities."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import KMeansResult, cluster_means, sort_by_label
from svg2.config import SVG2Config
from svg2.errors import ConfigError
from svg2.method.call import TextTokens, sparse_call
from svg2.method.clustering import CacheKey, CentroidCache, Centroids, cluster_tokens
from svg2.method.plan import Plan
from svg2.method.stages import StageClock

KEY = CacheKey(transformer=0, layer=1, branch=0, shape=())
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def tokens(batch=1, heads=2, n=63, dim=16, seed=0, dtype=torch.float32):
    """q, k and v around a few centres, as in a video."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(3, batch, heads, 7, dim, generator=generator)
    labels = torch.randint(0, 7, (n,), generator=generator)
    noise = 0.5 * torch.randn(3, batch, heads, n, dim, generator=generator)
    return (centres[..., labels, :] + noise).to(dtype).unbind()


def attend(q, k, v, centroids=None, **settings):
    config = SVG2Config(**{"num_q_clusters": 5, "num_k_clusters": 9, **settings})
    clock = StageClock(CPU)
    result = sparse_call(q, k, v, config, centroids or Centroids(KEY), clock)
    return SimpleNamespace(out=result.out, plan=result.plan, clock=clock)


def token_mask(plan):
    """The kept pairs of tokens, [B, H, N, N]."""
    rows = plan.kept.gather(
        2, plan.q_clusters.labels.long().unsqueeze(-1).expand(-1, -1, -1, plan.kept.shape[-1])
    )
    columns = plan.k_clusters.labels.long().unsqueeze(-2).expand(-1, -1, rows.shape[2], -1)
    return rows.gather(3, columns)


def fp64_attention(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)


def assert_as_close_as_stock(out, exact, stock):
    """No further from the fp64 result than a few times the stock fp32 kernel is."""
    assert (out - exact).abs().max() <= 8 * (stock - exact).abs().max() + 1e-7


CASES = {
    "plain": {},
    "batch 2": {"batch": 2},
    "one token per cluster": {"n": 9},
    "one head": {"heads": 1, "n": 127},
}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_budget_is_dense_attention(case):
    q, k, v = tokens(**CASES[case])
    run = attend(q, k, v, top_p=1.0)
    assert_as_close_as_stock(
        run.out, fp64_attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
    )
    assert (run.plan.density() == 1).all()
    torch.testing.assert_close(run.plan.kept_mass(), torch.ones(q.shape[:2]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_a_budget_is_masked_attention(case, top_p):
    q, k, v = tokens(**CASES[case])
    run = attend(q, k, v, top_p=top_p, min_keep_ratio=0.0)
    mask = token_mask(run.plan)
    stock = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_as_close_as_stock(run.out, fp64_attention(q, k, v, mask), stock)
    torch.testing.assert_close(run.plan.density(), mask.double().mean((-1, -2)))
    assert (run.plan.density() < 1).any()


def test_identical_tokens_fall_into_one_cluster_and_the_rest_stay_empty():
    q = torch.ones(1, 1, 20, 8)
    v = torch.randn(1, 1, 20, 8)
    run = attend(q, q, v, top_p=0.5)
    assert sorted(run.plan.k_clusters.sizes.flatten().tolist()) == [0] * 8 + [20]
    torch.testing.assert_close(run.out, v.mean(2, keepdim=True).expand_as(v))
    assert run.plan.density().item() == 1


def test_compensation_is_attention_to_kept_keys_and_skipped_centroids():
    q, k, v = tokens(n=40)
    run = attend(q, k, v, top_p=0.3, min_keep_ratio=0.0, method="svg2-comp")
    plan, scale = run.plan, 1 / math.sqrt(q.shape[-1])
    sizes = plan.k_clusters.sizes.double()
    members = F.one_hot(plan.k_clusters.labels.long(), sizes.shape[-1]).double().mT
    k_means, v_means = (members @ x.double() / sizes.clamp(min=1).unsqueeze(-1) for x in (k, v))
    kept_rows = plan.kept.gather(
        2, plan.q_clusters.labels.long().unsqueeze(-1).expand(-1, -1, -1, sizes.shape[-1])
    )
    real = (q.double() @ k.double().mT * scale).masked_fill(~token_mask(plan), -math.inf)
    virtual = q.double() @ k_means.mT * scale + sizes.log().unsqueeze(-2)
    weights = torch.softmax(torch.cat([real, virtual.masked_fill(kept_rows, -math.inf)], -1), -1)
    expected = weights @ torch.cat([v.double(), v_means], 2)
    torch.testing.assert_close(run.out.double(), expected, rtol=0, atol=1e-5)
    dense = fp64_attention(q, k, v)
    plain = attend(q, k, v, top_p=0.3, min_keep_ratio=0.0)
    assert (run.out - dense).square().mean() < (plain.out - dense).square().mean()
    skipped = (~kept_rows & (sizes > 0).unsqueeze(-2)).double()
    virtual = plan.compute_density() - plan.density()
    torch.testing.assert_close(virtual, skipped.mean(2).sum(-1) / 40)


def test_raising_top_p_never_lowers_density_on_the_same_queries_and_keys():
    q, k, v = tokens(n=200)
    densities = [
        attend(q, k, v, top_p=top_p).plan.density()
        for top_p in torch.linspace(0.05, 1, 20).tolist()
    ]
    assert all((low <= high).all() for low, high in pairwise(densities))
    assert (densities[0] < densities[-1]).all()


def test_more_clusters_than_tokens_is_refused():
    q, k, v = tokens(n=8)
    with pytest.raises(ConfigError, match=r"num_k_clusters is 9.*8 tokens"):
        attend(q, k, v)


def test_stages_are_timed_and_a_skipped_stretch_is_not():
    q, k, v = tokens()
    run = attend(q, k, v)
    run.clock.skip()
    assert list(run.clock.stage_ms) == ["kmeans", "permute", "select", "attention"]
    assert all(ms > 0 for ms in run.clock.stage_ms.values())


def test_bf16_stays_bf16_and_selects_in_fp32():
    q, k, v = tokens(dtype=torch.bfloat16)
    centroids = Centroids(KEY)
    run = attend(q, k, v, centroids, top_p=1.0)
    assert run.out.dtype == torch.bfloat16
    assert run.plan.P.dtype == run.plan.k_clusters.centroids.dtype == torch.float32
    assert centroids.q.dtype == centroids.k.dtype == torch.bfloat16, "cached in the model's dtype"
    exact = fp64_attention(q, k, v)
    stock = F.scaled_dot_product_attention(q, k, v)
    assert (run.out - exact).abs().max() <= 2 * (stock - exact).abs().max()


def test_cold_starts_repeat_and_warm_starts_continue():
    # Plain noise, on which k-means is far from done after three iterations.
    k = torch.randn(1, 2, 400, 16, generator=torch.Generator().manual_seed(0))
    config = SVG2Config(num_k_clusters=20, kmeans_iters_init=2, kmeans_iters_step=1)
    first, second = Centroids(KEY), Centroids(KEY)
    cold = cluster_tokens(k, config, first, "k")
    assert torch.equal(cold.labels, cluster_tokens(k, config, second, "k").labels)
    warm = cluster_tokens(k, config, first, "k")
    assert not torch.equal(warm.labels, cold.labels)
    longer = cluster_tokens(k, config.replace(kmeans_iters_init=3), Centroids(KEY), "k")
    assert torch.equal(warm.labels, longer.labels), "a warm iteration is one more of the same"
    other_seed = cluster_tokens(k, config.replace(seed=1), Centroids(KEY), "k")
    assert not torch.equal(cold.labels, other_seed.labels)


def test_the_cache_counts_its_bytes_and_frees_them():
    _, k, _ = tokens(n=50)
    cache = CentroidCache()
    config = SVG2Config(num_k_clusters=6)
    for transformer in (0, 1):
        key = CacheKey(transformer, layer=0, branch=0, shape=tuple(k.shape))
        cluster_tokens(k, config, cache.entry(key), "k")
    assert cache.nbytes == 2 * (2 * 6 * 16) * 4
    cache.keep_only(1)
    assert len(cache) == 1
    assert cache.nbytes == (2 * 6 * 16) * 4
    cache.clear()
    assert cache.nbytes == 0


def plan_of(q_labels, k_labels, num_q, num_k, kept):
    """A plan made of labels alone."""

    def clusters(labels, count):
        sizes = sort_by_label(labels, count).sizes
        return KMeansResult(labels, torch.zeros(*sizes.shape, 1), sizes, "reference")

    P = torch.softmax(torch.randn(kept.shape), -1)
    return Plan(clusters(q_labels, num_q), clusters(k_labels, num_k), P, kept)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_density_counts_pairs(n, num_q, num_k, seed):
    generator = torch.Generator().manual_seed(seed)

    def labels(count):
        drawn = torch.randint(0, count, (1, 2, n), generator=generator)
        return drawn.to(torch.int32)

    kept = torch.rand(1, 2, num_q, num_k, generator=generator) < 0.5
    plan = plan_of(labels(num_q), labels(num_k), num_q, num_k, kept)
    pairs = token_mask(plan).sum((-1, -2)).double()
    assert torch.equal(plan.density(), pairs / n**2)
    assert (plan.kept_mass() <= 1 + 1e-6).all()


def test_density_is_exactly_1_where_fp32_could_not_count_the_pairs():
    n = 20_001
    labels = (torch.arange(n, dtype=torch.int32) % 3)[None, None]
    plan = plan_of(labels, labels, 3, 3, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    assert plan.density().item() == 1


def test_cluster_means_skip_the_empty():
    x = torch.randn(2, 2, 31, 4)
    labels = torch.randint(0, 5, (2, 2, 31)).to(torch.int32) * 2
    order = sort_by_label(labels, 10)
    means = cluster_means(x, order)
    for b, h, c in torch.cartesian_prod(*map(torch.arange, (2, 2, 10))).tolist():
        members = x[b, h, labels[b, h] == c]
        expected = members.mean(0) if len(members) else torch.zeros(4)
        torch.testing.assert_close(means[b, h, c], expected)


def test_text_costs_no_second_copy_of_the_video():
    """q, k and v of all video tokens used to be copied again for each call with a prompt."""
    q, k, v = tokens(n=400, heads=2)
    text = TextTokens(*(x[:, :, :7].clone() for x in (q, k, v)))
    config = SVG2Config(num_q_clusters=5, num_k_clusters=9, kmeans_iters_init=2)

    def large_tensors(text):
        count = 0

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                nonlocal count
                out = function(*args, **(kwargs or {}))
                is_new = isinstance(out, torch.Tensor) and not out._is_view()
                count += is_new and out.is_floating_point() and out.numel() >= q.numel()
                return out

        with Count():
            result = sparse_call(q, k, v, config, Centroids(KEY), text=text)
        return count, result

    without, _ = large_tensors(None)
    with_text, result = large_tensors(text)
    assert with_text <= without
    assert result.text_out.shape == text.q.shape
    keys, values = (torch.cat([x, y], 2) for x, y in ((k, text.k), (v, text.v)))
    exact = fp64_attention(text.q, keys, values)
    torch.testing.assert_close(result.text_out.double(), exact, rtol=0, atol=1e-5)
