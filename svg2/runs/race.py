"""A dense and a sparse run of the same request in turns, so that both meet the same machine."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

from svg2.errors import Cancelled
from svg2.models.loading import as_kind
from svg2.runs.dense_sparse import DenseRun, SparseRun, generate_dense, generate_sparse
from svg2.runs.distributed import processes
from svg2.runs.progress import Watch, device_of
from svg2.runs.run import Run
from svg2.runs.turns import Generators, Turns
from svg2.trace.records import RecordingPolicy

if TYPE_CHECKING:
    import torch

_PARTS = ("transformer", "transformer_2")
# For the second side's latents, prompt, scheduler and centroids, at the sizes of today's models.
_ROOM_BYTES = 1 << 30


def why_no_race(pipe: Any) -> str | None:
    """What keeps the two sides of a comparison from taking turns, as a sentence; None if nothing.

    Args:
        pipe: the loaded pipeline.
    """
    reason = _why_no_turns(pipe)
    return None if reason is None else f"{reason}, so the sparse run follows the dense one."


def _why_no_turns(pipe: Any) -> str | None:
    if processes().world > 1:
        return "Several processes share the work"
    for name in _PARTS:
        transformer = getattr(pipe, name, None)
        if transformer is None:
            continue
        modules = list(transformer.modules())
        if any(hasattr(module, "_hf_hook") for module in modules):
            return "The model is moved in and out of the GPU's memory"
        if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules):
            return "The model is compiled"
        if any("forward" in vars(module) for module in modules):
            return "The model has hooks"  # a copy would run the original behind them
        if getattr(transformer, "hf_quantizer", None) is not None:
            return "The model is quantized"
    device = device_of(pipe)
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if free + unused < _ROOM_BYTES:
            return "The GPU's memory has no room for two videos"
    return None


def race(
    pipe: Any, run: Run, watch: Watch | None = None, policy: RecordingPolicy | None = None
) -> tuple[DenseRun, SparseRun]:
    """Generate with dense and with sparse attention, a step of one and then of the other.

    Args: as `svg2.runs.dense_sparse.generate_sparse`; `why_no_race` must have nothing to say.

    Raises:
        As `generate_dense` and `generate_sparse`.
        Cancelled: the watch was cancelled; it carries the dense run if that was complete.
    """
    watch = watch or Watch()
    pipe = as_kind(pipe, run.kind)
    device = device_of(pipe)
    generators = Generators(device)
    turns, before = Turns(generators), generators.states()
    first, second = turns.sides
    watch.rivals = ("dense", run.method.name)
    sides = (
        _Side(turns, 0, device, lambda: generate_dense(pipe, run, watch, first)),
        _Side(turns, 1, device, lambda: generate_sparse(_twin(pipe), run, watch, policy, second)),
    )
    try:
        for side in sides:
            side.start()
        for side in sides:
            side.join()
    except BaseException:
        watch.cancel()
        turns.end()
        for side in sides:  # at most a step; a second interrupt does not wait
            side.join()
        raise
    finally:
        watch.rivals = ()
        generators.restore(before)
    failures = [side.error for side in sides if side.error is not None]
    # Of two, one is the cancelling that the other one caused.
    for error in sorted(failures, key=lambda e: isinstance(e, Cancelled)):
        if isinstance(error, Cancelled):
            raise Cancelled(sides[0].made) from None
        raise error
    return sides[0].made, sides[1].made


class _Side(threading.Thread):
    """One side of a race. A failure ends the race for the other too, except for a done one."""

    def __init__(
        self, turns: Turns, number: int, device: torch.device, work: Callable[[], Any]
    ) -> None:
        super().__init__(name=f"svg2-race-{number}", daemon=True)
        self.made: Any = None
        self.error: BaseException | None = None
        self._turns = turns
        self._turn = turns.sides[number]
        self._device = device
        self._work = work

    def run(self) -> None:
        try:
            self._turn.begin()
            with _current(self._device):
                self.made = self._work()
        except BaseException as error:  # `race` raises it in the caller's thread
            self.error = error
            self._turns.end()
        finally:
            self._turn.leave()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """The device as the current one of this thread, which starts with the first."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(device)


def _twin(pipe: Any) -> Any:
    """A pipeline with a scheduler and attention processors of its own, and the same weights."""
    twin = copy.copy(pipe)
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    for name in _PARTS:
        transformer = getattr(pipe, name, None)
        if transformer is not None:
            tensors = chain(transformer.parameters(), transformer.buffers())
            setattr(twin, name, copy.deepcopy(transformer, {id(t): t for t in tensors}))
    return twin
