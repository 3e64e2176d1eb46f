"""Clusters of queries or keys, warm-started from the centroids of the step before."""

import zlib
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kernels import KMeansResult, init_centroids, kmeans
from svg2.config import SVG2Config
from svg2.method.selection import METHODS

Side = Literal["q", "k"]

# Shares of the tokens and of the iterations; 8, 6 and 4 iterations of 20.
_SAMPLES = ((1 / 8, 0.4), (1 / 4, 0.3), (1 / 2, 0.2))
_MIN_TOKENS_PER_CLUSTER = 8  # smaller samples were not tried
_MIN_SAMPLED_ITERS = 10


@dataclass(frozen=True)
class CacheKey:
    """What centroids belong to; they pass between no models, layers, branches or shapes.

    Attributes:
        sample: place in the batch, where its samples are attended to one by one.
        heads: the absolute numbers of the heads, (first, end, of all), where other processes have
            the rest; None for all.
    """

    transformer: int = 0
    layer: int = 0
    branch: int = 0
    shape: tuple[int, ...] = ()
    sample: int = 0
    heads: tuple[int, int, int] | None = None


class Centroids:
    """Centroids of the last step of one layer and branch, in the model's dtype; None when cold."""

    def __init__(self, key: CacheKey = CacheKey()) -> None:
        self.key = key
        self.q: Float[Tensor, "B H Q D"] | None = None
        self.k: Float[Tensor, "B H K D"] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.nbytes for x in (self.q, self.k) if x is not None)


class CentroidCache:
    """All centroids of one generation."""

    def __init__(self) -> None:
        self._entries: dict[CacheKey, Centroids] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, key: CacheKey) -> Centroids:
        """The centroids kept under `key`; a cold entry is made on first use."""
        if key not in self._entries:
            self._entries[key] = Centroids(key)
        return self._entries[key]

    def keep_only(self, transformer: int) -> None:
        """Free what belongs to any other transformer; Wan 2.2 leaves its first for good."""
        self._entries = {k: v for k, v in self._entries.items() if k.transformer == transformer}

    def clear(self) -> None:
        """Free everything."""
        self._entries.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(entry.nbytes for entry in self._entries.values())


def cluster_tokens(
    x: Float[Tensor, "B H N D"], config: SVG2Config, centroids: Centroids, side: Side
) -> KMeansResult:
    """Cluster queries or keys per head as the method does, and keep the centroids.

    k-means starts from the centroids of the step before, or cold from random tokens.
    """
    method = METHODS[config.method]
    num_clusters = getattr(config, f"num_{side}_clusters")
    if method.cluster is not None:
        return method.function("cluster")(x, num_clusters, config)
    warm = getattr(centroids, side)
    if warm is None:
        clusters = _cold_start(x, num_clusters, config, centroids.key, side)
    else:
        clusters = kmeans(x, warm, config.kmeans_iters_step, impl=config.impl)
    setattr(centroids, side, clusters.centroids.to(x.dtype))
    return clusters


def _cold_start(
    x: Float[Tensor, "B H N D"], num_clusters: int, config: SVG2Config, key: CacheKey, side: Side
) -> KMeansResult:
    """k-means from random tokens: most iterations on small samples, the last on all tokens."""
    # Seeded by place and not drawn from one stream: no call depends on which others came before.
    # Guidance branches start from the same tokens, as nothing tells them apart yet.
    place = f"{config.seed}/{key.transformer}/{key.layer}/{side}"
    generator = torch.Generator().manual_seed(zlib.crc32(place.encode()))
    first, _, heads = key.heads or (0, None, None)
    centroids = init_centroids(x, num_clusters, generator, first_head=first, num_heads=heads)
    num_tokens, iters = x.shape[2], config.kmeans_iters_init
    stages = sample_stages(num_tokens, num_clusters, iters)
    shuffled = torch.randperm(num_tokens, generator=generator) if stages else None
    for sample_size, sample_iters in stages:
        assert shuffled is not None
        chosen = shuffled[:sample_size].to(x.device)
        sample = x.index_select(2, chosen)
        centroids = kmeans(sample, centroids, sample_iters, impl=config.impl).centroids
        iters -= sample_iters
    return kmeans(x, centroids, iters, impl=config.impl)


def sample_stages(num_tokens: int, num_clusters: int, iters: int) -> list[tuple[int, int]]:
    """Sizes of the growing samples that a cold start begins on, and iterations on each.

    What is left of `iters` runs on all tokens. On q and k of a real model, 20 iterations so shared
    out come within 1.1 % of the inertia of 50 on all tokens (mean), at an eighth of their cost.
    """
    if iters < _MIN_SAMPLED_ITERS:
        return []
    stages = []
    for share, share_of_iters in _SAMPLES:
        size = int(num_tokens * share)
        if size >= _MIN_TOKENS_PER_CLUSTER * num_clusters:
            stages.append((size, round(iters * share_of_iters)))
    return stages
