"""What one sparse call computes: clusters, attention masses, kept pairs and densities."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from kernels import KMeansResult, full_fp32


@dataclass(frozen=True)
class Clustered:
    """Clustered queries and keys: the input of a selection.

    Attributes:
        q_clusters, k_clusters: clusters of the video tokens.
        P: estimated attention mass of each key cluster per query cluster; rows sum to 1.
    """

    q_clusters: KMeansResult
    k_clusters: KMeansResult
    P: Float32[Tensor, "B H Q K"]


@dataclass(frozen=True)
class Plan(Clustered):
    """Clustered queries and keys with the selection.

    Attributes:
        kept: key clusters that each query cluster attends to.
        n_text: number of prompt tokens of a joint model, without padding. They attend to all
            tokens and all tokens attend to them. Only the densities count them.
    """

    kept: Bool[Tensor, "B H Q K"]
    n_text: int = 0

    def density(self) -> Float64[Tensor, "B H"]:
        """Kept share of all query-key pairs, in (0, 1]; pairs are counted in integers."""
        keys_BHQ = (self.kept * self._k_sizes.unsqueeze(-2)).sum(-1)
        n_video, n_text = self.q_clusters.labels.shape[-1], self.n_text
        text_pairs = n_text * (2 * n_video + n_text)
        return (self._pairs(keys_BHQ) + text_pairs).double() / self._all_pairs

    def virtual_density(self) -> Float64[Tensor, "B H"]:
        """Share of all pairs that compensation computes: one key per skipped cluster."""
        skipped_BHQK = ~self.kept & (self._k_sizes > 0).unsqueeze(-2)
        return self._pairs(skipped_BHQK.sum(-1)).double() / self._all_pairs

    def kept_mass(self) -> Float32[Tensor, "B H"]:
        """Attention mass of the kept clusters, estimated from centroids; mean over the queries."""
        weights_BHQ = self.q_clusters.sizes.float()
        mass_BHQ = (self.P * self.kept).sum(-1)
        return (mass_BHQ * weights_BHQ).sum(-1) / weights_BHQ.sum(-1)

    @property
    def _k_sizes(self) -> Int[Tensor, "B H K"]:
        return self.k_clusters.sizes

    def _pairs(self, keys_BHQ: Int[Tensor, "B H Q"]) -> Int[Tensor, "B H"]:
        return (keys_BHQ.long() * self.q_clusters.sizes).sum(-1)

    @property
    def _all_pairs(self) -> int:
        n_q, n_k = (x.labels.shape[-1] for x in (self.q_clusters, self.k_clusters))
        return (n_q + self.n_text) * (n_k + self.n_text)


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
