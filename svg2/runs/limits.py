"""What one run of a shared page or service may cost, and what it is expected to take there."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svg2.errors import RequestError
from svg2.models.spec import ModelSpec
from svg2.runs.run import Run

# The built-in model's default video: a smaller model's is no measure.
_LEAST_FORWARDS, _LEAST_TOKENS = 8, 9792


@dataclass(frozen=True)
class Limits:
    """Limits of one run. A model's own default video is always within them.

    Attributes:
        work: times the work of the model's default video, as `work_of` counts it.
        clusters: of queries, and of keys; more where the model's own settings have more.
        kmeans_iters: on a cold start, and on each later step; more where the model's have more.
        seconds: what a run may take.
    """

    work: float = 8.0
    clusters: int = 1000
    kmeans_iters: int = 50
    seconds: float = 1200.0

    def check(self, run: Run, spec: ModelSpec, num_runs: int = 2, seconds: float | None = None):
        """Check a run against these limits.

        Args:
            spec: of the run's model, without a preset.
            num_runs: generations in all; a comparison has two.
            seconds: what they are expected to take; None while unknown.

        Raises:
            RequestError: a limit is passed.
        """
        own = spec.config_of(run.method.name).to_dict()
        for names, most in (
            (("num_q_clusters", "num_k_clusters"), self.clusters),
            (("kmeans_iters_init", "kmeans_iters_step"), self.kmeans_iters),
        ):
            for name in names:
                value, most = getattr(run.config, name), max(most, own[name])
                if value > most:
                    raise RequestError(f"{name} is {value}, and at most {most} are taken here.")
        work = work_of(run, spec) * num_runs / 2
        if work > self.work:
            request = run.request
            runs = "" if num_runs == 2 else f", {num_runs} times,"
            raise RequestError(
                f"{request.num_frames} frames of {request.width} by {request.height} in "
                f"{request.num_inference_steps} steps{runs} are {work:.3g} times the work of a "
                f"default video, and at most {self.work:g} times are taken here: ask for fewer "
                "steps, or a smaller or shorter video."
            )
        if seconds is not None and seconds > self.seconds and work > 1:
            raise RequestError(
                f"This would take about {_minutes(seconds)} here, and a run may take "
                f"{_minutes(self.seconds)}: ask for fewer steps, or a smaller or shorter video."
            )

    def seconds_for(self, run: Run, spec: ModelSpec) -> float:
        """How long a run may go on before it is stopped."""
        return self.seconds if work_of(run, spec) > 1 else math.inf

    def overtime(self) -> str:
        """Why a run was stopped."""
        return (
            f"The run was stopped, since it takes longer than the {_minutes(self.seconds)} that a "
            "run may take here: ask for fewer steps, or a smaller or shorter video."
        )


NO_LIMITS = Limits(math.inf, 65_535, 1_000, math.inf)
"""For a page that nobody else uses."""


def work_of(run: Run, spec: ModelSpec) -> float:
    """The work of a run in default videos of its model: forwards times tokens or their pairs.

    The larger of the two counts: attention grows with the pairs, and all else with the tokens.
    """
    forwards, tokens = _forwards(run), run.n_tokens
    own = spec.num_inference_steps * spec.kind.branches(spec.guidance_scale)
    default = math.prod(spec.grid(spec.num_frames, spec.height, spec.width))
    return max(
        forwards
        * tokens**power
        / max(own * default**power, _LEAST_FORWARDS * _LEAST_TOKENS**power)
        for power in (1, 2)
    )


def _forwards(run: Run) -> int:
    """Forwards of the transformer in one generation."""
    return run.request.num_inference_steps * run.branches


@dataclass(frozen=True)
class _Measured:
    """A comparison that was timed: tokens, seconds per forward of each side, and all the rest."""

    tokens: int
    dense: float
    sparse: float
    rest: float


class Pace:
    """How long runs take on this machine, as the last one of each model tells."""

    def __init__(self) -> None:
        self._measured: dict[str, _Measured] = {}
        self._lock = threading.Lock()

    def note(self, run: Run, result: Mapping[str, Any]) -> None:
        """Learn from the result of a comparison."""
        forwards = _forwards(run)
        dense = result["dense_seconds"] + (result["dense_stock_seconds"] or 0.0)
        totals = (result["total_seconds"], result["dense_total_seconds"])
        rest = sum(total["encode"] + total["decode"] for total in totals)
        sides = (dense / forwards, result["svg2_seconds"] / forwards)
        measured = _Measured(run.n_tokens, *sides, rest)
        with self._lock:
            self._measured[run.request.model] = measured

    def seconds(self, run: Run, num_dense: int = 1, num_sparse: int = 1) -> float | None:
        """What a run takes at most; None before one of its model was timed.

        More tokens count by their square and fewer by their number, which is both too much.
        """
        with self._lock:
            measured = self._measured.get(run.request.model)
        if measured is None:
            return None
        ratio = run.n_tokens / measured.tokens
        each = num_dense * measured.dense + num_sparse * measured.sparse
        return _forwards(run) * each * max(ratio, ratio**2) + measured.rest * ratio


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
