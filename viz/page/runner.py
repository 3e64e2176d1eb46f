"""How the page has a run executed: one small interface, and what is behind it where."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from svg2.runs.compare import Comparison
from svg2.runs.dense_sparse import DenseRun
from svg2.runs.jobs import LINE, Job, Studio
from svg2.runs.progress import OnProgress, Progress, ShouldCancel
from svg2.runs.run import Run
from svg2.trace.records import RecordingPolicy
from viz.page.environment import is_on_zero_gpu

PATIENCE_SECONDS = 60.0

log = logging.getLogger(__name__)


class Execution(Protocol):
    """A run that was started. Iterating gives its progress and ends with the run."""

    @property
    def is_cancelled(self) -> bool: ...

    def cancel(self) -> None:
        """Stop soon, or never begin; a second call does nothing."""
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
        """Start a run, or its sparse side alone where `dense` is given.

        Raises:
            TooBusy: as many runs wait as may.
        """
        ...


class ThreadRunner:
    """Runs on the studio's loaded model, in a thread of this process, one after another."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def start(
        self, run: Run, dense: DenseRun | None = None, policy: RecordingPolicy | None = None
    ) -> Job[Comparison]:
        def work(report: OnProgress, should_cancel: ShouldCancel) -> Comparison:
            with _logged(run):
                return self._studio.compare(run, report, should_cancel, dense, policy)

        return Job(work, self._studio.seconds_for(run, with_dense=dense is None))


@contextmanager
def _logged(run: Run) -> Iterator[None]:
    """One line of the log per run that had its turn: what it was and how it ended."""
    started, end = time.monotonic(), "done"
    try:
        yield
    except Exception as error:
        end = type(error).__name__
        raise
    finally:
        facts = {
            "model": run.request.model,
            "method": run.method.name,
            "tokens": run.n_tokens,
            "steps": run.request.num_inference_steps,
            "seconds": round(time.monotonic() - started, 1),
            "end": end,
        }
        log.info("run", extra={"facts": facts})


def runner_for(studio: Studio) -> Runner:
    """The runner of this machine. On a ZeroGPU Space it loads the model first.

    Raises:
        UsageError: as `viz.page.zero_gpu.prepare`.
    """
    if not is_on_zero_gpu():
        return ThreadRunner(studio)
    from viz.page.zero_gpu import prepare

    return prepare(studio)


def is_busy() -> bool:
    """Whether a run computes in this process now, whose timing other work would disturb."""
    return LINE.is_busy


def beside_runs() -> AbstractContextManager[None]:
    """Around heavy work that is no run, such as an export: it comes between two runs.

    Whoever asks for it waits at most a minute; then the run that still goes on says that its
    timing was disturbed.
    """
    return LINE.aside(PATIENCE_SECONDS)
