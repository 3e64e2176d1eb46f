"""What a page or a service needs to run the method: a checked wish, a model loaded once, a job."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from svg2.config import SVG2Config, method_config
from svg2.generate import Comparison, DenseRun, OnProgress, Progress, ShouldCancel, compare
from svg2.models import MODELS, ModelSpec, load_pipeline, model_spec
from svg2.request import Request, RequestError, ResolvedRequest
from svg2.trace import RecordingPolicy

Result = TypeVar("Result")

_CONFIG_NAMES = ("top_p", "num_q_clusters", "num_k_clusters")
_AT_WORK = threading.Lock()  # two generations at once would spoil each other's times


@dataclass(frozen=True)
class Wish:
    """A comparison that can be run: a request of known size, a method and its settings."""

    request: ResolvedRequest
    method: str
    config: SVG2Config


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

    def wish(self, values: Mapping[str, Any]) -> Wish:
        """A checked wish from values by name; one that is None or missing is the model's default.

        Raises:
            RequestError, ConfigError: a value can't work, in a sentence for whoever gave it.
        """
        given = {name: _whole(value) for name, value in values.items() if value is not None}
        method = given.pop("method", "svg2")
        model = given.pop("model", self.model)
        spec = self.spec_of(model).preset(given.pop("preset", "published"))
        settings = {name: given.pop(name) for name in _CONFIG_NAMES if name in given}
        request = Request(model=model, **given).resolve(spec)
        size = (request.num_frames, request.height, request.width)
        config = method_config(method, spec.config_for(*size).replace(**settings))
        config.check_tokens(math.prod(spec.grid(*size)))
        return Wish(request, method, config)

    def pipe(self, model: str | None = None) -> Any:
        """The loaded pipeline of a model, its own by default; any other one is let go.

        Raises:
            ModelUnavailable: its weights can't be had here.
        """
        model = model or self.model
        with self._lock:
            if self._loaded != model:
                self._pipe = self._loaded = None
                self._pipe = load_pipeline(model)
                self._loaded = model
            return self._pipe

    def compare(
        self,
        wish: Wish,
        on_progress: OnProgress,
        should_cancel: ShouldCancel,
        dense: DenseRun | None = None,
        policy: RecordingPolicy | None = None,
    ) -> Comparison:
        """`svg2.generate.compare` of a wish on the loaded model."""
        if self._loaded != wish.request.model:
            on_progress(Progress("", "load"))
        return compare(
            *(wish.request, wish.method, wish.config),
            pipe=self.pipe(wish.request.model),
            on_progress=on_progress,
            should_cancel=should_cancel,
            dense=dense,
            policy=policy,
            preview=True,
        )


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
