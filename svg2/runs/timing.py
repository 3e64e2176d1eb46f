"""How much faster one run was than another, and whether that can be believed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SHARED_WORK_SLACK = 0.1
MOST_SCALED = 0.4


@dataclass(frozen=True)
class Steps:
    """Times of one run's steps.

    Attributes:
        seconds: of each step.
        attention: seconds of self-attention in each, with all that its method does for it; None
            where it could not be told apart.
        is_dense: whether each step ran dense.
    """

    seconds: Sequence[float]
    attention: Sequence[float | None]
    is_dense: Sequence[bool]

    @property
    def shared(self) -> list[float | None]:
        """Seconds of each step that are the same work in every run: all but self-attention."""
        return [
            None if part is None else whole - part
            for whole, part in zip(self.seconds, self.attention, strict=True)
        ]


@dataclass(frozen=True)
class Timing:
    """A sparse run against a dense one.

    Attributes:
        speedup: how many times as long the dense loop takes. Steps that ran sparse count
            by the median of their paired ratios, so that no single step decides; the first of
            them, which clusters from scratch, and the dense ones count as they were.
        quartiles: of those paired ratios; None for fewer than four.
        shared_ratio: time of the shared work in the sparse run over that in the dense run, the
            median over steps; None where attention could not be told apart. The machine was as
            fast in both runs where it is 1.
        is_scaled: whether the speedup was scaled by `shared_ratio`, since the two runs were not
            made in turns.
        is_disturbed: whether the speedup can't be believed: the runs took turns and their shared
            work still differs by more than a tenth; or it was scaled by more than is safe.
    """

    speedup: float
    quartiles: tuple[float, float] | None
    shared_ratio: float | None
    is_scaled: bool
    is_disturbed: bool


def timing(dense: Steps, sparse: Steps, in_turns: bool) -> Timing:
    """Compare the steps of two runs of the same request.

    Args:
        in_turns: whether the steps were made in turns, so that the nth ones of both met the same
            machine.
    """
    shared_ratio = _shared_ratio(dense, sparse)
    scale = 1.0 if in_turns or shared_ratio is None else shared_ratio
    ratios = [scale * d / s for d, s in zip(dense.seconds, sparse.seconds, strict=True)]
    places = [i for i, dense_step in enumerate(sparse.is_dense) if not dense_step]
    steady = [ratios[i] for i in places[1:]]
    counted = list(ratios)
    if steady:
        for i in places[1:]:
            counted[i] = statistics.median(steady)
    # Each step weighs what it took dense.
    total = sum(dense.seconds)
    speedup = total / sum(d / r for d, r in zip(dense.seconds, counted, strict=True))
    quartiles = None
    if len(steady) >= 4:
        low, _, high = statistics.quantiles(steady, n=4, method="inclusive")
        quartiles = (low, high)
    off = 0.0 if shared_ratio is None else abs(shared_ratio - 1)
    return Timing(
        speedup=speedup,
        quartiles=quartiles,
        shared_ratio=shared_ratio,
        is_scaled=scale != 1.0,
        is_disturbed=off > (SHARED_WORK_SLACK if in_turns else MOST_SCALED),
    )


def _shared_ratio(dense: Steps, sparse: Steps) -> float | None:
    pairs = [
        s / d for d, s in zip(dense.shared, sparse.shared, strict=True) if d and s is not None
    ]
    return statistics.median(pairs) if pairs else None
