"""Sparse attention of one layer: cluster, permute, select, attend, and put the tokens back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kernels import (
    Compensation,
    Permutation,
    cluster_attention,
    permute,
    sort_by_label,
    unpermute,
)
from svg2.clustering import Centroids, cluster_keys, cluster_queries
from svg2.config import SVG2Config
from svg2.plan import Plan
from svg2.selection import cluster_mass, select_from_mass
from svg2.stats import StageClock


@dataclass(frozen=True)
class SparseResult:
    """Attention output in the tokens' own order, and the plan that it followed."""

    out: Float[Tensor, "B H N D"]
    plan: Plan


def sparse_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    config: SVG2Config,
    centroids: Centroids,
    clock: StageClock,
) -> SparseResult:
    """Self-attention of each query over the keys of the clusters that its own cluster keeps.

    `q` and `k` come after norm and RoPE. `centroids` warm-starts k-means and is updated; `clock`
    gets the stages `kmeans`, `permute`, `select` and `attention`.

    Raises:
        ConfigError: there are more clusters than tokens.
        kernels.ImplUnavailable: `config.impl` names kernels that can't run here.
    Source: SVG2, arXiv 2505.18875; compensation after SVG-EAR, arXiv 2603.08982.
    """
    config.check_tokens(q.shape[2])
    q_clusters = cluster_queries(q, config, centroids)
    k_clusters = cluster_keys(k, config, centroids)
    clock.mark("kmeans")

    q_order = sort_by_label(q_clusters.labels, config.num_q_clusters, impl=config.impl)
    k_order = sort_by_label(k_clusters.labels, config.num_k_clusters, impl=config.impl)
    q_sorted, k_sorted, v_sorted = permute(q, q_order), permute(k, k_order), permute(v, k_order)
    clock.mark("permute")

    P = cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes)
    kept = select_from_mass(P, k_clusters.sizes, config.top_p, config.min_keep_ratio)
    clock.mark("select")

    compensation = None
    if config.compensate:
        v_centroids = cluster_means(v_sorted, k_order)
        compensation = Compensation(k_clusters.centroids, v_centroids)
    out_sorted = cluster_attention(
        q_sorted,
        k_sorted,
        v_sorted,
        q_order.offsets,
        k_order.offsets,
        kept,
        compensation=compensation,
        impl=config.impl,
    )
    clock.mark("attention")
    out = unpermute(out_sorted, q_order)
    clock.mark("permute")
    return SparseResult(out, Plan(q_clusters, k_clusters, q_order, k_order, P, kept))


def cluster_means(
    x_sorted: Float[Tensor, "B H N D"], order: Permutation
) -> Float32[Tensor, "B H K D"]:
    """Mean of each cluster, of tokens already in cluster order; 0 for an empty cluster."""
    sizes_BHK = order.sizes
    # All heads laid end to end are one run of segments; summing by segment is deterministic,
    # scatter-add is not.
    sums = torch.segment_reduce(
        x_sorted.float().flatten(0, 2), "sum", lengths=sizes_BHK.flatten().long(), unsafe=True
    )
    return sums.view(*sizes_BHK.shape, -1) / sizes_BHK.clamp(min=1).unsqueeze(-1)
