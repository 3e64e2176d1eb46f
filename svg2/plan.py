"""What one sparse attention call computes: clusters, the kept pairs, densities."""

from dataclasses import dataclass

from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from kernels import KMeansResult


@dataclass(frozen=True)
class Plan:
    """Queries and keys in clusters, and which key clusters each query cluster attends to.

    `n_text` real prompt tokens beside the video's see all and are seen by all; they are part of
    the densities and of nothing else here.
    """

    q_clusters: KMeansResult
    k_clusters: KMeansResult
    P: Float32[Tensor, "B H Q K"]
    kept: Bool[Tensor, "B H Q K"]
    n_text: int = 0

    def density(self) -> Float64[Tensor, "B H"]:
        """Kept share of all query-key pairs, exact; in (0, 1]."""
        # A row sum is at most N < 2**24 and so exact in fp32; their weighted sum needs fp64.
        keys_per_query_BHQ = self.kept.float() @ self.k_clusters.sizes.float().unsqueeze(-1)
        n_video, n_text = self.q_clusters.labels.shape[-1], self.n_text
        text_pairs = n_text * (2 * n_video + n_text)
        return (self._pairs(keys_per_query_BHQ.squeeze(-1)) + text_pairs) / self._all_pairs

    def virtual_density(self) -> Float64[Tensor, "B H"]:
        """What compensation computes, a virtual key per skipped cluster, over all pairs."""
        skipped_BHQK = ~self.kept & (self.k_clusters.sizes > 0).unsqueeze(-2)
        return self._pairs(skipped_BHQK.sum(-1).float()) / self._all_pairs

    def kept_mass(self) -> Float32[Tensor, "B H"]:
        """Attention mass that the kept clusters hold by the centroids, mean over the queries."""
        weights_BHQ = self.q_clusters.sizes.float()
        mass_BHQ = (self.P * self.kept).sum(-1)
        return (mass_BHQ * weights_BHQ).sum(-1) / weights_BHQ.sum(-1)

    def _pairs(self, keys_per_query_BHQ: Float32[Tensor, "B H Q"]) -> Float64[Tensor, "B H"]:
        return (keys_per_query_BHQ.double() * self.q_clusters.sizes.double()).sum(-1)

    @property
    def _all_pairs(self) -> int:
        n_q, n_k = (x.labels.shape[-1] for x in (self.q_clusters, self.k_clusters))
        return (n_q + self.n_text) * (n_k + self.n_text)
