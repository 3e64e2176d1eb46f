"""The input of the benchmarks: synthetic tokens that vary smoothly, clustered by k-means."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels import (
    Impl,
    KMeansResult,
    StandIns,
    cluster_means,
    init_centroids,
    kmeans,
    permute,
    sort_by_label,
)
from svg2.method.selection.masses import cluster_mass
from svg2.method.selection.top_p import keep_top_p

WARM_KMEANS_ITERS = 2
"""k-means iterations of a warm step, as published."""

_COLD_KMEANS_ITERS = 10
_PUBLISHED_TOP_P, _PUBLISHED_MIN_KEEP_RATIO = 0.9, 0.1
_BISECTIONS = 30


@dataclass(frozen=True)
class Workload:
    """Sizes of one problem.

    Attributes:
        grid: latent frames, rows and columns; one video token each.
        num_q_clusters, num_k_clusters: clusters of the video tokens.
        densities: densities to measure at, each in (0, 1].
        text_tokens: prompt tokens after the video tokens. They attend to all tokens and all
            tokens attend to them. They form one more query cluster and one more key cluster.
    """

    grid: tuple[int, int, int]
    num_q_clusters: int
    num_k_clusters: int
    densities: tuple[float, ...]
    heads: int = 4
    head_dim: int = 64
    seed: int = 0
    text_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens, N, with the prompt tokens."""
        return math.prod(self.grid) + self.text_tokens

    @property
    def title(self) -> str:
        """Number of tokens and of clusters, for progress messages."""
        return f"N {self.tokens}, {self.num_q_clusters}/{self.num_k_clusters} clusters"

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes as every row of a record holds them."""
        return {
            "tokens": self.tokens,
            "text_tokens": self.text_tokens,
            "grid": list(self.grid),
            "heads": self.heads,
            "head_dim": self.head_dim,
            "num_q_clusters": self.num_q_clusters,
            "num_k_clusters": self.num_k_clusters,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class ClusteredWorkload:
    """The tokens of a workload, clustered and sorted by cluster.

    N counts video tokens; S counts prompt tokens too. Q1 and K1 are the numbers of clusters plus
    one; prompt tokens, if any, are the last cluster of each side.

    Attributes:
        q, k, v: video tokens in their own order.
        q_clusters, k_clusters: clusters of the video tokens.
        q_sorted, k_sorted, v_sorted, q_offsets, k_offsets, stand_ins: arguments of
            `kernels.cluster_attention`.
    """

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H N D"]
    v: Float[Tensor, "B H N D"]
    q_clusters: KMeansResult
    k_clusters: KMeansResult
    q_sorted: Float[Tensor, "B H S D"]
    k_sorted: Float[Tensor, "B H S D"]
    v_sorted: Float[Tensor, "B H S D"]
    q_offsets: Int[Tensor, "B H Q1"]
    k_offsets: Int[Tensor, "B H K1"]
    stand_ins: StandIns

    def with_text(self, kept: Bool[Tensor, "B H Q K"]) -> Bool[Tensor, "B H Q2 K2"]:
        """Add the prompt tokens' row and column, all kept, to a selection of video clusters."""
        extra_q = self.q_offsets.shape[-1] - 1 - kept.shape[2]
        extra_k = self.k_offsets.shape[-1] - 1 - kept.shape[3]
        return torch.nn.functional.pad(kept, (0, extra_k, 0, extra_q), value=True)


def make_clustered(
    workload: Workload,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> ClusteredWorkload:
    """Draw the tokens of a workload from its seed and cluster them from a cold start.

    Args:
        device, dtype: of the tokens.
        impl: kernels that cluster and sort.

    Raises:
        kernels.ImplUnavailable: `impl` can't run here.
    """
    generator = torch.Generator(device).manual_seed(workload.seed)
    # Queries and keys are one shared field plus a weaker field of their own. So a query attends
    # mostly to keys that look like it, as in a trained model.
    shared, of_q, of_k, v = (_field(workload, generator) for _ in range(4))
    q, k = of_q.mul_(0.3).add_(shared).to(dtype), of_k.mul_(0.3).add_(shared).to(dtype)
    v = v.to(dtype)
    del shared, of_q, of_k
    q_clusters = _cluster(q, workload.num_q_clusters, generator, impl)
    k_clusters = _cluster(k, workload.num_k_clusters, generator, impl)
    q_order = sort_by_label(q_clusters.labels, workload.num_q_clusters, impl=impl)
    k_order = sort_by_label(k_clusters.labels, workload.num_k_clusters, impl=impl)
    q_sorted, k_sorted, v_sorted = (
        permute(x, order, impl=impl) for x, order in ((q, q_order), (k, k_order), (v, k_order))
    )
    q_offsets, k_offsets = q_order.offsets, k_order.offsets
    k_centroids, v_centroids = k_clusters.centroids, cluster_means(v, k_order, impl=impl)
    if workload.text_tokens:
        shape = (1, workload.heads, workload.text_tokens, workload.head_dim)
        text = [torch.randn(shape, generator=generator, device=device) for _ in range(3)]
        q_sorted, k_sorted, v_sorted = (
            torch.cat([video, part.to(dtype)], dim=2)
            for video, part in zip((q_sorted, k_sorted, v_sorted), text, strict=True)
        )
        q_offsets, k_offsets = (
            torch.cat([x, x[..., -1:] + workload.text_tokens], dim=-1)
            for x in (q_offsets, k_offsets)
        )
        # Zeros: the text is never skipped, so its centroids are not read.
        k_centroids, v_centroids = (
            torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (k_centroids, v_centroids)
        )
    return ClusteredWorkload(
        q=q,
        k=k,
        v=v,
        q_clusters=q_clusters,
        k_clusters=k_clusters,
        q_sorted=q_sorted,
        k_sorted=k_sorted,
        v_sorted=v_sorted,
        q_offsets=q_offsets,
        k_offsets=k_offsets,
        stand_ins=StandIns(k_centroids, v_centroids),
    )


def select_density(
    clustered: ClusteredWorkload, density: float
) -> tuple[float, Bool[Tensor, "B H Q K"], float]:
    """Search the smallest `top_p` whose selection has at least the given density.

    Returns:
        The `top_p`, the selection and its density. The selection and the density include the
        prompt tokens.
    """
    P = _mass(clustered)

    def select(top_p: float) -> tuple[float, Bool[Tensor, "B H Q K"], float]:
        kept = keep_top_p(P, clustered.k_clusters.sizes, top_p, 0.0)
        kept = clustered.with_text(kept)
        return top_p, kept, density_of(clustered, kept)

    low, best = 0.0, select(1.0)
    for _ in range(_BISECTIONS if density < 1 else 0):
        middle = select((low + best[0]) / 2)
        if middle[2] >= density:
            best = middle
        else:
            low = middle[0]
    return best


def published_selection(clustered: ClusteredWorkload) -> Bool[Tensor, "B H Q K"]:
    """Select key clusters at the published settings: top-p 0.9, at least 10 % of the clusters.

    Only the video clusters are selected from. The suites time this function.
    """
    return keep_top_p(
        _mass(clustered),
        clustered.k_clusters.sizes,
        _PUBLISHED_TOP_P,
        _PUBLISHED_MIN_KEEP_RATIO,
    )


def density_of(clustered: ClusteredWorkload, kept: Bool[Tensor, "B H Q K"]) -> float:
    """Kept share of all query-key pairs, in (0, 1]."""
    q_sizes, k_sizes = _sizes(clustered)
    kept_keys = (kept.float() @ k_sizes.float().unsqueeze(-1)).squeeze(-1).double()
    return ((kept_keys * q_sizes).sum() / _pairs(q_sizes, k_sizes)).item()


def compute_density_of(clustered: ClusteredWorkload, kept: Bool[Tensor, "B H Q K"]) -> float:
    """Density plus what compensation computes: one key per query and skipped key cluster."""
    q_sizes, k_sizes = _sizes(clustered)
    virtual = (~kept & (k_sizes > 0).unsqueeze(-2)).sum(-1) * q_sizes
    return density_of(clustered, kept) + (virtual.sum() / _pairs(q_sizes, k_sizes)).item()


def spread(sizes: Int[Tensor, "B H C"]) -> dict[str, int]:
    """Smallest, median and largest cluster, in tokens."""
    flat = sizes.flatten()
    return {
        "min": int(flat.min()),
        "median": int(flat.median()),
        "max": int(flat.max()),
    }


def _mass(clustered: ClusteredWorkload) -> Float[Tensor, "B H Q K"]:
    q_clusters, k_clusters = clustered.q_clusters, clustered.k_clusters
    return cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes)


def _sizes(clustered: ClusteredWorkload) -> tuple[Tensor, Tensor]:
    return clustered.q_offsets.diff(dim=-1).double(), clustered.k_offsets.diff(dim=-1).double()


def _pairs(q_sizes: Tensor, k_sizes: Tensor) -> Tensor:
    return (q_sizes.sum(-1) * k_sizes.sum(-1)).sum()


def _field(workload: Workload, generator: torch.Generator) -> Float[Tensor, "1 H N D"]:
    """Random waves over frames, rows and columns, of unit variance, plus noise."""
    device = generator.device
    axes = [torch.linspace(0, 1, length, device=device) for length in workload.grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    shape = (workload.heads, 1, workload.head_dim)
    waves = torch.randn(workload.heads, 3, workload.head_dim, generator=generator, device=device)
    waves *= torch.tensor([2.0, 5.0, 5.0], device=device)[:, None]  # slower in time than in space
    phases = 2 * math.pi * torch.rand(shape, generator=generator, device=device)
    smooth = (places @ waves + phases).cos_().mul_(math.sqrt(2))
    noise = torch.randn(smooth.shape, generator=generator, device=device)
    return smooth.add_(noise, alpha=0.3)[None]


def _cluster(
    x: Float[Tensor, "B H N D"], num_clusters: int, generator: torch.Generator, impl: Impl
) -> KMeansResult:
    return kmeans(x, init_centroids(x, num_clusters, generator), _COLD_KMEANS_ITERS, impl=impl)
