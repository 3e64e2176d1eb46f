"""`svg2.sparse_attention` on plain tensors."""

import pytest
import torch
from torch.nn import functional as F

import svg2
from kernels import MAX_K_CLUSTERS


def tokens(n=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(3, 2, 2, 6, 16, generator=generator)
    labels = torch.randint(0, 6, (n,), generator=generator)
    return (
        centres[..., labels, :] + 0.4 * torch.randn(3, 2, 2, n, 16, generator=generator)
    ).unbind()


CONFIG = svg2.SVG2Config(num_q_clusters=5, num_k_clusters=12, min_keep_ratio=0.0)


def test_the_whole_budget_is_dense_attention():
    q, k, v = tokens()
    result = svg2.sparse_attention(q, k, v, CONFIG.replace(top_p=1.0))
    torch.testing.assert_close(result.out, F.scaled_dot_product_attention(q, k, v))
    assert result.density.shape == result.compute_density.shape == (2, 2)
    assert (result.density == 1).all()
    assert torch.equal(result.compute_density, result.density)


def test_the_method_is_a_setting_and_its_compensation_is_counted():
    q, k, v = tokens()
    plain = svg2.sparse_attention(q, k, v, CONFIG.replace(top_p=0.3))
    comp = svg2.sparse_attention(q, k, v, CONFIG.replace(top_p=0.3, method="svg2-comp"))
    assert torch.equal(plain.density, comp.density)
    assert torch.equal(plain.compute_density, plain.density)
    assert (comp.compute_density > comp.density).all()
    dense = F.scaled_dot_product_attention(q, k, v)
    assert (comp.out - dense).square().mean() < (plain.out - dense).square().mean()


def test_centroids_warm_the_next_call():
    q, k, v = tokens()
    config = CONFIG.replace(kmeans_iters_init=1, kmeans_iters_step=1)
    centroids = svg2.Centroids()
    first = svg2.sparse_attention(q, k, v, config, centroids)
    second = svg2.sparse_attention(q, k, v, config, centroids)
    two = svg2.sparse_attention(q, k, v, config.replace(kmeans_iters_init=2))
    assert torch.equal(second.plan.k_clusters.labels, two.plan.k_clusters.labels)
    assert not torch.equal(first.plan.k_clusters.centroids, two.plan.k_clusters.centroids)


def test_no_gradient_flows():
    q, k, v = (x.requires_grad_() for x in tokens())
    assert not svg2.sparse_attention(q, k, v, CONFIG).out.requires_grad


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda q, k, v: (q, k[:, :, :-1], v), "one shape"),
        (lambda q, k, v: (q[0], k[0], v[0]), "one shape"),
        (lambda q, k, v: (q, k, v.half()), "one dtype"),
        (lambda q, k, v: (q[:, :, :9], k[:, :, :9], v[:, :, :9]), "only 9 tokens"),
    ],
)
def test_tensors_that_do_not_match_are_refused(change, sentence):
    with pytest.raises(svg2.ConfigError, match=sentence):
        svg2.sparse_attention(*change(*tokens()), CONFIG)


def test_kernels_that_cannot_run_are_refused():
    with pytest.raises(svg2.ConfigError, match="fused"):
        svg2.sparse_attention(*tokens(), CONFIG.replace(impl="fused"))


def test_more_key_clusters_than_the_gpu_kernels_take_are_refused(monkeypatch):
    monkeypatch.setattr("svg2.method.attention.resolve_impl", lambda *_, **__: "fused")
    config = CONFIG.replace(num_k_clusters=MAX_K_CLUSTERS + 1)
    with pytest.raises(svg2.ConfigError, match=f"at most {MAX_K_CLUSTERS}"):
        svg2.sparse_attention(*tokens(), config)
