"""A generation seen while it runs: how far it is, how long it takes, and whether to stop."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from svg2.errors import Cancelled, NotFinite
from svg2.hooks.steps import Wrapper, set_on_instance
from svg2.runs.distributed import agree, processes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svg2.hooks.enable import Handle
    from svg2.runs.turns import Turn

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
GLIMPSE_SECONDS = 0.5  # at most two previews a second

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a generation is.

    Attributes:
        run: `dense`, `stock` (dense as its pipeline does it, where that differs) or the method;
            empty while others have their turn or the model loads.
        stage: `wait` (for its turn), `gpu` (waiting for one), `load`, `warm up`, `encode`,
            `denoise`, `decode` or `measure`.
        step, num_steps: denoising steps done and to do; 0 of 0 in other stages.
        eta_seconds: time left for all steps that were asked for, as the mean of the last three
            steps tells; in the stage `wait`, until the turn comes; None while unknown.
        preview: the last picture of the middle latent frame as it is now. Only where it was asked
            for and can be had, and at most two a second.
        density: mean density of each step so far, where a dense call counts 1; with `preview`.
        seconds: what the steps so far took.
        beside: the other side of a race, as it was last reported; None where there is none.
        ahead: in the stage `wait`, how many go first.
    """

    run: str
    stage: str
    step: int = 0
    num_steps: int = 0
    eta_seconds: float | None = None
    preview: UInt8[ndarray, "Y X 3"] | None = field(default=None, compare=False, repr=False)
    density: tuple[float, ...] = field(default=(), compare=False)
    seconds: float = field(default=0.0, compare=False)
    beside: Progress | None = field(default=None, compare=False, repr=False)
    ahead: int = 0


OnProgress = Callable[[Progress], None]
ShouldCancel = Callable[[], bool]


class Watch:
    """Progress, time left and cancelling of one or more runs.

    Attributes:
        preview: whether reports are to show pictures and densities of the run.
        can_decode: whether no picture has failed yet; after one that has, none is tried.
        steps_after: denoising steps of the runs that follow the present one, for the time left.
        rivals: names of the runs that take turns now; empty where one follows the other.
    """

    def __init__(
        self,
        on_progress: OnProgress | None = None,
        should_cancel: ShouldCancel | None = None,
        preview: bool = False,
    ) -> None:
        self.on_progress = on_progress
        self.should_cancel = should_cancel
        self.preview = preview and on_progress is not None
        self.can_decode = True
        self.steps_after = 0
        self.rivals: tuple[str, ...] = ()
        self._cancelled = False
        self._step_seconds: dict[str, list[float]] = {}
        self._latest: dict[str, Progress] = {}

    def report(
        self, run: str, stage: str, step: int = 0, num_steps: int = 0, **glimpse: Any
    ) -> None:
        if self.on_progress is None:
            return
        beside = next((self._latest.get(name) for name in self.rivals if name != run), None)
        eta = None
        if num_steps and stage == "denoise":
            left = self._seconds_left(run, num_steps - step + self.steps_after)
            others = 0.0 if beside is None else self._seconds_of_rival(beside, num_steps)
            eta = None if left is None or others is None else left + others
        progress = Progress(run, stage, step, num_steps, eta, beside=beside, **glimpse)
        if run in self.rivals:
            self._latest[run] = dataclasses.replace(progress, beside=None)
        self.on_progress(progress)

    def step_took(self, run: str, seconds: float) -> None:
        """Note the time of a step."""
        self._step_seconds.setdefault(run, []).append(seconds)

    def _seconds_left(self, run: str, steps: int) -> float | None:
        """Time for more steps of a run, as its last three tell, or else those of any run."""
        recent = self._step_seconds.get(run) or [x for s in self._step_seconds.values() for x in s]
        return sum(recent[-3:]) / len(recent[-3:]) * steps if recent else None

    def _seconds_of_rival(self, rival: Progress, num_steps: int) -> float | None:
        """Time that the other side of a race still takes."""
        if rival.stage in ("decode", "measure"):
            return 0.0
        return self._seconds_left(rival.run, num_steps - rival.step)

    @property
    def is_cancelled(self) -> bool:
        wished = self.should_cancel is not None and self.should_cancel()
        return self._cancelled or wished

    def cancel(self) -> None:
        """Stop as if `should_cancel` had said so."""
        self._cancelled = True

    def check(self) -> None:
        if self.is_cancelled:
            raise Cancelled


class Loop:
    """A pipeline's denoising loop, seen by the progress bar that every pipeline opens around it.

    It also looks at the latents that the scheduler gives and at what the VAE decodes: the first
    that are not finite end the run.

    Attributes:
        seconds: of `encode`, up to the loop, and of `denoise`, the loop without its reports.
        step_seconds: of each step, without its report and what `aside` counts.
        handle: of the enabled pipeline, where reports are to show pictures and densities.
    """

    def __init__(
        self,
        pipe: Any,
        watch: Watch,
        run: str | None,
        stopwatch: Stopwatch,
        handle: Handle | None = None,
        turn: Turn | None = None,
        aside: Callable[[], float] | None = None,
    ) -> None:
        """Args as attributes, and:

        run: name in reports; None reports nothing.
        turn: of this side of a race, which is given away between steps.
        aside: seconds so far that are no part of the steps they fall in.
        """
        self.seconds: dict[str, float] = {}
        self.step_seconds: list[float] = []
        self.handle = handle
        self._latents: Tensor | None = None
        self._latents_seen = 0
        self._failure: NotFinite | None = None
        self._is_decoding = False
        self._glimpsed = -math.inf
        self._pipe = pipe
        self._watch = watch
        self._run = run
        self._stopwatch = stopwatch
        self._turn = turn
        self._aside = aside or (lambda: 0.0)
        self._aside_before = 0.0
        self._is_ended = False  # by the other side of a race
        self._step = 0
        self._num_steps = 0
        self._outside = 0.0
        self._last = 0.0

    def follow(self, undo: ExitStack) -> None:
        """Stand in for the pipeline's progress bar and see its latents, until `undo` is closed."""
        pipe, scheduler = self._pipe, self._pipe.scheduler
        set_on_instance(pipe, "progress_bar", self.progress_bar, undo)
        step = scheduler.step

        def seen_step(*args: Any, **kwargs: Any) -> Any:
            stepped = step(*args, **kwargs)
            self._see(stepped[0])
            return stepped

        set_on_instance(scheduler, "step", Wrapper(seen_step, step), undo)
        watch = self._watch

        def look_for_cancel(*_: Any) -> None:  # no method, which a copy of the model would copy
            watch.check()

        for attention in _interruptible_attentions(pipe):  # a step may take minutes
            undo.callback(attention.register_forward_pre_hook(look_for_cancel).remove)
        decoder = getattr(pipe.vae, "decoder", None)  # what follows it may clamp infinity away
        if decoder is not None:
            undo.callback(decoder.register_forward_hook(self._see_decoded).remove)

    def check_frames(self, frames: Any) -> None:
        """Check that the decoded frames are finite.

        Raises:
            NotFinite: they are not.
        """
        if self._failure is None and not np.isfinite(frames).all():
            self._fail_decoding()
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def progress_bar(self, total: int) -> Iterator[Loop]:
        """Stands in for the pipeline's own. Without the name of a `run` it reports nothing."""
        self._num_steps = total
        self.seconds["encode"] = self._stopwatch.lap()
        self._report("denoise")
        self._watch.check()
        self._hand_over()
        self._outside = 0.0
        self._stopwatch.lap()
        self._last = time.perf_counter()
        yield self
        self.seconds["denoise"] = self._stopwatch.lap() - self._outside
        if self._failure is not None:
            raise self._failure
        self._watch.check()
        if self._is_ended:
            raise Cancelled
        self._is_decoding = True
        self._report("decode")
        self._stopwatch.lap()

    def update(self, count: int = 1) -> None:
        """A step is done."""
        if self.handle is not None or self._turn is not None:
            Stopwatch(device_of(self._pipe))  # the wait for a step is the step's, not its report's
        now, aside = time.perf_counter(), self._aside()
        self._step += count
        self.step_seconds.append(now - self._last - (aside - self._aside_before))
        self._aside_before = aside
        if self._run is not None:
            self._watch.step_took(self._run, self.step_seconds[-1])
            self._report("denoise", **({} if self._failure else self._glimpse()))
        self._last = time.perf_counter()
        self._outside += self._last - now
        # Not counted as outside: to agree is to wait for all that the step has queued.
        is_over = self._watch.is_cancelled or self._failure is not None
        if agree(is_over, device_of(self._pipe)):
            self._stop()
        else:
            self._hand_over()

    def _stop(self) -> None:
        """End the loop after this step; an exception would leave what waits for a step's end."""
        if self._failure is None:
            self._watch.cancel()
        self._pipe._interrupt = True

    def _hand_over(self) -> None:
        """Let the other side of a race go on, where it is its turn."""
        if self._turn is None:
            return
        started = time.perf_counter()
        try:
            self._turn.step_done(self._step)
        except Cancelled:
            self._is_ended = True
            self._pipe._interrupt = True
        self._last = time.perf_counter()
        self._outside += self._last - started

    def _see(self, latents: Tensor) -> None:
        """Note the latents at the end of a step."""
        self._latents = latents
        self._latents_seen += 1
        if self._run is None or self._failure is not None or _is_finite(latents):
            return
        step = f"step {self._latents_seen} of the {self._run} run"
        self._failure = NotFinite(
            f"The latents became infinite or not a number in {step}, which computes in "
            f"{precision_of(self._pipe.transformer)}: {self._advice()}."
        )

    def _see_decoded(self, decoder: Any, inputs: Any, decoded: Tensor) -> None:
        if self._is_decoding:
            self._watch.check()  # a clip is decoded in parts
        is_over = self._run is None or self._failure is not None
        if self._is_decoding and not is_over and not _is_finite(decoded):
            self._fail_decoding()

    def _fail_decoding(self) -> None:
        self._failure = NotFinite(
            f"The frames became infinite or not a number when the VAE decoded the {self._run} "
            f"run in {precision_of(self._pipe.vae)}: get the model's weights anew, or use another "
            "model."
        )

    def _advice(self) -> str:
        """What may keep the latents finite."""
        dtype = precision_of(self._pipe.transformer)
        wider = {"fp16": "choose the precision bf16 or fp32", "bf16": "choose the precision fp32"}
        weights = "get the model's weights anew"
        return f"{wider[dtype]}, or {weights}" if dtype in wider else weights

    def _glimpse(self) -> dict[str, Any]:
        """What a report shows of the latents and densities so far."""
        if self.handle is None or time.monotonic() - self._glimpsed < GLIMPSE_SECONDS:
            return {}
        self._glimpsed = time.monotonic()
        return {"preview": self._picture(), "density": self.handle.step_density}

    def _picture(self) -> UInt8[ndarray, "Y X 3"] | None:
        """A preview; None where there is none. A run never fails for its preview."""
        if not self._watch.can_decode:
            return None
        try:
            return _preview(self._pipe, self._latents)
        except Exception:
            self._watch.can_decode = False
            _log.warning("No preview can be shown; the run goes on without.", exc_info=True)
            return None

    def _report(self, stage: str, **glimpse: Any) -> None:
        if self._run is not None:
            place = (self._step, self._num_steps) if stage == "denoise" else ()
            took = sum(self.step_seconds)
            self._watch.report(self._run, stage, *place, seconds=took, **glimpse)


def _interruptible_attentions(pipe: Any) -> list[Any]:
    """The self-attention modules between which a generation may be ended.

    None where several processes wait for each other, or for a compiled transformer, which a hook
    would have compiled again.
    """
    from svg2.hooks.families import family_of, transformers_of

    if processes().world > 1:
        return []
    outer = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    if any(
        hasattr(transformer, "_orig_mod") or module._compiled_call_impl is not None
        for transformer in outer
        if transformer is not None
        for module in transformer.modules()
    ):
        return []
    families = [(transformer, family_of(transformer)) for transformer in transformers_of(pipe)]
    return [
        attention.module
        for transformer, family in families
        if family is not None
        for attention in family.self_attentions(transformer)
    ]


def _preview(pipe: Any, latents: Tensor | None) -> UInt8[ndarray, "Y X 3"] | None:
    """The last picture of the middle latent frame; None where that is not simple or not cheap.

    It is decoded with the frame before it: alone it would be taken for the first of a clip, whose
    colours are coded in another way.
    """
    import torch

    vae = pipe.vae
    is_offloaded = getattr(vae, "_hf_hook", None) is not None  # decoding would move the model out
    if latents is None or latents.ndim != 5 or is_offloaded:
        return None
    middle = latents.shape[2] // 2
    frame = latents[:1, :, max(0, middle - 1) : middle + 1].to(vae.device, vae.dtype)
    mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    with torch.no_grad():
        if mean is not None and std is not None:
            mean, std = (frame.new_tensor(v).view(1, -1, 1, 1, 1) for v in (mean, std))
            frame = frame * std + mean
        else:
            frame = frame / getattr(vae.config, "scaling_factor", 1.0)
        video = vae.decode(frame, return_dict=False)[0]
    picture = pipe.video_processor.postprocess_video(video, output_type="np")[0][-1]
    return (np.asarray(picture) * 255).round().astype(np.uint8)


def _is_finite(x: Tensor) -> bool:
    """Whether no value is infinite or NaN. Waits for the device."""
    import torch

    least, most = torch.aminmax(x)  # both are NaN where one value is
    return math.isfinite(least.item()) and math.isfinite(most.item())


def precision_of(network: Any) -> str:
    """The dtype of a network as requests name it."""
    dtype = str(network.dtype).removeprefix("torch.")
    return PRECISIONS.get(dtype, dtype)


class Stopwatch:
    """Wall time between laps, with the GPU's queue drained at each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def lap(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before

    def _now(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline computes, offloaded or not."""
    return pipe._execution_device
