"""What one sparse attention call computes: clusters, their order, the kept pairs, densities."""

from dataclasses import dataclass

from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from kernels import KMeansResult, Permutation


@dataclass(frozen=True)
class Plan:
    """Queries and keys in clusters, and which key clusters each query cluster attends to."""

    q_clusters: KMeansResult
    k_clusters: KMeansResult
    q_order: Permutation
    k_order: Permutation
    P: Float32[Tensor, "B H Q K"]
    kept: Bool[Tensor, "B H Q K"]

    def density(self) -> Float64[Tensor, "B H"]:
        """Kept share of the N x N query-key pairs, exact; in (0, 1]."""
        # A row sum is at most N < 2**24 and so exact in fp32; their weighted sum needs fp64.
        keys_per_query_BHQ = self.kept.float() @ self.k_clusters.sizes.float().unsqueeze(-1)
        return self._share_of_pairs(keys_per_query_BHQ.squeeze(-1))

    def virtual_density(self) -> Float64[Tensor, "B H"]:
        """What compensation computes, a virtual key per skipped cluster, over the N x N pairs."""
        skipped_BHQK = ~self.kept & (self.k_clusters.sizes > 0).unsqueeze(-2)
        return self._share_of_pairs(skipped_BHQK.sum(-1).float())

    def kept_mass(self) -> Float32[Tensor, "B H"]:
        """Attention mass that the kept clusters hold by the centroids, mean over the queries."""
        weights_BHQ = self.q_clusters.sizes.float()
        mass_BHQ = (self.P * self.kept).sum(-1)
        return (mass_BHQ * weights_BHQ).sum(-1) / weights_BHQ.sum(-1)

    def _share_of_pairs(
        self, keys_per_query_BHQ: Float32[Tensor, "B H Q"]
    ) -> Float64[Tensor, "B H"]:
        q_sizes_BHQ = self.q_clusters.sizes.double()
        n_q = self.q_clusters.labels.shape[-1]
        n_k = self.k_clusters.labels.shape[-1]
        return (keys_per_query_BHQ.double() * q_sizes_BHQ).sum(-1) / (n_q * n_k)
