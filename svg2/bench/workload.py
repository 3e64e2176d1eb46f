"""What the benchmarks attend to: tokens of a smooth moving field, clustered by real k-means."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels import Compensation, KMeansResult, init_centroids, kmeans, permute, sort_by_label
from svg2.attention import cluster_means
from svg2.selection import cluster_mass, select_from_mass

_COLD_ITERS = 10
_BISECTIONS = 30


@dataclass(frozen=True)
class Workload:
    """Sizes of one problem.

    Attributes:
        grid: latent frames, rows, columns.
        densities: kept shares of the attention matrix to aim at, each in (0, 1].
    """

    grid: tuple[int, int, int]
    num_q_clusters: int
    num_k_clusters: int
    densities: tuple[float, ...]
    heads: int = 4
    head_dim: int = 64
    seed: int = 0

    @property
    def tokens(self) -> int:
        """N."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Clustered:
    """Tokens in their own order, and the same in the order of their clusters."""

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H N D"]
    v: Float[Tensor, "B H N D"]
    q_clusters: KMeansResult
    k_clusters: KMeansResult
    q_sorted: Float[Tensor, "B H N D"]
    k_sorted: Float[Tensor, "B H N D"]
    v_sorted: Float[Tensor, "B H N D"]
    q_offsets: Int[Tensor, "B H Q1"]
    k_offsets: Int[Tensor, "B H K1"]
    compensation: Compensation


def make_clustered(workload: Workload) -> Clustered:
    """Draw the tokens of `workload` and cluster them from a cold start."""
    generator = torch.Generator().manual_seed(workload.seed)
    # Queries and keys share a field and differ by a weaker one each, so that attention is local
    # in what tokens look like, as a trained model's is.
    shared, of_q, of_k, v = (_field(workload, generator) for _ in range(4))
    q, k = shared + 0.3 * of_q, shared + 0.3 * of_k
    q_clusters = _cluster(q, workload.num_q_clusters, generator)
    k_clusters = _cluster(k, workload.num_k_clusters, generator)
    q_order = sort_by_label(q_clusters.labels, workload.num_q_clusters)
    k_order = sort_by_label(k_clusters.labels, workload.num_k_clusters)
    v_sorted = permute(v, k_order)
    return Clustered(
        q=q,
        k=k,
        v=v,
        q_clusters=q_clusters,
        k_clusters=k_clusters,
        q_sorted=permute(q, q_order),
        k_sorted=permute(k, k_order),
        v_sorted=v_sorted,
        q_offsets=q_order.offsets,
        k_offsets=k_order.offsets,
        compensation=Compensation(k_clusters.centroids, cluster_means(v_sorted, k_order)),
    )


def select_density(
    clustered: Clustered, density: float
) -> tuple[float, Bool[Tensor, "B H Q K"], float]:
    """The `top_p` whose selection comes nearest above `density`, its map, and its density."""
    P = cluster_mass(
        clustered.q_clusters.centroids, clustered.k_clusters.centroids, clustered.k_clusters.sizes
    )

    def select(top_p: float) -> tuple[float, Bool[Tensor, "B H Q K"], float]:
        kept = select_from_mass(P, clustered.k_clusters.sizes, top_p, 0.0)
        return top_p, kept, density_of(clustered, kept)

    low, best = 0.0, select(1.0)
    for _ in range(_BISECTIONS if density < 1 else 0):
        middle = select((low + best[0]) / 2)
        if middle[2] >= density:
            best = middle
        else:
            low = middle[0]
    return best


def density_of(clustered: Clustered, kept: Bool[Tensor, "B H Q K"]) -> float:
    """Kept query-key pairs over all of them."""
    q_sizes = clustered.q_clusters.sizes[..., None].double()
    k_sizes = clustered.k_clusters.sizes[:, :, None].double()
    return ((kept * q_sizes * k_sizes).sum() / (q_sizes * k_sizes).sum()).item()


def compute_density_of(clustered: Clustered, kept: Bool[Tensor, "B H Q K"]) -> float:
    """Density and the virtual keys that stand for skipped clusters, over all pairs."""
    q_sizes = clustered.q_clusters.sizes[..., None].double()
    k_sizes = clustered.k_clusters.sizes[:, :, None].double()
    virtual = (~kept & (k_sizes > 0)) * q_sizes
    return density_of(clustered, kept) + (virtual.sum() / (q_sizes * k_sizes).sum()).item()


def _field(workload: Workload, generator: torch.Generator) -> Float[Tensor, "1 H N D"]:
    """Random waves over frames, rows and columns, of unit variance, and some noise."""
    axes = [torch.linspace(0, 1, length) for length in workload.grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    shape = (workload.heads, 1, workload.head_dim)
    waves = torch.randn(workload.heads, 3, workload.head_dim, generator=generator)
    waves *= torch.tensor([2.0, 5.0, 5.0])[:, None]  # slower in time than in space
    phases = 2 * math.pi * torch.rand(shape, generator=generator)
    smooth = math.sqrt(2) * torch.cos(places @ waves + phases)
    return (smooth + 0.3 * torch.randn(smooth.shape, generator=generator))[None]


def _cluster(
    x: Float[Tensor, "B H N D"], num_clusters: int, generator: torch.Generator
) -> KMeansResult:
    return kmeans(x, init_centroids(x, num_clusters, generator), _COLD_ITERS)
