"""Masks in Python, the truth: block densities and tiles of a selection, with no N×N array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from svg2.trace.records import Record

Order = Literal["original", "permuted"]

_AT_ONCE = 1 << 22  # counts of clusters in bins


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
    touched = _of_both(record, kept, order, lambda rows, labels: _any_of(rows, labels, tile))
    # All tiles are as wide as the first but the last, which may be narrower.
    row_pairs = lengths[0] * touched.sum(axis=1) - (lengths[0] - lengths[-1]) * touched[:, -1]
    return TileWaste(
        touched=int(touched.sum()),
        total=touched.size,
        kept_pairs=_pairs(record, kept),
        touched_pairs=int(row_pairs @ lengths),
    )


def _pairs(record: Record, kept: Bool[ndarray, "Q K"]) -> int:
    return int(record.q_sizes.astype(np.float64) @ kept @ record.k_sizes.astype(np.float64))


def _kept_pairs(
    record: Record, kept: Bool[ndarray, "Q K"], edges: Int[ndarray, " edges"], order: Order
) -> Float[ndarray, "bins bins"]:
    """Kept token pairs of each two bins: whole numbers, which float64 multiplies far faster."""
    return _of_both(record, kept, order, lambda rows, labels: _sum_of(rows, labels, edges))


def _of_both(
    record: Record,
    kept: Bool[ndarray, "Q K"],
    order: Order,
    gather: Callable[[ndarray, ndarray], ndarray],
) -> Shaped[ndarray, "bins bins"]:
    """Gathers rows of clusters into bins of tokens, for queries and for keys.

    The side of more clusters comes first: what is held between the two is then small.
    """
    if order not in ("original", "permuted"):
        raise ValueError(f"order must be original or permuted, got {order!r}.")
    q_labels, k_labels = record.q_labels, record.k_labels
    if order == "permuted":  # what stays of a stable sort by label is the labels in order
        q_labels, k_labels = np.sort(q_labels), np.sort(k_labels)
    if kept.shape[0] >= kept.shape[1]:
        return gather(gather(kept, q_labels).T, k_labels).T
    return gather(gather(kept.T, k_labels).T, q_labels)


def _sum_of(
    rows: Shaped[ndarray, "C M"], labels: Int[ndarray, " N"], edges: Int[ndarray, " edges"]
) -> Float[ndarray, "bins M"]:
    """For each bin the sum of the rows of its tokens' clusters."""
    clusters, rows = len(rows), rows.astype(np.float64)
    found = []
    step = max(1, _AT_ONCE // clusters)
    for first in range(0, len(edges) - 1, step):
        inner = edges[first : first + step + 1]
        bins = np.repeat(np.arange(len(inner) - 1), np.diff(inner))
        places = bins * clusters + labels[inner[0] : inner[-1]]
        counts = np.bincount(places, minlength=(len(inner) - 1) * clusters)
        found.append(counts.reshape(-1, clusters).astype(np.float64) @ rows)
    return np.concatenate(found)


def _any_of(
    rows: Bool[ndarray, "C M"], labels: Int[ndarray, " N"], tile: int
) -> Bool[ndarray, "bins M"]:
    """For each `tile` tokens the union of the rows of their clusters."""
    bins = -(-len(labels) // tile)
    padded = np.pad(labels, (0, bins * tile - len(labels)), mode="edge").reshape(bins, tile)
    padded = np.sort(padded, axis=1)
    packed = np.packbits(np.ascontiguousarray(rows), axis=1)  # 8 columns in one byte
    found = packed[padded[:, 0]]
    for before, now in pairwise(padded.T):
        is_new = before != now
        found[is_new] |= packed[now[is_new]]
    return np.unpackbits(found, axis=1, count=rows.shape[1]).view(bool)
