"""k-means against its plain definition in fp64."""

import importlib
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from tests.kernels.cases import cluster_means

reference = importlib.import_module("kernels.kmeans.reference")


def tokens(
    n: int, *, batch: int = 1, heads: int = 2, dim: int = 16, seed: int = 0, blobs: int = 6
):
    """Points around `blobs` centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(batch, heads, blobs, dim, generator=generator)
    which = torch.randint(blobs, (batch, heads, n), generator=generator)
    near = centres.gather(2, which[..., None].expand(-1, -1, -1, dim))
    return near + torch.randn(batch, heads, n, dim, generator=generator)


def start(x, num: int, seed: int = 0):
    return kernels.init_centroids(x, num, torch.Generator().manual_seed(seed))


def distances(x, centroids):
    """Squared distances [B, H, N, C] in fp64."""
    return (x.double()[:, :, :, None] - centroids.double()[:, :, None]).square().sum(-1)


def within(x, result) -> float:
    """What k-means lowers: the squared distances of the tokens from their centroids."""
    own = result.labels.long()[..., None]
    return distances(x, result.centroids).gather(-1, own).sum().item()


def assert_consistent(x, before, result) -> None:
    """Sizes count the labels and centroids are their means; an empty one keeps the old."""
    num = result.centroids.shape[2]
    counts = torch.stack([(result.labels == c).sum(-1) for c in range(num)], -1)
    assert torch.equal(result.sizes.long(), counts)
    assert (result.sizes.sum(-1) == x.shape[2]).all()
    assert result.centroids.dtype is torch.float32
    exact = cluster_means(x.double(), result.labels, num)
    filled = counts > 0
    # A few roundings: of runs of at most _RUN additions, of their sums, and of the division.
    bound = 32 * torch.finfo(torch.float32).eps * x.abs().max()
    assert (result.centroids - exact)[filled].abs().max() <= bound
    assert torch.equal(result.centroids[~filled], before.float()[~filled])


@pytest.mark.parametrize("n", [1, 17, 63, 64, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_step_is_assign_then_update(n, dtype):
    x = tokens(n, batch=2).to(dtype)
    before = start(x, min(n, 9))
    result = kernels.kmeans(x, before, 1)
    to_own = distances(x, before).gather(-1, result.labels.long()[..., None])[..., 0]
    nearest = distances(x, before).amin(-1)
    # Labels may differ from fp64 only where two centroids are equally near within fp32.
    assert (to_own - nearest).max() <= 64 * torch.finfo(
        torch.float32
    ).eps * x.double().square().sum(-1).max()
    assert_consistent(x, before, result)
    assert result.impl == "reference"


def test_iterations_follow_each_other():
    x = tokens(300)
    once = kernels.kmeans(x, start(x, 8), 1)
    again = kernels.kmeans(x, once.centroids, 2)
    at_once = kernels.kmeans(x, start(x, 8), 3)
    assert torch.equal(again.labels, at_once.labels)
    assert torch.equal(again.centroids, at_once.centroids)


def test_each_iteration_lowers_the_spread():
    x = tokens(500)
    spreads = [within(x, kernels.kmeans(x, start(x, 12), iters)) for iters in range(1, 8)]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(spreads))
    assert spreads[-1] < spreads[0]


def test_finds_separate_blobs():
    x = torch.cat([torch.randn(1, 1, 40, 4) * 0.01 + centre for centre in (-5.0, 0.0, 5.0)], 2)
    before = x[:, :, [0, 40, 80]]
    labels = kernels.kmeans(x, before, 3).labels[0, 0]
    assert labels.tolist() == [0] * 40 + [1] * 40 + [2] * 40


def test_all_tokens_identical():
    # Small whole numbers: every product and mean is exact, so the centroids are equals indeed.
    token = torch.randint(-4, 5, (1, 2, 1, 16), generator=torch.Generator().manual_seed(0))
    x = token.float().expand(1, 2, 5000, 16)
    before = start(x, 7)
    result = kernels.kmeans(x, before, 3)
    # All centroids are equally near: the first takes every token, the others keep their place.
    assert (result.labels == 0).all()
    assert result.sizes[..., 0].tolist() == [[5000, 5000]]
    assert_consistent(x, before, result)


def test_one_token_per_cluster():
    x = tokens(63)
    result = kernels.kmeans(x, start(x, 63), 2)
    assert (result.sizes == 1).all()
    assert_consistent(x, x, result)


def test_the_mean_of_a_giant_cluster_is_exact():
    x = torch.randn(1, 1, 50_000, 4, generator=torch.Generator().manual_seed(0)) + 100
    assert_consistent(x, x[:, :, :1], kernels.kmeans(x, x[:, :, :1], 1))


def test_empty_clusters_keep_their_centroids():
    x = tokens(64)
    before = start(x, 5)
    before[:, :, 3] = 1e3
    once = kernels.kmeans(x, before, 1)
    assert (once.sizes[:, :, 3] == 0).all()
    assert_consistent(x, before, once)
    assert (kernels.kmeans(x, before, 4).centroids[:, :, 3] == 1e3).all()


def test_small_chunks_change_no_label(monkeypatch):
    x = tokens(257)
    expected = kernels.kmeans(x, start(x, 9), 2)
    monkeypatch.setattr(reference, "_SCORES_PER_CHUNK", 100)
    result = kernels.kmeans(x, start(x, 9), 2)
    assert torch.equal(result.labels, expected.labels)


def test_twice_the_same_and_threads_change_nothing():
    x = tokens(1000, heads=3)
    expected = kernels.kmeans(x, start(x, 20), 5)
    before = torch.get_num_threads()
    for threads in (before, 1, 3):
        torch.set_num_threads(threads)
        try:
            result = kernels.kmeans(x, start(x, 20), 5)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(result.labels, expected.labels)
        assert torch.equal(result.centroids, expected.centroids)


def test_no_uninitialised_memory_is_read(poisoned_memory):
    x = tokens(257, batch=2)
    before = start(x, 9)
    assert_consistent(x, before, kernels.kmeans(x, before, 3))


def test_inputs_stay_as_they_were():
    x = tokens(100)
    before = start(x, 9)
    kept_x, kept_before = x.clone(), before.clone()
    kernels.kmeans(x, before, 3)
    assert torch.equal(x, kept_x)
    assert torch.equal(before, kept_before)


@settings(max_examples=40)
@given(
    n=st.integers(1, 120),
    share=st.floats(0, 1),
    iters=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_laws(n, share, iters, seed):
    x = tokens(n, heads=1, dim=5, seed=seed)
    num = max(1, round(share * n))
    before = start(x, num, seed)
    result = kernels.kmeans(x, before, iters)
    assert result.sizes.sum() == n
    assert ((result.labels >= 0) & (result.labels < num)).all()
    # What an empty cluster keeps is its place in an earlier round, so check the filled ones.
    exact = cluster_means(x.double(), result.labels, num)
    filled = result.sizes > 0
    bound = 32 * torch.finfo(torch.float32).eps * x.abs().max()
    assert (result.centroids - exact)[filled].abs().max() <= bound


def test_init_draws_distinct_tokens():
    x = tokens(100, batch=2, heads=3)
    chosen = start(x, 100)
    for b in range(2):
        for h in range(3):
            assert torch.equal(chosen[b, h].unique(dim=0), x[b, h].unique(dim=0))
    assert torch.equal(start(x, 20, seed=1), start(x, 20, seed=1))
    assert not torch.equal(start(x, 20, seed=1), start(x, 20, seed=2))
    assert not torch.equal(start(x.bfloat16(), 20)[0, 0], start(x.bfloat16(), 20)[0, 1])


@pytest.mark.parametrize("num", [0, -1, 11])
def test_init_refuses_impossible_numbers(num):
    with pytest.raises(ValueError, match="from 1 to the 10 tokens"):
        start(tokens(10), num)


def test_bad_arguments():
    x = tokens(10)
    with pytest.raises(ValueError, match="iters"):
        kernels.kmeans(x, start(x, 2), 0)
    with pytest.raises(ValueError, match="must agree"):
        kernels.kmeans(x, start(x, 2)[..., :3], 1)
    with pytest.raises(kernels.ImplUnavailable, match="fused"):
        kernels.kmeans(x, start(x, 2), 1, impl="fused")
    with pytest.raises(ValueError, match="impl must be"):
        kernels.kmeans(x, start(x, 2), 1, impl="other")
