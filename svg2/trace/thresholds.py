"""Which gain a block needs at each budget, where one budget is for all heads of a layer."""

import numpy as np
from jaxtyping import Float, Float16, Float32, Int
from numpy import ndarray

from svg2.config import ceil_fraction
from svg2.trace.records import NO_GAIN, TICKS, mass_before

_MOST = 60_000.0  # above every gain: nothing but the heaviest fits


def log_gain(
    error: Float[ndarray, "*heads Q K"], k_sizes: Int[ndarray, "*heads K"]
) -> Float16[ndarray, "*heads Q K"]:
    """Logarithm of the predicted error per key; `NO_GAIN` for 0."""
    gain = error / np.maximum(k_sizes, 1)[..., None, :]
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(gain, dtype=np.float64), NO_GAIN).astype(np.float16)


def gain_thresholds(
    gain: Float16[ndarray, "H Q K"],
    P: Float[ndarray, "H Q K"],
    q_sizes: Int[ndarray, "H Q"],
    k_sizes: Int[ndarray, "H K"],
    min_keep_ratio: float,
) -> Float32[ndarray, " ticks"]:
    """Per budget i / `TICKS` of top-p the gain that a block must exceed to be kept.

    The budget in pairs is what top-p keeps in all heads. The heaviest block of each row is kept
    first; blocks of equal gain are kept or left together, as `svg2.method.selection.budget` does.
    """
    pairs = q_sizes[:, :, None].astype(np.int64) * k_sizes[:, None]
    filled = np.broadcast_to((k_sizes > 0)[:, None], P.shape)
    asked = _pairs_of_top_p(np.where(filled, P, -1.0), pairs, min_keep_ratio)
    heaviest = np.where(filled, P, -1.0).argmax(axis=-1)[..., None]
    spent = np.take_along_axis(pairs, heaviest, axis=-1).sum()
    others = filled.copy()
    np.put_along_axis(others, heaviest, False, axis=-1)
    order = np.argsort(-gain[others].astype(np.float32), kind="stable")
    ranked, cost = gain[others][order], np.cumsum(pairs[others][order])
    starts = np.flatnonzero(np.diff(ranked, prepend=np.float16(np.inf)))  # of each group of equals
    ends = np.append(starts[1:], len(ranked))
    group_cost = cost[ends - 1] if len(ranked) else np.zeros(0, np.int64)
    fitting = np.searchsorted(group_cost, asked - spent, side="right")
    values = np.append(ranked[starts].astype(np.float32), np.float32(NO_GAIN - 1))
    thresholds = np.where(asked >= pairs.sum(), np.float32(NO_GAIN - 1), values[fitting])
    thresholds = np.where(asked < spent, np.float32(_MOST), thresholds)
    return np.minimum.accumulate(thresholds).astype(np.float32)


def _pairs_of_top_p(
    P: Float[ndarray, "H Q K"], pairs: Int[ndarray, "H Q K"], min_keep_ratio: float
) -> Int[ndarray, " ticks"]:
    """Pairs that top-p keeps at each budget; P is below 0 for empty clusters."""
    order = np.argsort(-P, axis=-1, kind="stable")
    ranked = np.take_along_axis(P, order, axis=-1).clip(0).astype(np.float64)
    ranked /= np.maximum(ranked.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    # A block is kept from the first budget on that is above the mass before it.
    first = np.floor(mass_before(ranked) * TICKS + 1e-9).astype(np.int64) + 1
    first[..., : max(1, ceil_fraction(min_keep_ratio, P.shape[-1]))] = 0
    kept = np.bincount(
        first.clip(0, TICKS).ravel(),
        weights=np.take_along_axis(pairs, order, axis=-1).ravel(),
        minlength=TICKS + 1,
    )
    return np.cumsum(kept).round().astype(np.int64)
