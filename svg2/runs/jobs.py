"""Runs for a page or a service: checked requests, one loaded model, one job at a time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from svg2.errors import Cancelled, ModelUnavailable, RequestError
from svg2.models.catalogue import MODELS
from svg2.models.finding import model_spec, snapshot
from svg2.models.loading import availability
from svg2.models.request import Request
from svg2.models.spec import ModelSpec
from svg2.process import give_back_memory, trim_memory
from svg2.runs.call import load
from svg2.runs.compare import Comparison, compare
from svg2.runs.dense_sparse import DenseRun
from svg2.runs.limits import NO_LIMITS, Limits, Pace
from svg2.runs.line import Line
from svg2.runs.progress import OnProgress, Progress, ShouldCancel, Watch
from svg2.runs.run import Run
from svg2.trace.records import RecordingPolicy

Result = TypeVar("Result")

_SETTINGS = ("method", "top_p", "num_q_clusters", "num_k_clusters")
LINE = Line()
"""Of this process: generations at the same time would disturb each other's timing."""


class Studio:
    """The models of the catalogue and one more, with at most one of them loaded at a time.

    Attributes:
        model: id of the studio's own model, as `svg2.models.finding.model_spec` takes it.
        has_others: whether a run may name the models of the catalogue too.
        limits: what a run may cost.
        may_download: whether a run may download a model other than the studio's own.
    """

    def __init__(
        self, model: str = "builtin", limits: Limits = NO_LIMITS, may_download: bool = False
    ) -> None:
        self.model = model
        self.limits = limits
        self.may_download = may_download
        self._pace = Pace()
        self._pipe: Any = None
        self._loaded: str | None = None
        self._lock = threading.Lock()
        self.has_others = True

    @property
    def models(self) -> tuple[str, ...]:
        """Ids of the models that a run may name; the studio's own first."""
        return tuple(dict.fromkeys((self.model, *(MODELS if self.has_others else ()))))

    @property
    def loaded(self) -> str | None:
        """The model that is loaded; None where none is."""
        return self._loaded

    @property
    def spec(self) -> ModelSpec:
        """The spec of the studio's own model.

        Raises:
            RequestError: an unknown or unsupported model.
        """
        return model_spec(self.model)

    def spec_of(self, model: str) -> ModelSpec:
        """The spec of one of `models`.

        Raises:
            RequestError: any other model. Visitors can't name folders or hub ids.
        """
        if model not in self.models:
            raise RequestError(
                f"This page has no model {str(model)[:100]!r}: choose one of its list."
            )
        return model_spec(model)

    def run(self, values: Mapping[str, Any]) -> Run:
        """Make a checked run from the fields of a page, within `limits`.

        Args:
            values: `model`, `preset`, fields of `Request` and settings of the method, by name.
                A value that is None or missing takes the model's default.

        Raises:
            InputError: an invalid value, or more than `limits` allow.
        """
        return self.within_limits(self.unlimited_run(values))

    def unlimited_run(self, values: Mapping[str, Any]) -> Run:
        """As `run`, whatever it may cost."""
        fields = {name: value for name, value in values.items() if value is not None}
        model = fields.pop("model", self.model)
        preset = fields.pop("preset", "published")
        settings = {name: _whole(fields.pop(name)) for name in _SETTINGS if name in fields}
        spec = self.spec_of(model)
        request = Request(**{"prompt": "", "model": model, **fields})
        return Run.of(request, spec=spec, preset=preset, settings=settings)

    def within_limits(self, run: Run, num_dense: int = 1, num_sparse: int = 1) -> Run:
        """The run, checked against `limits`.

        Args:
            num_dense, num_sparse: how many generations it is of.

        Raises:
            RequestError: it passes one of them.
        """
        spec = model_spec(run.request.model)
        seconds = self._pace.seconds(run, num_dense, num_sparse)
        self.limits.check(run, spec, num_dense + num_sparse, seconds)
        return run

    def admit(self, run: Run) -> None:
        """Check that a run can be made here, before it waits for its turn.

        Raises:
            ModelUnavailable: its model can't be loaded here.
            TooBusy: as many wait as may.
        """
        LINE.check_room()
        missing = self.why_not(run.request.model)
        if missing is not None:
            raise ModelUnavailable(missing)

    def why_not(self, model: str) -> str | None:
        """What keeps one of `models` from running here, as a sentence; None if nothing.

        Raises:
            RequestError: any other model.
        """
        spec = self.spec_of(model)
        missing = availability(spec)
        is_ours = model == self.model or self.may_download or spec.is_local
        if missing is None and not is_ours and snapshot(spec.source) is None:
            return (
                f"{spec.title} is not downloaded here, and visitors can't start a download: "
                "choose another model."
            )
        return missing

    def seconds_for(self, run: Run, with_dense: bool = True) -> float | None:
        """What a comparison takes here, as earlier ones tell; None before there was one."""
        return self._pace.seconds(run, num_dense=int(with_dense))

    def preload(self) -> None:
        """Load the studio's own model, so that the first visitor does not wait for it.

        Runs that are asked for meanwhile wait for their turn.

        Raises:
            RequestError: an unknown or unsupported model.
            ModelUnavailable: a model that can't be loaded here.
        """
        spec = self.spec
        Job(
            lambda report, should_cancel: self.pipe(self.model, spec, Watch(report, should_cancel))
        ).result()

    def pipe(self, model: str, spec: ModelSpec, watch: Watch) -> Any:
        """The pipeline of a model, loaded if need be. Another loaded model is freed first.

        It stays loaded where the new one can't be. A cancel during the load stops the run, and
        the loaded model stays for the next one.

        Raises:
            ModelUnavailable: a model that can't be loaded here.
            Cancelled: the watch was cancelled.
        """
        with self._lock:
            if self._loaded != model:
                watch.report("", "load")
                missing = self.why_not(model)
                if missing is not None:
                    raise ModelUnavailable(missing)
                watch.check()  # a cancelled run frees no other model
                if self._loaded is not None:
                    self._pipe = self._loaded = None
                    give_back_memory()
                self._pipe = load(spec, watch)
                self._loaded = model
                watch.check()
            return self._pipe

    def compare(
        self,
        run: Run,
        on_progress: OnProgress,
        should_cancel: ShouldCancel,
        dense: DenseRun | None = None,
        policy: RecordingPolicy | None = None,
    ) -> Comparison:
        """`svg2.runs.compare.compare` with the loaded model and with previews.

        Raises:
            As `svg2.runs.compare.compare`.
            RequestError: it took longer than `limits` allow, and was stopped.
        """
        pipe = self.pipe(run.request.model, run.spec, Watch(on_progress, should_cancel))
        try:
            with self._in_time(run, on_progress, should_cancel) as watch:
                made = compare(run, pipe, watch=watch, dense=dense, policy=policy)
        finally:
            # Else what runs leave behind would grow. A GPU's memory stays for the next run.
            gc.collect()
            trim_memory()
        if dense is None:
            self._pace.note(run, made.result)
        if LINE.is_disturbed:
            made.result["is_disturbed"] = True
        return made

    @contextmanager
    def _in_time(
        self, run: Run, on_progress: OnProgress, should_cancel: ShouldCancel
    ) -> Iterator[Watch]:
        """A watch that also cancels a run which takes too long, and says so."""
        most = self.limits.seconds_for(run, model_spec(run.request.model))
        started = time.monotonic()

        def is_over() -> bool:
            return time.monotonic() - started > most

        try:
            yield Watch(on_progress, lambda: should_cancel() or is_over(), preview=True)
        except Cancelled:
            if should_cancel() or not is_over():
                raise
            raise RequestError(self.limits.overtime()) from None


class Job(Generic[Result]):
    """Work in a thread of its own. The jobs of a process run one after another.

    Iterating over a job gives its progress and ends with the work. A slow reader gets only the
    newest report.

    Args:
        work: function of `on_progress` and `should_cancel`. It is started when its turn comes.
        seconds: what it is expected to take, for those who wait.

    Raises:
        TooBusy: as many jobs wait as may.
    """

    def __init__(
        self, work: Callable[[OnProgress, ShouldCancel], Result], seconds: float | None = None
    ) -> None:
        self._work = work
        self._place = LINE.join(seconds)
        self._reports: SimpleQueue[Progress | None] = SimpleQueue()
        self._cancelled = threading.Event()
        self._outcome: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="svg2-job", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the work to stop soon, or never to begin; further calls have no effect."""
        self._cancelled.set()
        LINE.look_again()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def __iter__(self) -> Iterator[Progress]:
        while (report := self._newest()) is not None:
            yield report

    def result(self) -> Result:
        """Wait for the work and return its result.

        Raises:
            BaseException: the exception that the work raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return cast(Result, self._outcome)

    def _run(self) -> None:
        try:
            with LINE.turn(self._place, self._cancelled.is_set, self._tell_waiting):
                self._outcome = self._work(
                    self._report, lambda: self.is_cancelled or LINE.is_closed
                )
        except BaseException as error:  # `result` raises it again
            self._error = error
        finally:
            self._reports.put(None)

    def _report(self, progress: Progress) -> None:
        if progress.eta_seconds is not None:
            self._place.seconds = progress.eta_seconds
        self._reports.put(progress)

    def _tell_waiting(self, ahead: int, seconds: float | None) -> None:
        self._reports.put(Progress("", "wait", ahead=ahead, eta_seconds=seconds))

    def _newest(self) -> Progress | None:
        """The newest report; None at the end, for every reader."""
        report = self._reports.get()
        while report is not None:
            try:
                newer = self._reports.get_nowait()
            except Empty:
                return report
            if newer is None:
                break  # the last report is seen before the end
            report = newer
        self._reports.put(None)
        return report


def _whole(value: Any) -> Any:
    """54.0 as 54: number fields of a page give floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
