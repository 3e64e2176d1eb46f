"""One call of cluster attention as its kernels take it."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """The inputs and the result of one call.

    Attributes:
        q, out: any strides over batch, heads and tokens; in the order that `q_perm` permutes, or
            in the order of their clusters without it.
        k, v: contiguous, in the order of their clusters.
        q_offsets, k_offsets: contiguous int32.
        kept: contiguous.
        scale: of the logits, above 0.
        virtual_k, virtual_v: keys and values that stand for skipped clusters, contiguous and in
            the dtype of q; with Q where each query cluster has its own; None without compensation.
        log_weights: fp32, added to the logits of virtual keys, with a Q of stride 0 where all
            query clusters share them; None for the logarithms of the sizes.
        q_perm: row of q and `out` of each query, or None.
    """

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H S D"]
    v: Float[Tensor, "B H S D"]
    out: Float[Tensor, "B H N D"]
    q_offsets: Int[Tensor, "B H Q1"]
    k_offsets: Int[Tensor, "B H K1"]
    kept: Bool[Tensor, "B H Q K"]
    scale: float
    virtual_k: Float[Tensor, "B H ... D"] | None
    virtual_v: Float[Tensor, "B H ... D"] | None
    log_weights: Float[Tensor, "BH Q K"] | None
    q_perm: Int[Tensor, "B H N"] | None

    @property
    def compensates(self) -> bool:
        """Whether virtual keys stand for what is skipped."""
        return self.virtual_k is not None

    @property
    def has_pairs(self) -> bool:
        """Whether each query cluster has virtual keys of its own."""
        return self.virtual_k is not None and self.virtual_k.ndim == 5


@dataclass(frozen=True)
class Items:
    """The work list of one launch, as long as its bound; what counts is known to the device alone.

    Attributes:
        places: row of the query cluster in the lists, and first query.
        count: how many there are.
        ticket: zero; a persistent kernel counts in it what it has given out.
    """

    places: Int[Tensor, "bound 2"]
    count: Int[Tensor, " 1"]
    ticket: Int[Tensor, " 1"]


@dataclass(frozen=True)
class Lists:
    """What each query cluster keeps, in rows of (head, query cluster), and who attends to it.

    Attributes:
        tiles: first key of each full tile; one more entry may be read than there are.
        chunks: code of each chunk, its start shifted by `LENGTH_BITS` and its length; padded with
            empty chunks up to a tile, and one tile more.
        counts: full tiles, and tiles of chunks.
        bias: what is added to the logits of virtual keys, over ln 2: the weight given, or else the
            logarithm of the size of a skipped cluster, -inf for any other; None without
            compensation.
        bias_stride: length of a row of biases.
        items: a work list for each launch: of the main tiling, and of the tail where there is one.
    """

    tiles: Int[Tensor, "rows tiles_stride"]
    chunks: Int[Tensor, "rows chunks_stride"]
    counts: Int[Tensor, "rows 2"]
    bias: Float[Tensor, "rows bias_stride"] | None
    bias_stride: int
    items: tuple[Items, ...]
