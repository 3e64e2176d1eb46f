"""Attention masses of key clusters, estimated from centroids."""

import math

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kernels import StandIns, cluster_means, full_fp32
from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens


def route(tokens: Tokens, config: SVG2Config) -> Routed:
    """The router of SVG2: masses from centroids alone. Nothing stands for what is skipped."""
    q_clusters, k_clusters = tokens.q_clusters, tokens.k_clusters
    return Routed(cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes))


def route_with_centroids(tokens: Tokens, config: SVG2Config) -> Routed:
    """The same masses; the centroids of skipped clusters stand in for them, after SVG-EAR."""
    return Routed(route(tokens, config).P, stand_ins=centroid_stand_ins(tokens, config))


def centroid_stand_ins(tokens: Tokens, config: SVG2Config) -> StandIns:
    """Mean key and value of each cluster, with the weight of all its keys."""
    values = cluster_means(tokens.v, tokens.k_order, impl=config.impl)
    return StandIns(tokens.k_clusters.centroids, values)


def cluster_mass(
    q_centroids: Float[Tensor, "B H Q D"],
    k_centroids: Float[Tensor, "B H K D"],
    k_sizes: Int[Tensor, "B H K"],
) -> Float32[Tensor, "B H Q K"]:
    """Attention mass of each key cluster per query cluster, estimated from centroids.

    The mass is cluster size times exp(score), normalised over K. It is computed in fp32, also
    under autocast and TF32. An empty cluster has a mass of exactly 0.

    Source: SVG2, arXiv 2505.18875, section on top-p dynamic budget control.
    """
    with full_fp32():
        scale = 1.0 / math.sqrt(q_centroids.shape[-1])
        scores_BHQK = (q_centroids.float() * scale) @ k_centroids.float().mT
        log_sizes_BHK = k_sizes.float().log()  # log 0 is -inf; softmax turns it into exactly 0
        return torch.softmax(scores_BHQK + log_sizes_BHK.unsqueeze(-2), dim=-1)
