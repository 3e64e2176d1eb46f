"""How the page has a run executed: one small interface, and what is behind it where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from svg2.runs.compare import Comparison
from svg2.runs.dense_sparse import DenseRun
from svg2.runs.jobs import Job, Studio
from svg2.runs.progress import Progress
from svg2.runs.run import Run
from svg2.trace.records import RecordingPolicy
from viz.page.environment import is_on_zero_gpu


class Execution(Protocol):
    """A run that was started. Iterating gives its progress and ends with the run."""

    @property
    def is_cancelled(self) -> bool: ...

    def cancel(self) -> None:
        """Stop after the current step; a second call does nothing."""
        ...

    def __iter__(self) -> Iterator[Progress]: ...

    def result(self) -> Comparison:
        """What the run made.

        Raises:
            Cancelled: it was cancelled, with its dense run where that was complete.
            Exception: whatever made it fail.
        """
        ...


class Runner(Protocol):
    """Where runs are executed."""

    def start(
        self, run: Run, dense: DenseRun | None = None, policy: RecordingPolicy | None = None
    ) -> Execution:
        """Start a run, or its sparse side alone where `dense` is given."""
        ...


class ThreadRunner:
    """Runs on the studio's loaded model, in a thread of this process, one after another."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def start(
        self, run: Run, dense: DenseRun | None = None, policy: RecordingPolicy | None = None
    ) -> Job[Comparison]:
        return Job(
            lambda report, should_cancel: self._studio.compare(
                run, report, should_cancel, dense, policy
            )
        )


def runner_for(studio: Studio) -> Runner:
    """The runner of this machine. On a ZeroGPU Space it loads the model first.

    Raises:
        UsageError: as `viz.page.zero_gpu.prepare`.
    """
    if not is_on_zero_gpu():
        return ThreadRunner(studio)
    from viz.page.zero_gpu import prepare

    return prepare(studio)
