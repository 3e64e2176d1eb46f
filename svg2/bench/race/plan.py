"""How a race spends its minutes: rounds that fit what is left, by costs that were measured."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

SHORT_ROUNDS = 3
MIN_LONG_ROUNDS, MAX_LONG_ROUNDS = 3, 15
_FINALISTS = 1 / 3
_HELD_BACK = 0.85  # of the time left: a plan is never exact


class Budget:
    """The seconds that are left.

    Args:
        seconds: from now on.
        clock: seconds that only grow.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds left; negative once the time is over."""
        return self._end - self._clock()

    def share(self, weight: float, all_weights: float) -> float:
        """Seconds for one of the tasks that are left, by its weight among them."""
        return max(0.0, self.left) * _HELD_BACK * weight / all_weights


class Costs:
    """What tasks cost, learned from those that are over: seconds per unit of work, by kind."""

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def learn(self, kind: str, work: float, seconds: float) -> None:
        """Remember the dearest rate that was seen."""
        self._rates[kind] = max(self._rates.get(kind, 0.0), seconds / work)

    def predict(self, kind: str, work: float) -> float:
        """Seconds that the work will take at least; 0 while nothing of its kind was measured."""
        return self._rates.get(kind, 0.0) * work


def rounds_within(seconds: float, ms_per_round: float, least: int, most: int) -> int:
    """Rounds that fit into `seconds`, from `least` to `most`."""
    if ms_per_round <= 0:
        return most
    return max(least, min(most, int(seconds * 1e3 / ms_per_round)))


def finalists(ms: Mapping[str, float], always: str) -> list[str]:
    """The fastest third, at least one, and `always` where it is among them; the fastest first."""
    ranked = sorted(ms, key=ms.__getitem__)
    best = ranked[: math.ceil(len(ranked) * _FINALISTS)]
    return best + [name for name in ranked if name == always and name not in best]


def trial_limit(finished: Sequence[float], count: int, most: float) -> float:
    """Seconds that a trial may take: once half of them are over, the others have a limit by those.

    Args:
        finished: seconds of the trials that are over.
        count: trials in all.
        most: seconds at most.
    """
    if not finished or 2 * len(finished) < count:
        return most
    return min(most, 10 + 1.5 * max(finished))


def winner_of(contests: list[Mapping[str, float]], default: str) -> dict[str, float]:
    """The variants that took part in all contests, the best first, with their scores.

    A score is the geometric mean over contests of the fastest time over the variant's own. The
    default stays first unless another is more than 1 % better: less is noise.

    Args:
        contests: milliseconds by variant, one mapping per contest.
    """
    if not contests:
        return {}
    everywhere = set.intersection(*(set(ms) for ms in contests))
    logs = {
        name: sum(math.log(min(ms.values()) / ms[name]) for ms in contests) / len(contests)
        for name in everywhere
    }
    ranked = sorted(logs, key=lambda name: (-logs[name] - 0.01 * (name == default), name))
    return {name: math.exp(logs[name]) for name in ranked}
