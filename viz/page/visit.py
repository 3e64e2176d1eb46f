"""One open page: what it shows, what it asked for, what runs for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from svg2.config import SVG2Config
from svg2.errors import RequestError
from svg2.models.request import Request
from svg2.runs.compare import Comparison, add_run
from svg2.runs.dense_sparse import DenseRun
from svg2.runs.jobs import Studio
from svg2.runs.progress import Progress
from svg2.runs.run import Run
from viz.explorer_page import explorer_value
from viz.page.open_traces import (
    READY_MADE,
    UPLOAD,
    OpenTrace,
    OpenTraces,
    without_records,
    without_run,
)
from viz.page.runner import Execution

MAX_RECORDED = 10  # runs of one trace with their clusters; older ones keep clip and numbers
MAX_RUNS = 40

LENT = ("top_p", "density", "num_q_clusters", "num_k_clusters")  # by an uploaded trace
REQUEST_NAMES = (
    *("prompt", "negative_prompt", "seed", "height", "width", "num_frames"),
    *("num_inference_steps", "guidance_scale", "guidance_scale_2", "true_cfg_scale"),
)


class Visit:
    """The state of one open page.

    Attributes:
        model: the model of this server; empty where there is none.
        open_trace: what is shown.
        made_by: the run that made it, where this visit did.
        dense: the last complete dense run of this visit.
        pending: the checked run that waits for its turn; pending_release: the same for one that
            the budget slider asked for.
        ticket: names the tab also after it was loaded again; empty where none is known.
        execution: what runs now, of `doing`: the run, its dense side, and whether it is a
            release's.
        latest: the last progress of it that was shown; None before the first.
        is_comparing: whether that is a whole run, and not a release's.
        wants_race: whether the release makes the dense side again too, since its timing was
            disturbed.
    """

    def __init__(self, open_trace: OpenTrace | None = None, model: str = "") -> None:
        self.model = model
        self.dense: DenseRun | None = None
        self.pending: Run | None = None
        self.pending_release: Run | None = None
        self.ticket = ""
        self.execution: Execution | None = None
        self.doing: tuple[Run, DenseRun | None, bool] | None = None
        self.latest: Progress | None = None
        self.is_comparing = False
        self.wants_race = False
        self._turn = threading.Lock()
        self._awaiting: set[str] = set()
        self.show(open_trace)

    def __deepcopy__(self, memo: dict[int, Any]) -> Visit:
        return Visit(self.open_trace, self.model)  # gr.State copies its first value per visitor

    def show(self, open_trace: OpenTrace | None) -> None:
        """Show a trace that this visit did not make."""
        self.open_trace = open_trace
        self.num_given = len(open_trace.trace.runs) if open_trace else 0
        self.made_by: Run | None = None

    def free(self) -> None:
        """The page is gone, or was not used for long: end its run, and hold nothing large."""
        self.cancel()
        self.dense = None
        if self.open_trace is not None and self.open_trace.mode != READY_MADE:
            self.show(None)

    def take_over(self, other: Visit) -> None:
        """Go on with what another visit of the same tab shows and runs."""
        for name in (
            "open_trace",
            "num_given",
            "made_by",
            "dense",
            "execution",
            "doing",
            "latest",
        ):
            setattr(self, name, getattr(other, name))
        other.execution = None  # no longer the other's to cancel
        other.free()

    def cancel(self) -> None:
        """Drop what waits, and stop what runs."""
        self.pending = self.pending_release = None
        if self.execution is not None:
            self.execution.cancel()

    @contextmanager
    def turn(self, kind: str) -> Iterator[bool]:
        """One run of a visit at a time. Yields whether to go on.

        False where another call of the same kind waits already: it will do the newest wish.
        """
        if kind in self._awaiting:
            yield False
            return
        self._awaiting.add(kind)
        with self._turn:
            self._awaiting.discard(kind)
            yield True

    def view(self, **extra: Any) -> dict[str, Any]:
        """The explorer's value. A budget can be run where the trace is of the model at hand."""
        if self.open_trace is None:
            return {}
        is_ours = self.open_trace.trace.request.get("model") == self.model
        can_run = is_ours or self.made_by is not None
        has_dense = self.made_by is not None and self.dense_of(self.made_by) is not None
        return explorer_value(
            f"lab/{self.open_trace.key}/payload", can_run=can_run, has_dense=has_dense, **extra
        )

    def run_at(self, studio: Studio, index: Any, top_p: Any, with_dense: bool = False) -> Run:
        """The video of the open trace with the method and settings of one of its runs.

        A trace of somebody else lends its method, budget and cluster counts, and no more.

        Args:
            top_p: another budget; None takes the run's own.
            with_dense: whether its dense side is made again.

        Raises:
            InputError: it cannot be run here, or is more than the studio's limits allow.
        """
        is_index = isinstance(index, int) and not isinstance(index, bool)
        runs = () if self.open_trace is None else self.open_trace.trace.runs
        if self.open_trace is None or not is_index or not 0 <= index < len(runs):
            raise RequestError("This run is no longer open.")
        trace, run = self.open_trace.trace, self.made_by
        if run is None:
            given = {name: trace.request[name] for name in REQUEST_NAMES if name in trace.request}
            run = Run.of(Request(model=studio.model, **given), spec=studio.spec)
        measured = trace.runs[index]
        settings = SVG2Config.from_dict(measured.config).to_dict()
        if not self._is_made_here(index):
            settings = {name: settings[name] for name in LENT}
        changes = {} if top_p is None else {"top_p": top_p, "density": None}
        changes["method"] = measured.method
        num_dense = int(with_dense or self.dense_of(run) is None)
        return studio.within_limits(run.with_settings(**settings | changes), num_dense)

    def _is_made_here(self, index: int) -> bool:
        """Whether a run of the open trace was made by this server, or ships with it."""
        assert self.open_trace is not None
        return index >= self.num_given or not self.open_trace.mode.startswith(UPLOAD)

    def dense_of(self, run: Run) -> DenseRun | None:
        """This visit's dense run, where it is of the same request."""
        is_same = self.dense is not None and self.dense.request == run.request
        return self.dense if is_same else None

    def add(self, made: Comparison, traces: OpenTraces) -> bool:
        """Show what was made: one more run of the open trace where both share a dense clip.

        Returns:
            Whether it joined the open trace; otherwise it is a trace of its own.
        """
        self.dense = made.dense
        live = f"live {'GPU' if 'cuda' in str(made.result['device']) else 'CPU'}"
        current, new = self.open_trace, made.trace
        is_same = current is not None and current.trace.dense_mp4 == new.dense_mp4
        for name in ("model", "fps", *REQUEST_NAMES):
            is_same = is_same and current.trace.request.get(name) == new.request.get(name)
        if current is None or not is_same:
            self.show(traces.put(new, live))
            self.made_by = made.sparse.run
            return False
        self.made_by = made.sparse.run
        trace = add_run(current.trace, made.dense, made.sparse, made.result)
        recorded = sorted({record.run for record in trace.records})
        newest = len(trace.runs) - 1
        older = [r for r in recorded if self.num_given <= r < newest]
        if len(recorded) > MAX_RECORDED and older:
            trace = without_records(trace, older[0])
        for r in (*older, newest):  # or its file could not be opened again
            if trace.is_too_large:
                trace = without_records(trace, r)
        if len(trace.runs) > MAX_RUNS and older:
            trace = without_run(trace, self.num_given)
        mode = current.mode if live in current.mode else f"{current.mode} + {live}"
        self.open_trace = traces.put(trace, mode)
        return True
