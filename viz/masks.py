"""Masks in Python, the truth: block densities and tiles of a selection, with no N×N array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from svg2.trace.records import Record

Order = Literal["original", "permuted"]


@dataclass(frozen=True)
class TileWaste:
    """What a kernel of square tiles would have to touch for a selection.

    Attributes:
        touched: tiles that hold at least one kept pair; total: all tiles.
        kept_pairs: kept token pairs; touched_pairs: token pairs inside the touched tiles.
    """

    touched: int
    total: int
    kept_pairs: int
    touched_pairs: int

    @property
    def share(self) -> float:
        """Touched share of all tiles, 0 to 1."""
        return self.touched / self.total

    @property
    def waste(self) -> float:
        """Share of the touched pairs that was not asked for, 0 to 1; 0 where none is touched."""
        return 1 - self.kept_pairs / self.touched_pairs if self.touched_pairs else 0.0


def density(record: Record, kept: Bool[ndarray, "Q K"], n_text: int = 0) -> float:
    """Kept share of all token pairs, 0 to 1.

    Args:
        n_text: prompt tokens in the same attention, which see all and are seen by all.
    """
    n = len(record.q_labels)
    pairs = int(record.q_sizes.astype(np.int64) @ kept @ record.k_sizes.astype(np.int64))
    return (pairs + n_text * (2 * n + n_text)) / (n + n_text) ** 2


def block_density(
    record: Record, kept: Bool[ndarray, "Q K"], bins: int, order: Order
) -> Float[ndarray, "bins bins"]:
    """Kept share of each (query bin, key bin), exactly: A·M·Cᵀ over the areas (DESIGN 7.4).

    Bins are `bins` nearly equal runs of tokens, in their own order or sorted by cluster.

    Raises:
        ValueError: more bins than tokens, or none.
    """
    n = len(record.q_labels)
    if not 1 <= bins <= n:
        raise ValueError(f"bins must lie in 1…{n}, got {bins}.")
    edges = np.arange(bins + 1) * n // bins
    lengths = np.diff(edges)
    return _kept_pairs(record, kept, edges, order) / np.outer(lengths, lengths)


def tile_waste(record: Record, kept: Bool[ndarray, "Q K"], tile: int, order: Order) -> TileWaste:
    """Tiles of `tile`×`tile` tokens (the last ones may be smaller) that a selection touches.

    Raises:
        ValueError: `tile` is not positive.
    """
    if tile < 1:
        raise ValueError(f"tile must be positive, got {tile}.")
    n = len(record.q_labels)
    edges = np.append(np.arange(0, n, tile), n)
    lengths = np.diff(edges)
    pairs = _kept_pairs(record, kept, edges, order)
    touched = pairs > 0
    return TileWaste(
        touched=int(touched.sum()),
        total=touched.size,
        kept_pairs=int(pairs.sum()),
        touched_pairs=int(np.outer(lengths, lengths)[touched].sum()),
    )


def _kept_pairs(
    record: Record, kept: Bool[ndarray, "Q K"], edges: Int[ndarray, " edges"], order: Order
) -> Int[ndarray, "bins bins"]:
    if order not in ("original", "permuted"):
        raise ValueError(f"order must be original or permuted, got {order!r}.")
    num_q, num_k = kept.shape
    a = _counts(record.q_labels, num_q, edges, order)
    c = _counts(record.k_labels, num_k, edges, order)
    return a @ kept.astype(np.int64) @ c.T


def _counts(
    labels: Int[ndarray, " N"], clusters: int, edges: Int[ndarray, " edges"], order: Order
) -> Int[ndarray, "bins C"]:
    """Tokens of each cluster in each bin."""
    if order == "permuted":
        labels = np.sort(labels)  # what stays of a stable sort by label is the labels in order
    bin_of_token = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    counts = np.zeros((len(edges) - 1, clusters), np.int64)
    np.add.at(counts, (bin_of_token, labels), 1)
    return counts
