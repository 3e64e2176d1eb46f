"""What one sparse call computes: clusters, attention masses, kept pairs and densities."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from kernels import KMeansResult, Permutation, StandIns


@dataclass(frozen=True)
class Tokens:
    """Clustered video tokens of one call: the input of a router.

    Attributes:
        q, k, v: in their own order.
        k_sorted, v_sorted: in the order of their clusters.
        q_order, k_order: the orders of the clusters.
        q_clusters, k_clusters: clusters of the video tokens.
        grid: frames, rows and columns of tokens (T, Y, X); None where it is not known.
        sum_heads: adds up a tensor over the processes that share the heads; the identity in one.
    """

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H N D"]
    v: Float[Tensor, "B H N D"]
    k_sorted: Float[Tensor, "B H N D"]
    v_sorted: Float[Tensor, "B H N D"]
    q_order: Permutation
    k_order: Permutation
    q_clusters: KMeansResult
    k_clusters: KMeansResult
    grid: tuple[int, int, int] | None = None
    sum_heads: Callable[[Tensor], Tensor] = lambda x: x

    def pairs(self) -> Int[Tensor, "B H Q K"]:
        """Query-key pairs of each pair of clusters, int64."""
        q_sizes, k_sizes = self.q_clusters.sizes.long(), self.k_clusters.sizes.long()
        return q_sizes.unsqueeze(-1) * k_sizes.unsqueeze(-2)


@dataclass(frozen=True)
class Routed:
    """What a router found: the input of a selection.

    Attributes:
        P: attention mass of each key cluster per query cluster; rows sum to 1.
        error: predicted error of skipping each block, larger is worse; None without prediction.
        stand_ins: what stands for skipped key clusters; None if nothing does.
        passes: query-key products of the router per pair of a query cluster and a key, in units of
            one pair of attention.
    """

    P: Float32[Tensor, "B H Q K"]
    error: Float32[Tensor, "B H Q K"] | None = None
    stand_ins: StandIns | None = None
    passes: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Clusters, masses and the selection of one call.

    Attributes:
        q_clusters, k_clusters: clusters of the video tokens.
        P: attention mass of each key cluster per query cluster; rows sum to 1.
        kept: key clusters that each query cluster attends to.
        error: predicted error of skipping each block; None without prediction.
        has_stand_ins: whether something stands for skipped clusters.
        passes: as in `Routed`.
        kmeans_distances: distances that k-means computed, per head.
        n_text: number of prompt tokens of a joint model, without padding. They attend to all
            tokens and all tokens attend to them. Only the densities count them.
        pairs: kept query-key pairs of video tokens per head, where each query keeps single keys
            and `P` and `kept` are of one cluster of everything; None: whole clusters are kept.
        mass: attention mass of those pairs, mean over the queries; None without `pairs`.
    """

    q_clusters: KMeansResult
    k_clusters: KMeansResult
    P: Float32[Tensor, "B H Q K"]
    kept: Bool[Tensor, "B H Q K"]
    error: Float32[Tensor, "B H Q K"] | None = None
    has_stand_ins: bool = False
    passes: float = 0.0
    kmeans_distances: float = 0.0
    n_text: int = 0
    pairs: Int[Tensor, "B H"] | None = None
    mass: Float32[Tensor, "B H"] | None = None

    def density(self) -> Float64[Tensor, "B H"]:
        """Kept share of all query-key pairs, in (0, 1]; pairs are counted in integers."""
        pairs = self.pairs
        if pairs is None:
            pairs = self._pairs((self.kept * self._k_sizes.unsqueeze(-2)).sum(-1))
        n_video, n_text = self.q_clusters.labels.shape[-1], self.n_text
        text_pairs = n_text * (2 * n_video + n_text)
        return (pairs + text_pairs).double() / self._all_pairs

    def compute_density(self) -> Float64[Tensor, "B H"]:
        """`density` plus the pairs of stand-ins, one key a skipped cluster, and of the router."""
        density = self.density()
        if self.has_stand_ins:
            skipped_BHQK = ~self.kept & (self._k_sizes > 0).unsqueeze(-2)
            density = density + self._pairs(skipped_BHQK.sum(-1)).double() / self._all_pairs
        num_q, n_keys = self.P.shape[2], self.k_clusters.labels.shape[-1]
        return density + self.passes * num_q * n_keys / self._all_pairs

    def overhead_density(self) -> float:
        """Operations of k-means, as a share of those of all query-key pairs.

        A distance takes one product of D numbers, a pair of attention two.
        """
        return self.kmeans_distances / 2 / self._all_pairs

    def kept_mass(self) -> Float32[Tensor, "B H"]:
        """Attention mass of the kept clusters, as estimated; mean over the queries."""
        if self.mass is not None:
            return self.mass
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


@dataclass(frozen=True)
class TextTokens:
    """The T prompt tokens of a joint model, without padding.

    They attend to all tokens, and all tokens attend to them.
    """

    q: Float[Tensor, "B H T D"]
    k: Float[Tensor, "B H T D"]
    v: Float[Tensor, "B H T D"]

    def of_heads(self, heads: slice) -> "TextTokens":
        """The tokens of some heads alone."""
        return TextTokens(self.q[:, heads], self.k[:, heads], self.v[:, heads])


@dataclass(frozen=True)
class CallResult:
    """Output of a sparse call.

    Attributes:
        out: attention output of the video tokens, in their own order.
        plan: clusters, attention masses and kept pairs.
        text_out: attention output of the prompt tokens; None if there are none.
    """

    out: Float[Tensor, "B H N D"]
    plan: Plan
    text_out: Float[Tensor, "B H T D"] | None = None
