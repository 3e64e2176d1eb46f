"""Runs on a ZeroGPU Space: each side of a comparison is a call of its own that gets a GPU.

The Space serves the page from a process without a GPU. `spaces.GPU` forks it for each call, gives
the fork a GPU with the model on it, and passes arguments and results between the two by pickle.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

from svg2.errors import (
    Cancelled,
    GpuUnavailable,
    InputError,
    ModelUnavailable,
    NotFinite,
    RequestError,
    UsageError,
)
from svg2.runs.compare import Comparison, compared
from svg2.runs.dense_sparse import DenseRun, SparseRun, generate_dense, generate_sparse
from svg2.runs.jobs import Studio
from svg2.runs.progress import Progress, Watch
from svg2.runs.result import Order
from svg2.runs.run import Run
from svg2.trace.records import RecordingPolicy
from svg2.trace.video import check_encoder
from viz.page.environment import is_on_zero_gpu

Message = Progress | DenseRun | SparseRun | Exception | None
"""What a call yields: progress, None while it goes on, and last what it made or what stopped it.
An exception that is raised there reaches the page as the name of its class alone."""

HEARTBEAT_SECONDS = 0.5  # a call ends only where it yields
KEPT = "The dense run is done and kept: the same video again makes the sparse side alone."

# A guess for the time to ask for, on the safe side; the dense side's own time replaces it.
_START_SECONDS = 30  # weights onto the GPU, kernels compiled
_FORWARD_SECONDS = 0.15  # of a small model, whose launches take longer than its operations
_OPERATIONS_PER_SECOND = 150e12
_PIXELS_PER_SECOND = 3e6  # decoded
_MARGIN = 1.3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    """The model of the Space. Forks find it in their copy of this module; it does not pickle."""

    pipe: Any
    forward_operations: Callable[[int], float]


_loaded: _Loaded | None = None


def seconds_for(
    run: Run,
    is_sparse: bool,
    policy: RecordingPolicy | None = None,
    dense_seconds: float | None = None,
) -> int:
    """GPU seconds to ask for: as the dense side took, or else as operations and pixels tell.

    Args: as of `generate_side`.
    """
    if dense_seconds is not None:
        return math.ceil(_START_SECONDS + _MARGIN * dense_seconds)
    assert _loaded is not None, "prepare comes first"
    request = run.request
    forwards = (run.kind.num_steps(request.num_inference_steps) + 1) * run.branches
    forward = _FORWARD_SECONDS + _loaded.forward_operations(run.n_tokens) / _OPERATIONS_PER_SECOND
    decoding = request.num_frames * request.height * request.width / _PIXELS_PER_SECOND
    runs = 2 if run.kind.joint_text and not is_sparse else 1
    return math.ceil(_START_SECONDS + runs * (forwards * forward + decoding))


def generate_side(
    run: Run,
    is_sparse: bool,
    policy: RecordingPolicy | None = None,
    dense_seconds: float | None = None,
) -> Generator[Message]:
    """One side of a comparison, in a process that has the GPU. Closing it ends its current step.

    Args:
        policy: what the sparse side records; None takes the default policy.
        dense_seconds: what the dense side took in all, where it is known.
    """
    assert _loaded is not None, "prepare comes first"
    pipe, reports, stop = _loaded.pipe, SimpleQueue[Progress | None](), Event()
    watch = Watch(reports.put, stop.is_set, preview=True)

    def work() -> DenseRun | SparseRun:
        if is_sparse:
            return generate_sparse(pipe, run, watch, policy)
        return generate_dense(pipe, run, watch)

    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(work)
        made.add_done_callback(lambda _: reports.put(None))
        try:
            while not (made.done() and reports.empty()):
                try:
                    yield reports.get(timeout=HEARTBEAT_SECONDS)
                except Empty:
                    yield None
        finally:
            stop.set()
    yield _outcome(made)


def _outcome(made: Future[DenseRun | SparseRun]) -> Message:
    """What was made, or the error that has a sentence of its own; any other is raised."""
    error = made.exception()
    if error is None:
        return made.result()
    if type(error).__name__ == "OutOfMemoryError":
        return RequestError("This video does not fit the GPU's memory: choose a smaller one.")
    if isinstance(error, InputError | ModelUnavailable | NotFinite):
        return error
    raise error


def _with_gpu(task: Callable[..., Generator[Message]]) -> Callable[..., Generator[Message]]:
    """The task as ZeroGPU calls it; elsewhere the task itself."""
    if not is_on_zero_gpu():
        return task
    # `app.py` has loaded it, before gradio and torch.
    import spaces  # pyright: ignore[reportMissingImports]

    return spaces.GPU(task, duration=seconds_for)


generate_on_gpu = _with_gpu(generate_side)


def prepare(studio: Studio) -> ZeroGpuRunner:
    """Load the studio's model, the only one that visitors may run, and give the runner for it.

    To be called in the main thread, before the page is served: there and then `spaces` lets a
    model be put on "cuda", and notes what to move for each call.

    Raises:
        UsageError: a model that can't be loaded, or that does not fit the GPU as a whole.
    """
    global _loaded
    studio.has_others = False
    spec = studio.spec
    try:
        pipe = studio.pipe(studio.model, spec, Watch())
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    parts = pipe.components.values()
    if any(getattr(part, "_hf_hook", None) is not None for part in parts):
        raise UsageError(
            f"{spec.title} does not fit the GPU of a ZeroGPU Space as a whole: set SVG2_MODEL to "
            "a smaller model."
        )
    sizes = pipe.transformer.config
    parameters = sum(weights.numel() for weights in pipe.transformer.parameters())
    layers = sizes.num_layers + getattr(sizes, "num_single_layers", 0)
    width = sizes.num_attention_heads * sizes.attention_head_dim
    _loaded = _Loaded(pipe, lambda n: 2.0 * parameters * n + 4.0 * n * n * width * layers)
    return ZeroGpuRunner()


class ZeroGpuRunner:
    """Runs with one GPU call for each side, in the thread that reads the progress.

    The call must be made from the event's handler, since it finds the visitor's quota there.
    """

    def __init__(self, call: Callable[..., Generator[Message]] = generate_on_gpu) -> None:
        self._call = call

    def start(
        self, run: Run, dense: DenseRun | None = None, policy: RecordingPolicy | None = None
    ) -> TwoCalls:
        return TwoCalls(self._call, run, dense, policy)


class TwoCalls:
    """A run that its reader drives, as `viz.page.runner.Execution` says."""

    def __init__(
        self,
        call: Callable[..., Generator[Message]],
        run: Run,
        dense: DenseRun | None,
        policy: RecordingPolicy | None,
    ) -> None:
        self._call = call
        self._run = run
        self._dense = dense
        self._order = Order.DENSE_FIRST if dense is None else Order.DENSE_EARLIER
        self._policy = policy
        self._cancelled = Event()
        self._made: Comparison | None = None
        self._error: Exception | None = None

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def __iter__(self) -> Iterator[Progress]:
        try:
            check_encoder()
            if self._dense is None:
                self._dense = yield from self._side("dense", is_sparse=False)
            self._check()
            took = sum(self._dense.seconds.values())
            sparse = yield from self._side(self._run.method.name, is_sparse=True, took=took)
            self._check()
            yield Progress(self._run.method.name, "measure")
            self._made = compared(self._dense, sparse, Watch(), self._order)
        except Exception as error:  # `result` raises it again
            self._error = error

    def result(self) -> Comparison:
        if self._error is None and self._made is None:
            self._error = Cancelled(self._dense)  # the reader left before the end
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made

    def _check(self) -> None:
        if self.is_cancelled:
            raise Cancelled(self._dense)

    def _side(
        self, name: str, is_sparse: bool, took: float | None = None
    ) -> Generator[Progress, None, Any]:
        """The progress of one call, and what it made.

        Raises:
            Cancelled: as asked for, after the call's current step.
            GpuUnavailable: no GPU was given, or it was taken away.
            Exception: whatever the call yielded as its end.
        """
        yield Progress(name, "gpu")
        self._check()
        messages = self._call(self._run, is_sparse, self._policy, took)
        try:
            for message in self._given(messages):
                if isinstance(message, Progress):
                    yield message
                elif isinstance(message, Exception):
                    raise message
                elif message is not None:
                    return message
                self._check()
        finally:
            messages.close()
        raise self._unavailable("The GPU call ended before the run did: try again.")

    def _given(self, messages: Generator[Message]) -> Iterator[Message]:
        """The messages of a call; whatever the Space raises is one sentence."""
        try:
            yield from messages
        except Exception as error:
            log.warning("A GPU call failed: %s", error, exc_info=error)
            raise self._unavailable(_sentence(error)) from error

    def _unavailable(self, sentence: str) -> GpuUnavailable:
        return GpuUnavailable(f"{sentence} {KEPT}" if self._dense else sentence, self._dense)


def _sentence(error: Exception) -> str:
    """What the Space says of a GPU that it did not give, or took away."""
    title, said = getattr(error, "title", ""), getattr(error, "message", None)
    if said is None:  # no error for visitors: the scheduler can't be reached, or the call pickled
        return f"The Space's GPU can't be used now ({type(error).__name__}): try again later."
    said = " ".join(str(said).split()).rstrip(".")
    if "aborted" in said:
        return (
            "The Space took the GPU away before the run was done: try again, with fewer steps or "
            "a smaller video."
        )
    if title == "ZeroGPU worker error":
        return f"The run failed on the Space's GPU ({said})."
    return f"The Space gave no GPU: {said}."
