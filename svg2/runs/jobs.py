"""What a page or a service needs: a checked run, a model loaded once, one job at a time."""

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
_AT_WORK = threading.Lock()  # two generations at once would spoil each other's times


class Studio:
    """The models of the menu and one of its own, the one in use loaded once, when first needed."""

    def __init__(self, model: str = "builtin") -> None:
        self.model = model
        self._pipe: Any = None
        self._loaded: str | None = None
        self._lock = threading.Lock()

    @property
    def models(self) -> tuple[str, ...]:
        """What can be asked for, by id; its own first."""
        return tuple(dict.fromkeys((self.model, *MODELS)))

    @property
    def spec(self) -> ModelSpec:
        """Raises: RequestError: there is no such model here."""
        return model_spec(self.model)

    def spec_of(self, model: str) -> ModelSpec:
        """The spec of one of `models`.

        Raises:
            RequestError: it is none of them; what a visitor types is never a path or a hub id.
        """
        if model not in self.models:
            raise RequestError(f"There is no model {str(model)[:100]!r} on this page.")
        return model_spec(model)

    def run(self, values: Mapping[str, Any]) -> Run:
        """A checked run from values by name; one that is None or missing is the model's default.

        Raises:
            InputError: a value cannot work, in a sentence for whoever gave it.
        """
        given = {name: _whole(value) for name, value in values.items() if value is not None}
        model = given.pop("model", self.model)
        preset = given.pop("preset", "published")
        settings = {name: given.pop(name) for name in _SETTINGS if name in given}
        spec = self.spec_of(model)
        return Run.of(Request(model=model, **given), spec=spec, preset=preset, settings=settings)

    def preload(self) -> None:
        """Load the studio's own model, so that the first visitor does not wait for it.

        Raises:
            RequestError: there is no such model here.
            ModelUnavailable: it cannot be loaded here.
        """
        self.pipe(self.model, self.spec, Watch())

    def pipe(self, model: str, spec: ModelSpec, watch: Watch) -> Any:
        """The loaded pipeline of a model; any other one is let go.

        Raises:
            ModelUnavailable: the model cannot be loaded here.
            Cancelled: the watch said so.
        """
        with self._lock:
            if self._loaded != model:
                self._pipe = self._loaded = None
                self._pipe = load(spec, watch)
                self._loaded = model
            return self._pipe

    def compare(
        self,
        run: Run,
        on_progress: OnProgress,
        should_cancel: ShouldCancel,
        dense: DenseRun | None = None,
        policy: RecordingPolicy | None = None,
    ) -> Comparison:
        """`svg2.runs.compare.compare` of a run on the loaded model, with previews."""
        watch = Watch(on_progress, should_cancel, preview=True)
        pipe = self.pipe(run.request.model, run.spec, watch)
        return compare(run, pipe, watch=watch, dense=dense, policy=policy)


class Job(Generic[Result]):
    """Starts `work(on_progress, should_cancel)` at once. Jobs of a process run one after another.

    Iterating gives progress as it comes, of which only the newest counts when the reader is slow,
    and ends with the work. `result` then gives what the work returned, or raises what it raised.
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
        """Ask the work to stop after its current step; a second call does nothing."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def __iter__(self) -> Iterator[Progress]:
        while (report := self._newest()) is not None:
            yield report

    def result(self) -> Result:
        """What the work returned, as soon as it has.

        Raises: whatever the work raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return cast(Result, self._outcome)

    def _run(self) -> None:
        try:
            with _AT_WORK:
                self._outcome = self._work(self._reports.put, self._cancelled.is_set)
        except BaseException as error:  # raised again where the result is asked for
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
            if newer is None:  # the end keeps for the next call: the last report is seen
                self._reports.put(None)
                break
            report = newer
        return report


def _whole(value: Any) -> Any:
    """A number field hands over 54.0 for 54."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
