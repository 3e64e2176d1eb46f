"""Masks in Python, the truth: block densities and tiles of a selection, with no N×N array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from svg2.trace.records import Record

Order = Literal["original", "permuted"]

_AT_ONCE_BYTES = 16 << 20


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
    return (_pairs(record, kept) + n_text * (2 * n + n_text)) / (n + n_text) ** 2


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
    q_labels, k_labels = (_in_order(x, order) for x in (record.q_labels, record.k_labels))
    of_key_tile = _any_of(kept.T, k_labels, edges)
    touched = _any_of(of_key_tile.T, q_labels, edges)
    # All tiles are as wide as the first but the last, which may be narrower.
    row_pairs = lengths[0] * touched.sum(axis=1) - (lengths[0] - lengths[-1]) * touched[:, -1]
    return TileWaste(
        touched=int(touched.sum()),
        total=touched.size,
        kept_pairs=_pairs(record, kept),
        touched_pairs=int(row_pairs @ lengths),
    )


def _pairs(record: Record, kept: Bool[ndarray, "Q K"]) -> int:
    return int(record.q_sizes.astype(np.int64) @ kept @ record.k_sizes.astype(np.int64))


def _any_of(
    rows: Bool[ndarray, "C M"], labels: Int[ndarray, " N"], edges: Int[ndarray, " edges"]
) -> Bool[ndarray, "bins M"]:
    """For each run of tokens the union of the rows of their clusters; 8 columns are one byte."""
    packed = np.packbits(rows, axis=1)
    found = np.empty((len(edges) - 1, packed.shape[1]), np.uint8)
    step = max(1, _AT_ONCE_BYTES // (packed.shape[1] * int(edges[1])))
    for first in range(0, len(found), step):
        inner = edges[first : first + step + 1]
        taken = packed[labels[inner[0] : inner[-1]]]
        np.bitwise_or.reduceat(
            taken, inner[:-1] - inner[0], axis=0, out=found[first : first + step]
        )
    return np.unpackbits(found, axis=1, count=rows.shape[1]).view(bool)


def _kept_pairs(
    record: Record, kept: Bool[ndarray, "Q K"], edges: Int[ndarray, " edges"], order: Order
) -> Float[ndarray, "bins bins"]:
    """Kept token pairs of each two bins: whole numbers, which float64 multiplies far faster."""
    num_q, num_k = kept.shape
    a = _counts(_in_order(record.q_labels, order), num_q, edges)
    c = _counts(_in_order(record.k_labels, order), num_k, edges)
    return a @ kept.astype(np.float64) @ c.T


def _in_order(labels: Int[ndarray, " N"], order: Order) -> Int[ndarray, " N"]:
    if order not in ("original", "permuted"):
        raise ValueError(f"order must be original or permuted, got {order!r}.")
    # What stays of a stable sort by label is the labels in order.
    return np.sort(labels) if order == "permuted" else labels


def _counts(
    labels: Int[ndarray, " N"], clusters: int, edges: Int[ndarray, " edges"]
) -> Float[ndarray, "bins C"]:
    """Tokens of each cluster in each bin."""
    bins = len(edges) - 1
    places = np.repeat(np.arange(bins) * clusters, np.diff(edges)) + labels
    counts = np.bincount(places, minlength=bins * clusters)
    return counts.reshape(bins, clusters).astype(np.float64)
