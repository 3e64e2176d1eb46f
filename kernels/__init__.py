"""Pure tensor operations of the sparse attention: k-means, permutation, routing, cluster
attention.

Dimension names used in every signature of this project:

    B  batch                 Q  query clusters
    H  heads                 K  key clusters
    N  tokens                C  clusters of either side
    D  head dimension

`S` stands for the tokens of the key side where they may differ in number from the queries; Q1,
K1 and C1 are one more than Q, K and C: the length of offsets.
Each op is one folder. `api.py` says what it does. `reference.py` is PyTorch: it defines the truth,
and it runs on CPUs. `fused` is Triton, and is imported when it first runs. No op has a backward
pass.
"""

from kernels.cluster_attention.api import cluster_attention
from kernels.cluster_attention.stand_ins import StandIns
from kernels.cpu import bf16_is_native, on_one_thread
from kernels.impl import MAX_K_CLUSTERS, Impl, ImplUnavailable, resolve_impl
from kernels.kmeans.api import KMeansResult, cluster_means, init_centroids, kmeans
from kernels.permutation.api import Permutation, permute, sort_by_label, unpermute
from kernels.precision import full_fp32
from kernels.routing.api import Routes, route

__all__ = [
    "MAX_K_CLUSTERS",
    "Impl",
    "ImplUnavailable",
    "KMeansResult",
    "Permutation",
    "Routes",
    "StandIns",
    "bf16_is_native",
    "cluster_attention",
    "cluster_means",
    "full_fp32",
    "init_centroids",
    "kmeans",
    "on_one_thread",
    "permute",
    "resolve_impl",
    "route",
    "sort_by_label",
    "unpermute",
]
