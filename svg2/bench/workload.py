"""What the benchmarks attend to: tokens of a smooth moving field, clustered by real k-means."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels import (
    Compensation,
    Impl,
    KMeansResult,
    cluster_means,
    init_centroids,
    kmeans,
    permute,
    sort_by_label,
)
from svg2.method.plan import cluster_mass
from svg2.method.selection.top_p import keep_top_p

_COLD_ITERS = 10
_BISECTIONS = 30


@dataclass(frozen=True)
class Workload:
    """Sizes of one problem.

    Attributes:
        grid: latent frames, rows, columns.
        densities: kept shares of the attention matrix to aim at, each in (0, 1].
        text_tokens: tokens after the video's that see all and are seen by all, as one more
            cluster of either side.
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
        """N, the text included."""
        return math.prod(self.grid) + self.text_tokens

    @property
    def title(self) -> str:
        """Tokens and clusters, for a person."""
        return f"N {self.tokens}, {self.num_q_clusters}/{self.num_k_clusters} clusters"

    @property
    def sizes(self) -> dict[str, Any]:
        """What every row of a record says of its problem."""
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
class Clustered:
    """The tokens of a workload in the order of their clusters.

    Attributes:
        q, k, v: the video's tokens in their own order.
        q_clusters, k_clusters: of the video's tokens.
        q_sorted, k_sorted, v_sorted, q_offsets, k_offsets, compensation: what cluster attention
            takes, with the text as the last cluster where there is some.
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
    compensation: Compensation

    def with_text(self, kept: Bool[Tensor, "B H Q K"]) -> Bool[Tensor, "B H Q2 K2"]:
        """The map of the video's clusters with the text's row and column, all kept."""
        extra_q = self.q_offsets.shape[-1] - 1 - kept.shape[2]
        extra_k = self.k_offsets.shape[-1] - 1 - kept.shape[3]
        return torch.nn.functional.pad(kept, (0, extra_k, 0, extra_q), value=True)


def make_clustered(
    workload: Workload,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> Clustered:
    """Draw the tokens of `workload` and cluster them from a cold start."""
    generator = torch.Generator(device).manual_seed(workload.seed)
    # Queries and keys share a field and differ by a weaker one each, so that attention is local
    # in what tokens look like, as a trained model's is.
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
        # The text is never skipped, so nothing ever stands for it.
        k_centroids, v_centroids = (
            torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (k_centroids, v_centroids)
        )
    return Clustered(
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
        compensation=Compensation(k_centroids, v_centroids),
    )


def select_density(
    clustered: Clustered, density: float
) -> tuple[float, Bool[Tensor, "B H Q K"], float]:
    """The `top_p` whose selection comes nearest above `density`, its map, and its density.

    The map is over all clusters, the text's among them, and so is the density.
    """
    P = cluster_mass(
        clustered.q_clusters.centroids, clustered.k_clusters.centroids, clustered.k_clusters.sizes
    )

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


def density_of(clustered: Clustered, kept: Bool[Tensor, "B H Q K"]) -> float:
    """Kept query-key pairs over all of them."""
    q_sizes, k_sizes = _sizes(clustered)
    kept_keys = (kept.float() @ k_sizes.float().unsqueeze(-1)).squeeze(-1).double()
    return ((kept_keys * q_sizes).sum() / _pairs(q_sizes, k_sizes)).item()


def compute_density_of(clustered: Clustered, kept: Bool[Tensor, "B H Q K"]) -> float:
    """Density and the virtual keys that stand for skipped clusters, over all pairs."""
    q_sizes, k_sizes = _sizes(clustered)
    virtual = (~kept & (k_sizes > 0).unsqueeze(-2)).sum(-1) * q_sizes
    return density_of(clustered, kept) + (virtual.sum() / _pairs(q_sizes, k_sizes)).item()


def spread(sizes: Int[Tensor, "B H C"]) -> dict[str, int]:
    """How ragged clusters are."""
    flat = sizes.flatten()
    return {
        "min": int(flat.min()),
        "median": int(flat.median()),
        "max": int(flat.max()),
    }


def _sizes(clustered: Clustered) -> tuple[Tensor, Tensor]:
    return clustered.q_offsets.diff(dim=-1).double(), clustered.k_offsets.diff(dim=-1).double()


def _pairs(q_sizes: Tensor, k_sizes: Tensor) -> Tensor:
    return (q_sizes.sum(-1) * k_sizes.sum(-1)).sum()


def _field(workload: Workload, generator: torch.Generator) -> Float[Tensor, "1 H N D"]:
    """Random waves over frames, rows and columns, of unit variance, and some noise."""
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
    return kmeans(x, init_centroids(x, num_clusters, generator), _COLD_ITERS, impl=impl)
