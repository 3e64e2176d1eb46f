"""Which key clusters each query cluster attends to: top-p over centroid mass, in fp32."""

import math

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from svg2.config import ceil_fraction


def cluster_mass(
    q_centroids: Float[Tensor, "B H Q D"],
    k_centroids: Float[Tensor, "B H K D"],
    k_sizes: Int[Tensor, "B H K"],
) -> Float32[Tensor, "B H Q K"]:
    """Attention mass of each key cluster for each query cluster, estimated from centroids.

    Cluster size times exp(score), normalised over K; an empty cluster holds exactly 0.

    Source: SVG2, arXiv 2505.18875, section on top-p dynamic budget control.
    """
    scale = 1.0 / math.sqrt(q_centroids.shape[-1])
    scores_BHQK = (q_centroids.float() * scale) @ k_centroids.float().mT
    log_sizes_BHK = k_sizes.float().log()  # log 0 is -inf, which softmax turns into an exact 0
    return torch.softmax(scores_BHQK + log_sizes_BHK.unsqueeze(-2), dim=-1)


def select_from_mass(
    P: Float[Tensor, "B H Q K"],
    k_sizes: Int[Tensor, "B H K"],
    top_p: float,
    min_keep_ratio: float,
) -> Bool[Tensor, "B H Q K"]:
    """Keep, per query cluster, the fewest key clusters whose mass reaches `top_p`.

    Heaviest first, ties by index. The heaviest is always kept, and at least
    `ceil(min_keep_ratio * K)` are; an empty one never is; `top_p` 1 keeps all others.

    Raises:
        ValueError: `top_p` is outside (0, 1] or `min_keep_ratio` outside [0, 1].
    Source: SVG2, arXiv 2505.18875, section on top-p dynamic budget control.
    """
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}.")
    if not 0.0 <= min_keep_ratio <= 1.0:
        raise ValueError(f"min_keep_ratio must be from 0 to 1, not {min_keep_ratio}.")
    filled_BHQK = (k_sizes > 0).unsqueeze(-2).expand(P.shape)
    if top_p == 1.0:  # rounding may bring the running sum to 1 before the last cluster
        return filled_BHQK.clone()
    sorted_P, order = torch.sort(P, dim=-1, descending=True, stable=True)
    mass_before = torch.zeros_like(sorted_P)
    torch.cumsum(sorted_P[..., :-1], dim=-1, out=mass_before[..., 1:])
    kept_sorted = mass_before < top_p
    kept_sorted[..., : min_keep_count(min_keep_ratio, P.shape[-1])] = True
    kept = torch.zeros_like(kept_sorted).scatter_(-1, order, kept_sorted)
    return kept & filled_BHQK


def select_key_clusters(
    q_centroids: Float[Tensor, "B H Q D"],
    k_centroids: Float[Tensor, "B H K D"],
    k_sizes: Int[Tensor, "B H K"],
    top_p: float,
    min_keep_ratio: float,
) -> Bool[Tensor, "B H Q K"]:
    """The selection of SVG2 from centroids and sizes: `select_from_mass` of `cluster_mass`.

    Raises:
        ValueError: `top_p` is outside (0, 1] or `min_keep_ratio` outside [0, 1].
    """
    P = cluster_mass(q_centroids, k_centroids, k_sizes)
    return select_from_mass(P, k_sizes, top_p, min_keep_ratio)


def min_keep_count(min_keep_ratio: float, num_k_clusters: int) -> int:
    """Number of key clusters kept per query cluster whatever their mass; at least 1."""
    return max(1, ceil_fraction(min_keep_ratio, num_k_clusters))
