"""Cold starts: equal on any number of processes, with most iterations on samples."""

import pytest
import torch

from kernels import init_centroids, kmeans
from svg2.config import SVG2Config
from svg2.method.clustering import (
    CacheKey,
    Centroids,
    cluster_tokens,
    kmeans_distances,
    sample_stages,
)


def inertia(x, clusters):
    centroids = clusters.centroids.gather(
        2, clusters.labels.long()[..., None].expand(-1, -1, -1, x.shape[-1])
    )
    return (x - centroids).square().sum().item()


@pytest.mark.parametrize(
    ("sizes", "stages"),
    [
        ((75_600, 1000, 20), [(9_450, 10), (18_900, 5), (37_800, 3)]),
        ((32_760, 1024, 20), [(8_190, 5), (16_380, 3)]),  # an eighth is too few for so many
        ((5_184, 400, 20), [(2_592, 3)]),
        ((75_600, 300, 9), []),
    ],
)
def test_samples_grow_and_hold_enough_for_every_cluster(sizes, stages):
    assert sample_stages(*sizes) == stages


@pytest.mark.parametrize(
    ("tokens", "q", "k"),
    [(75_600, 300, 1000), (75_600, 100, 500), (118_800, 400, 1000), (32_760, 200, 1000)],
)
def test_a_cold_start_costs_at_most_three_warm_steps(tokens, q, k):
    config = SVG2Config(num_q_clusters=q, num_k_clusters=k)
    warm = Centroids()
    warm.q, warm.k = torch.zeros(1, 1, q, 1), torch.zeros(1, 1, k, 1)
    cold = kmeans_distances(tokens, config, Centroids())
    assert cold <= 3 * kmeans_distances(tokens, config, warm)


def test_a_sampled_start_is_as_good_as_many_iterations_on_all_tokens():
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(1, 1, 40, 16, generator=generator)
    labels = torch.randint(0, 40, (4000,), generator=generator)
    x = centres[..., labels, :] + torch.randn(1, 1, 4000, 16, generator=generator)
    ratios = []
    for seed in range(6):
        config = SVG2Config(num_q_clusters=30, seed=seed)
        sampled = inertia(x, cluster_tokens(x, config, Centroids(), "q"))
        start = init_centroids(x, 30, torch.Generator().manual_seed(seed))
        ratios.append(sampled / inertia(x, kmeans(x, start, 50)))
    assert sum(ratios) / len(ratios) < 1.02


@pytest.mark.parametrize("iters", [2, 20])
def test_heads_of_one_process_start_as_they_would_among_all(iters):
    x = torch.randn(1, 4, 300, 8, generator=torch.Generator().manual_seed(0))
    config = SVG2Config(num_k_clusters=6, kmeans_iters_init=iters)
    together = cluster_tokens(x, config, Centroids(), "k")
    parts = [
        cluster_tokens(x[:, a:b], config, Centroids(CacheKey(heads=(a, b, 4))), "k")
        for a, b in ((0, 2), (2, 4))
    ]
    assert torch.equal(together.labels, torch.cat([p.labels for p in parts], 1))


def test_a_cold_start_of_some_heads_holds_no_tokens_of_the_others():
    """A cold start used to allocate q and k of all heads on every process."""
    x = torch.randn(1, 2, 300, 8)
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                largest.append(out.numel())
            return out

    config = SVG2Config(num_k_clusters=6, kmeans_iters_init=2)
    with Sizes():
        cluster_tokens(x, config, Centroids(CacheKey(heads=(0, 2, 16))), "k")
    assert max(largest) <= x.numel()
