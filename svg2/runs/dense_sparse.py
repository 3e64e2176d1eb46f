"""Dense and sparse generation of a run, each measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from svg2.errors import ConfigError, RequestError
from svg2.hooks.enable import check_runnable, enable, measure_dense
from svg2.hooks.stats import RunStats
from svg2.models.loading import as_kind
from svg2.models.request import ResolvedRequest
from svg2.runs.call import generate, warm_up
from svg2.runs.distributed import processes
from svg2.runs.progress import Watch, device_of, precision_of
from svg2.runs.provenance import PeakMemory, peak_memory, provenance
from svg2.runs.run import Run
from svg2.runs.turns import Turn
from svg2.trace.metrics import psnr_db
from svg2.trace.recording import Recorder, choose
from svg2.trace.records import Record, RecordingPolicy
from svg2.trace.video import Frames

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class DenseRun:
    """A generation with dense attention.

    Attributes:
        frames: uint8 `[F, H, W, 3]`.
        seconds: time of `encode`, `denoise` (the loop alone) and `decode`.
        step_seconds: time of each step of the loop.
        attention_seconds: time of the self-attention kernel in the loop; None if it could not be
            measured.
        step_attention_seconds: the same of each step.
        peak_memory_bytes: None if it could not be measured.
        backend: name of the attention backend in diffusers.
        dtype: dtype of the transformer.
        stock_seconds: time of the unmodified pipeline's loop, in models with joint text: it masks
            the padding of the prompt, which `seconds` leaves out. None for other models.
        stock_psnr_db: PSNR between the frames of those two loops; None if they are identical or
            were not measured.
    """

    request: ResolvedRequest
    frames: Frames
    seconds: dict[str, float]
    attention_seconds: float | None
    peak_memory_bytes: int | None
    backend: str
    dtype: str
    provenance: dict[str, Any]
    stock_seconds: float | None = None
    stock_psnr_db: float | None = None
    step_seconds: Sequence[float] = ()
    step_attention_seconds: Sequence[float | None] = ()


@dataclass(frozen=True, eq=False)
class SparseRun:
    """A generation with sparse attention. Other fields are as in `DenseRun`.

    Attributes:
        run: the request, the method and its settings.
        stats: statistics of the calls; recording is not part of their times.
        policy: what was to be recorded.
        records: what was recorded.
        note: what of the policy was left out to stay under its size limit; else empty.
        recording_seconds: time that recording took; `seconds` leaves it out.
    """

    run: Run
    frames: Frames
    seconds: dict[str, float]
    stats: RunStats
    peak_memory_bytes: int | None
    backend: str
    dtype: str
    provenance: dict[str, Any]
    policy: RecordingPolicy
    records: tuple[Record, ...]
    note: str
    recording_seconds: float
    step_seconds: Sequence[float] = ()


def check_sparse(pipe: Any, run: Run) -> None:
    """Check that a run's sparse side can follow its dense side, which may take long.

    Args:
        pipe: the loaded pipeline of the run's model.

    Raises:
        ConfigError: kernels (`impl`) that can't run the model here, or that take fewer clusters.
        RequestError: a pipeline that the method does not support.
    """
    _of_supported(check_runnable, as_kind(pipe, run.kind), run.config)


def _of_supported(switch: Callable[..., Result], *arguments: Any) -> Result:
    """Call a switch of `svg2.hooks.enable`; an unsupported pipeline is invalid input here."""
    try:
        return switch(*arguments)
    except TypeError as error:
        raise RequestError(str(error)) from error


def generate_dense(
    pipe: Any, run: Run, watch: Watch | None = None, turn: Turn | None = None
) -> DenseRun:
    """Generate with dense attention and measure it, after an untimed step that warms up.

    A model with joint text runs twice: unmodified, and without the padding of the prompt. The
    second is the dense run that sparse runs are compared with.

    Args:
        pipe: the loaded pipeline of the run's model.
        watch: reports progress and can cancel.
        turn: of this side of a race, which is given away between steps.

    Raises:
        RequestError: an image or video of the request that can't be read, or a pipeline that the
            method does not support.
        NotFinite: latents or frames that are infinite or NaN.
        Cancelled: the watch was cancelled.
    """
    watch = watch or Watch()
    pipe = as_kind(pipe, run.kind)
    stock_frames, stock_seconds = None, None
    if run.kind.joint_text:
        watch.report("stock", "warm up")
        warm_up(pipe, run, watch)
        watch.steps_after += run.request.num_inference_steps
        stock_frames, stock = generate(pipe, run, watch, "stock")
        watch.steps_after -= run.request.num_inference_steps
        stock_seconds = stock.seconds["denoise"]
    with peak_memory(device_of(pipe)) as memory:
        watch.report("dense", "warm up")
        with _of_supported(measure_dense, pipe) as handle:
            warm_up(pipe, run, watch)
            watch.check()
            _count_in(memory, turn)
            frames, loop = generate(pipe, run, watch, "dense", handle, turn=turn)
            stats = handle.stats
    return DenseRun(
        request=run.request,
        frames=frames,
        seconds=loop.seconds,
        step_seconds=tuple(loop.step_seconds),
        attention_seconds=stats.attention_seconds,
        step_attention_seconds=stats.step_attention_seconds,
        stock_seconds=stock_seconds,
        stock_psnr_db=None if stock_frames is None else psnr_db(stock_frames, frames),
        **_facts(pipe, memory),
    )


def generate_sparse(
    pipe: Any,
    run: Run,
    watch: Watch | None = None,
    policy: RecordingPolicy | None = None,
    turn: Turn | None = None,
) -> SparseRun:
    """Generate with sparse attention, measure it and record calls. Times leave recording out.

    On a GPU an untimed sparse step goes first and compiles the kernels. On a CPU there is nothing
    to compile, and the dense side has warmed up the rest.

    Args:
        pipe: the loaded pipeline of the run's model.
        watch: reports progress and can cancel.
        policy: what to record; None takes the default policy.
        turn: of this side of a race, which is given away between steps.

    Raises:
        RequestError: an image or video of the request that can't be read.
        ConfigError, RequestError: as `check_sparse`; or kernels that compute wrongly here.
        NotFinite: latents or frames that are infinite or NaN.
        Cancelled: the watch was cancelled.
    """
    from svg2.hooks.families import main_attentions  # loads torch, which a page can do without

    watch, policy = watch or Watch(), policy or RecordingPolicy()
    pipe = as_kind(pipe, run.kind)
    check_sparse(pipe, run)
    config, name = run.config, run.method.name
    attentions = main_attentions(pipe)
    selection = choose(
        policy,
        config,
        num_steps=run.kind.num_steps(run.request.num_inference_steps),
        num_layers=len(attentions),
        num_heads=attentions[0].module.heads // _sharing(pipe),
        n_tokens=run.n_tokens,
    )
    recorder = Recorder(
        selection,
        policy.branches,
        run.request.seed,
        min_keep_ratio=config.min_keep_ratio if config.predicts else None,
    )
    with peak_memory(device_of(pipe)) as memory, _refusing_kernels():
        if device_of(pipe).type == "cuda":
            watch.report(name, "warm up")
            with enable(pipe, config.replace(warmup_fraction=0.0, kmeans_iters_init=1)):
                warm_up(pipe, run, watch)
            watch.check()
        with enable(pipe, config, observer=recorder) as handle:
            _count_in(memory, turn)
            frames, loop = generate(
                *(pipe, run, watch, name, handle), turn=turn, aside=lambda: recorder.seconds
            )
            stats = handle.stats
    loop.seconds["denoise"] -= recorder.seconds
    return SparseRun(
        run=run,
        frames=frames,
        seconds=loop.seconds,
        step_seconds=tuple(loop.step_seconds),
        stats=stats,
        policy=policy,
        records=tuple(recorder.records),
        note=selection.note,
        recording_seconds=recorder.seconds,
        **_facts(pipe, memory),
    )


@contextmanager
def _refusing_kernels() -> Iterator[None]:
    """Kernels whose first result on a chip is wrong are a setting that can't be had here."""
    from kernels import ImplUnavailable  # loads torch

    try:
        yield
    except ImplUnavailable as error:
        raise ConfigError(str(error)) from error


def _count_in(memory: PeakMemory, turn: Turn | None) -> None:
    """Count a side's memory while it computes, and not while the other does."""
    if turn is not None:
        turn.memory = memory


def _facts(pipe: Any, memory: PeakMemory) -> dict[str, Any]:
    """The fields that dense and sparse runs share: where and how they ran."""
    from svg2.hooks.families import attention_backend, transformers_of

    backend = attention_backend(pipe) or os.environ.get("DIFFUSERS_ATTN_BACKEND", "native")
    return {
        "backend": str(getattr(backend, "value", backend)),
        "dtype": precision_of(transformers_of(pipe)[0]),
        "peak_memory_bytes": memory.nbytes,
        "provenance": provenance(device_of(pipe)) | {"processes": _sharing(pipe)},
    }


def _sharing(pipe: Any) -> int:
    """Number of processes that share this video."""
    from svg2.hooks.families import main_attentions

    is_shared = main_attentions(pipe)[0].module.processor._parallel_config is not None
    return processes().world if is_shared else 1
