"""Clustering of queries and keys, warm-started from the centroids of the previous step."""

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

# (share of the tokens, share of the iterations): 10, 5 and 3 of 20 iterations.
_SAMPLES = ((1 / 8, 0.5), (1 / 4, 0.25), (1 / 2, 0.15))
_MIN_TOKENS_PER_CLUSTER = 4  # quality was not measured below
_MIN_SAMPLED_ITERS = 10


@dataclass(frozen=True)
class CacheKey:
    """Key of cached centroids, which are reused only where all of its fields are equal.

    Attributes:
        transformer: index of the transformer, in models with several.
        layer, branch: position of the call; branch is the guidance branch.
        shape: shape of q.
        sample: index in the batch, where the samples of a batch are attended to one by one.
        heads: (first, end, total) numbers of the heads of this process, where several processes
            share a video; None for all heads.
    """

    transformer: int = 0
    layer: int = 0
    branch: int = 0
    shape: tuple[int, ...] = ()
    sample: int = 0
    heads: tuple[int, int, int] | None = None


class Centroids:
    """Centroids of one layer and branch in its last step, in the model's dtype.

    `q` and `k` are None before the first step.
    """

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
        """The centroids under `key`; the first use makes an entry without centroids."""
        if key not in self._entries:
            self._entries[key] = Centroids(key)
        return self._entries[key]

    def keep_only(self, transformer: int) -> None:
        """Free the centroids of all other transformers; Wan 2.2 never returns to its first."""
        self._entries = {k: v for k, v in self._entries.items() if k.transformer == transformer}

    def clear(self) -> None:
        """Free everything."""
        self._entries.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(entry.nbytes for entry in self._entries.values())


def cluster_tokens(
    x: Float[Tensor, "B H N D"],
    config: SVG2Config,
    centroids: Centroids,
    side: Side,
    grid: tuple[int, int, int] | None = None,
) -> KMeansResult:
    """Cluster queries or keys per head as `config.method` does.

    k-means starts from the centroids of the previous step, or from random tokens without any.

    Args:
        centroids: start of k-means; its centroids of this side are replaced by the new ones.
        side: whether `x` holds queries or keys.
        grid: frames, rows and columns of tokens, for methods that need them.
    """
    method = METHODS[config.method]
    num_clusters = getattr(config, f"num_{side}_clusters")
    if method.cluster is not None:
        return method.function("cluster")(x, num_clusters, config, grid)
    warm = getattr(centroids, side)
    if warm is None:
        clusters = _cold_start(x, num_clusters, config, centroids.key, side)
    else:
        clusters = kmeans(x, warm, config.kmeans_iters_step, impl=config.impl)
    setattr(centroids, side, clusters.centroids.to(x.dtype))
    return clusters


def kmeans_distances(num_tokens: int, config: SVG2Config, centroids: Centroids) -> float:
    """Distances between tokens and centroids that `cluster_tokens` computes per head, both sides.

    Call it before, since it depends on which sides of `centroids` are warm.
    """
    if METHODS[config.method].cluster is not None:
        return 0.0
    distances = 0
    for side in ("q", "k"):
        num_clusters = getattr(config, f"num_{side}_clusters")
        if getattr(centroids, side) is not None:
            distances += config.kmeans_iters_step * num_tokens * num_clusters
            continue
        iters = config.kmeans_iters_init
        for size, sample_iters in sample_stages(num_tokens, num_clusters, iters):
            distances += sample_iters * size * num_clusters
            iters -= sample_iters
        distances += iters * num_tokens * num_clusters
    return float(distances)


def _cold_start(
    x: Float[Tensor, "B H N D"], num_clusters: int, config: SVG2Config, key: CacheKey, side: Side
) -> KMeansResult:
    """k-means from random tokens: first on the samples of `sample_stages`, then on all tokens."""
    # A seed per position, so that a call does not depend on the calls before it. The branch is
    # left out: all guidance branches start from the same tokens.
    position = f"{config.seed}/{key.transformer}/{key.layer}/{side}"
    # On a GPU there: to draw for all tokens of all heads on the host takes longer than k-means.
    where = x.device if x.is_cuda else torch.device("cpu")
    generator = torch.Generator(where).manual_seed(zlib.crc32(position.encode()))
    first, _, heads = key.heads or (0, None, None)
    centroids = init_centroids(x, num_clusters, generator, first_head=first, num_heads=heads)
    num_tokens, iters = x.shape[2], config.kmeans_iters_init
    stages = sample_stages(num_tokens, num_clusters, iters)
    shuffled = torch.randperm(num_tokens, generator=generator, device=where) if stages else None
    for sample_size, sample_iters in stages:
        assert shuffled is not None
        sample = x.index_select(2, shuffled[:sample_size].to(x.device))
        centroids = kmeans(sample, centroids, sample_iters, impl=config.impl).centroids
        iters -= sample_iters
    return kmeans(x, centroids, iters, impl=config.impl)


def sample_stages(num_tokens: int, num_clusters: int, iters: int) -> list[tuple[int, int]]:
    """Plan the first iterations of a cold start, which run on growing samples of the tokens.

    The rest of `iters` runs on all tokens. 20 iterations planned in this way cost as much as 6 on
    all tokens, three warm steps of 2. On q and k of the built-in model (means of 6 inputs, with
    259, 76 and 33 tokens per cluster) they came within 1.2, 1.5 and 1.8 % of the inertia of 50
    iterations on all tokens; 6 on all tokens came within 3.0, 2.7 and 2.2 %.

    Returns:
        (sample size, iterations) per sample; none for few iterations or few tokens per cluster.
    """
    if iters < _MIN_SAMPLED_ITERS:
        return []
    stages = []
    for share, share_of_iters in _SAMPLES:
        size = int(num_tokens * share)
        if size >= _MIN_TOKENS_PER_CLUSTER * num_clusters:
            stages.append((size, round(iters * share_of_iters)))
    return stages
