"""Runs for a page or a service: checked requests, one loaded model, one job at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from svg2.errors import RequestError
from svg2.models.catalogue import MODELS
from svg2.models.finding import model_spec
from svg2.models.request import Request
from svg2.models.spec import ModelSpec
from svg2.runs.call import load
from svg2.runs.compare import Comparison, compare
from svg2.runs.dense_sparse import DenseRun
from svg2.runs.progress import OnProgress, Progress, ShouldCancel, Watch
from svg2.runs.run import Run
from svg2.trace.records import RecordingPolicy

Result = TypeVar("Result")

_SETTINGS = ("method", "top_p", "num_q_clusters", "num_k_clusters")
_ONE_JOB = threading.Lock()  # generations at the same time would disturb each other's timing


class Studio:
    """The models of the catalogue and one more, with at most one of them loaded at a time.

    Attributes:
        model: id of the studio's own model, as `svg2.models.finding.model_spec` takes it.
        has_others: whether a run may name the models of the catalogue too.
    """

    def __init__(self, model: str = "builtin") -> None:
        self.model = model
        self._pipe: Any = None
        self._loaded: str | None = None
        self._lock = threading.Lock()
        self.has_others = True

    @property
    def models(self) -> tuple[str, ...]:
        """Ids of the models that a run may name; the studio's own first."""
        return tuple(dict.fromkeys((self.model, *(MODELS if self.has_others else ()))))

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
        """Make a checked run from the fields of a page.

        Args:
            values: `model`, `preset`, fields of `Request` and settings of the method, by name.
                A value that is None or missing takes the model's default.

        Raises:
            InputError: an invalid value.
        """
        fields = {name: value for name, value in values.items() if value is not None}
        model = fields.pop("model", self.model)
        preset = fields.pop("preset", "published")
        settings = {name: _whole(fields.pop(name)) for name in _SETTINGS if name in fields}
        spec = self.spec_of(model)
        return Run.of(Request(model=model, **fields), spec=spec, preset=preset, settings=settings)

    def preload(self) -> None:
        """Load the studio's own model, so that the first visitor does not wait for it.

        Raises:
            RequestError: an unknown or unsupported model.
            ModelUnavailable: a model that can't be loaded here.
        """
        self.pipe(self.model, self.spec, Watch())

    def pipe(self, model: str, spec: ModelSpec, watch: Watch) -> Any:
        """The pipeline of a model, loaded if need be. Another loaded model is freed first.

        A cancel during the load stops the run, and the loaded model stays for the next one.

        Raises:
            ModelUnavailable: a model that can't be loaded here.
            Cancelled: the watch was cancelled.
        """
        if self._loaded != model:
            watch.report("", "load")  # said before the wait for whoever loads now
        with self._lock:
            if self._loaded != model:
                watch.check()  # a cancelled run frees no other model
                self._pipe = self._loaded = None
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
        """`svg2.runs.compare.compare` with the loaded model and with previews."""
        watch = Watch(on_progress, should_cancel, preview=True)
        pipe = self.pipe(run.request.model, run.spec, watch)
        return compare(run, pipe, watch=watch, dense=dense, policy=policy)


class Job(Generic[Result]):
    """Work in a thread of its own. The jobs of a process run one after another.

    Iterating over a job gives its progress and ends with the work. A slow reader gets only the
    newest report.

    Args:
        work: function of `on_progress` and `should_cancel`. It is started at once.
    """

    def __init__(self, work: Callable[[OnProgress, ShouldCancel], Result]) -> None:
        self._work = work
        self._reports: SimpleQueue[Progress | None] = SimpleQueue()
        self._cancelled = threading.Event()
        self._outcome: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="svg2-job", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the work to stop after its current step; further calls have no effect."""
        self._cancelled.set()

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
            with _ONE_JOB:
                self._outcome = self._work(self._reports.put, self._cancelled.is_set)
        except BaseException as error:  # `result` raises it again
            self._error = error
        finally:
            self._reports.put(None)

    def _newest(self) -> Progress | None:
        report = self._reports.get()
        while report is not None:
            try:
                newer = self._reports.get_nowait()
            except Empty:
                break
            if newer is None:  # keep the end for the next call, so that the last report is seen
                self._reports.put(None)
                break
            report = newer
        return report


def _whole(value: Any) -> Any:
    """54.0 as 54: number fields of a page give floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
