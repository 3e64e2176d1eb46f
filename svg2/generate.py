"""Dense and sparse generation of one request, step by step: encode, denoise, decode, measure."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from svg2.config import SVG2Config, method_config
from svg2.distributed import processes
from svg2.environment import PeakMemory, peak_memory, provenance
from svg2.inputs import read_image, read_video
from svg2.media import Frames, encode_mp4, json_bytes, side_by_side, write_atomic
from svg2.metrics import psnr_db, psnr_per_frame, ssim
from svg2.models import ModelSpec, as_kind, load_pipeline, model_spec
from svg2.pipelines import call_arguments
from svg2.progress import (
    Cancelled,
    Loop,
    OnProgress,
    Progress,
    ShouldCancel,
    Stopwatch,
    Watch,
    device_of,
)
from svg2.recording import Recorder, choose
from svg2.request import Request, RequestError, ResolvedRequest
from svg2.stats import DENSE_STAGE, STAGES, RunStats
from svg2.trace import (
    VERSION,
    Record,
    RecordingPolicy,
    Run,
    Trace,
    policy_dict,
    trace_bytes,
)
from svg2.tracking import set_on_instance

if TYPE_CHECKING:
    from svg2.enable import Handle

__all__ = [
    "Cancelled",
    "Comparison",
    "DenseRun",
    "Progress",
    "Request",
    "RequestError",
    "SparseRun",
    "add_run",
    "compare",
    "generate_dense",
    "generate_sparse",
    "result_record",
    "save_comparison",
    "start_trace",
]


@dataclass(frozen=True, eq=False)
class DenseRun:
    """One generation on the pipeline's own attention.

    Attributes:
        frames: uint8 `[F, H, W, 3]`.
        seconds: of `encode`, `denoise` (the loop alone) and `decode`.
        attention_seconds: of the self-attention kernel in the loop; None where it could not be
            told apart.
        stock_seconds: of the loop as the pipeline does it by itself, where that masks the
            prompt's padding and `seconds` are without it; None elsewhere.
        stock_psnr_db: how near those two are; None where identical or not measured.
        backend: name of the attention backend in diffusers; dtype: of the transformer.
        peak_memory_bytes: None where it could not be measured.
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


@dataclass(frozen=True, eq=False)
class SparseRun:
    """One generation on sparse attention; fields as in `DenseRun`.

    Attributes:
        config: the settings as the method ran them.
        stats: what the calls did; its times leave recording out.
        records: what the policy asked for; note: what of it was thinned away.
        recording_seconds: time that recording took, already taken off `seconds`.
    """

    request: ResolvedRequest
    method: str
    config: SVG2Config
    frames: Frames
    seconds: dict[str, float]
    stats: RunStats
    peak_memory_bytes: int | None
    backend: str
    dtype: str
    provenance: dict[str, Any]
    grid: tuple[int, int, int]
    policy: RecordingPolicy
    records: tuple[Record, ...]
    note: str
    recording_seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """A dense run, a sparse one of the same request, the fields of result.json, and the trace."""

    dense: DenseRun
    sparse: SparseRun
    result: dict[str, Any]
    trace: Trace


def compare(
    request: Request,
    method: str,
    config: SVG2Config | None = None,
    *,
    pipe: Any = None,
    on_progress: OnProgress | None = None,
    should_cancel: ShouldCancel | None = None,
    dense: DenseRun | None = None,
    policy: RecordingPolicy | None = None,
    preview: bool = False,
) -> Comparison:
    """Generate a request with dense and with sparse attention, and measure one by the other.

    Args:
        config: None takes the model's own settings.
        pipe: the loaded model of the request; None loads it.
        dense: a dense run of the same request from before; its times are then marked as reused.
        preview: let progress carry pictures and densities; making them is left out of the times.
    Raises:
        RequestError, ConfigError: what was asked can't work.
        ModelUnavailable: the model can't be loaded here.
        Cancelled: `should_cancel` said so.
    """
    watch = Watch(on_progress, should_cancel, preview)
    spec = model_spec(request.model)
    request = request.resolve(spec)
    size = (request.num_frames, request.height, request.width)
    config = method_config(method, spec.config_for(*size) if config is None else config)
    config.check_tokens(math.prod(spec.grid(*size)))
    if dense is not None and dense.request != request:
        raise RequestError("The dense run given is of another request.")
    if pipe is None:
        watch.report("", "load")
        pipe = load_pipeline(request.model, request.dtype, request.device)
        watch.check()
    is_reused = dense is not None
    if dense is None:
        # The sparse run is not slower than the dense one, as a first guess of the time left.
        watch.steps_after = request.num_inference_steps
        dense = generate_dense(pipe, request, watch.on_progress, watch.should_cancel, watch)
    try:
        watch.steps_after = 0
        sparse = generate_sparse(
            *(pipe, request, method, config, watch.on_progress, watch.should_cancel),
            policy=policy or RecordingPolicy(),
            watch=watch,
        )
        watch.report(method, "measure")
        result = result_record(dense, sparse, is_reused)
        trace = add_run(start_trace(dense, sparse), dense, sparse, result)
        watch.check()
    except Cancelled:
        raise Cancelled(dense) from None
    return Comparison(dense, sparse, result, trace)


def generate_dense(
    pipe: Any,
    request: Request,
    on_progress: OnProgress | None = None,
    should_cancel: ShouldCancel | None = None,
    watch: Watch | None = None,
) -> DenseRun:
    """Generate with the pipeline's own attention, timed; one untimed step before warms it up.

    A joint model runs twice: as its pipeline does it, and with the prompt's padding dropped, which
    is what counts as dense.

    Raises:
        RequestError: the model can't make a video of that size, or not from what is given.
        Cancelled: `should_cancel` said so.
    """
    from svg2.enable import measure_dense

    watch = watch or Watch(on_progress, should_cancel)
    spec = model_spec(request.model)
    request = request.resolve(spec)
    kind = spec.kind_for(request)
    pipe = as_kind(pipe, kind)
    stock_frames, stock_seconds = None, None
    if kind.joint_text:
        watch.report("stock", "warm up")
        _warm_up(pipe, request, spec, watch)
        watch.steps_after += request.num_inference_steps
        stock_frames, stock = _generate(pipe, request, spec, watch, "stock")
        watch.steps_after -= request.num_inference_steps
        stock_seconds = stock["denoise"]
    with peak_memory(device_of(pipe)) as memory:
        watch.report("dense", "warm up")
        with measure_dense(pipe) as handle:
            _warm_up(pipe, request, spec, watch)
            watch.check()
            frames, seconds = _generate(pipe, request, spec, watch, "dense", handle)
            attention_seconds = handle.stats.attention_seconds
    return DenseRun(
        request=request,
        frames=frames,
        seconds=seconds,
        attention_seconds=attention_seconds,
        stock_seconds=stock_seconds,
        stock_psnr_db=None if stock_frames is None else psnr_db(stock_frames, frames),
        **_facts(pipe, memory),
    )


def generate_sparse(
    pipe: Any,
    request: Request,
    method: str,
    config: SVG2Config,
    on_progress: OnProgress | None = None,
    should_cancel: ShouldCancel | None = None,
    policy: RecordingPolicy | None = None,
    watch: Watch | None = None,
) -> SparseRun:
    """Generate with sparse attention, timed and recorded; recording is taken off the time.

    On a GPU one untimed sparse step goes before, which compiles kernels. A CPU has nothing to
    compile, and warm-up belongs to the dense side alone.

    Raises:
        RequestError, ConfigError: what was asked can't work.
        Cancelled: `should_cancel` said so.
    """
    from svg2.enable import enable
    from svg2.processors import main_attentions

    watch = watch or Watch(on_progress, should_cancel)
    spec = model_spec(request.model)
    request = request.resolve(spec)
    kind = spec.kind_for(request)
    pipe = as_kind(pipe, kind)
    config = method_config(method, config)
    policy = policy or RecordingPolicy()
    grid = spec.grid(request.num_frames, request.height, request.width)
    config.check_tokens(math.prod(grid))
    attentions = main_attentions(pipe)
    selection = choose(
        policy,
        config,
        num_steps=kind.num_steps(request.num_inference_steps),
        num_layers=len(attentions),
        num_heads=attentions[0].module.heads // _sharing(pipe),
        n_tokens=math.prod(grid),
    )
    recorder = Recorder(selection, policy.branches, request.seed)
    with peak_memory(device_of(pipe)) as memory:
        if device_of(pipe).type == "cuda":
            watch.report(method, "warm up")
            with enable(pipe, config.replace(warmup_fraction=0.0, kmeans_iters_init=1)):
                _warm_up(pipe, request, spec, watch)
            watch.check()
        with enable(pipe, config, observer=recorder) as handle:
            frames, seconds = _generate(pipe, request, spec, watch, method, handle)
            stats = handle.stats
    seconds["denoise"] -= recorder.seconds
    return SparseRun(
        request=request,
        method=method,
        config=config,
        frames=frames,
        seconds=seconds,
        stats=stats,
        grid=grid,
        policy=policy,
        records=tuple(recorder.records),
        note=selection.note,
        recording_seconds=recorder.seconds,
        **_facts(pipe, memory),
    )


def result_record(
    dense: DenseRun, sparse: SparseRun, dense_reused: bool = False
) -> dict[str, Any]:
    """The fields of result.json.

    `dense_seconds` and `svg2_seconds` are the denoising loops alone; a joint model's
    `dense_stock_seconds` are those of its pipeline as it is, with a mask over the prompt's
    padding, and its `dense_seconds` those with the padding trimmed. `attention_speedup` compares
    self-attention over the whole loops, the sparse side with clustering, permutation, selection
    and its dense warm-up. `attention_share` is what the self-attention kernel takes of the dense
    loop. `density` and `compute_density` are over the sparse calls and null where none ran.
    """
    asked, stats = sparse.request.to_dict(), sparse.stats
    dense_seconds, svg2_seconds = dense.seconds["denoise"], sparse.seconds["denoise"]
    frames_db = psnr_per_frame(dense.frames, sparse.frames).tolist()
    compute_density = stats.compute_density
    return {
        **{
            name: asked[name]
            for name in (
                *("model", "prompt", "negative_prompt", "seed", "height", "width"),
                *("num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2"),
                *("true_cfg_scale", "image", "video"),
            )
        },
        "dtype": sparse.dtype,
        "tokens": math.prod(sparse.grid),
        "text_tokens": stats.n_text,
        "method": sparse.method,
        "config": sparse.config.to_dict(),
        "density": stats.density,
        "density_run": stats.density_run,
        "compute_density": compute_density,
        "flop_ratio": None if compute_density is None else 1 / compute_density,
        "kept_mass": stats.kept_mass,
        "psnr_db": psnr_db(dense.frames, sparse.frames),
        "psnr_per_frame": [None if math.isinf(value) else value for value in frames_db],
        "ssim": ssim(dense.frames, sparse.frames),
        "dense_seconds": dense_seconds,
        "dense_stock_seconds": dense.stock_seconds,
        "dense_stock_psnr_db": dense.stock_psnr_db,
        "dense_reused": dense_reused,
        "svg2_seconds": svg2_seconds,
        "speedup": dense_seconds / svg2_seconds,
        "attention_speedup": _ratio(dense.attention_seconds, stats.attention_seconds),
        "attention_share": _ratio(dense.attention_seconds, dense_seconds),
        "dense_attention_seconds": dense.attention_seconds,
        "svg2_attention_seconds": stats.attention_seconds,
        "stage_seconds": {name: stats.stage_seconds[name] for name in (*STAGES, DENSE_STAGE)},
        "recording_seconds": sparse.recording_seconds,
        "total_seconds": sparse.seconds,
        "dense_total_seconds": dense.seconds,
        "peak_memory_bytes": sparse.peak_memory_bytes,
        "dense_peak_memory_bytes": dense.peak_memory_bytes,
        "centroid_bytes": stats.cache_bytes,
        "backend": {"dense": sparse.backend, "attention": stats.impl},
        **sparse.provenance,
    }


def start_trace(dense: DenseRun, sparse: SparseRun) -> Trace:
    """A trace of a dense run and no sparse one yet; `sparse` tells the grid and the policy."""
    request = dense.request
    fps = model_spec(request.model).fps
    return Trace(
        version=VERSION,
        request=request.to_dict()
        | {"fps": fps, "dtype": dense.dtype, "device": dense.provenance["device"]},
        grid=sparse.grid,
        n_tokens=math.prod(sparse.grid),
        n_text=sparse.stats.n_text,
        policy=policy_dict(sparse.policy, sparse.note),
        provenance=dense.provenance | {"impl": sparse.stats.impl},
        dense_result={
            "dense_seconds": dense.seconds["denoise"],
            "total_seconds": dense.seconds,
            "attention_seconds": dense.attention_seconds,
            "peak_memory_bytes": dense.peak_memory_bytes,
            "backend": dense.backend,
            "dtype": dense.dtype,
        },
        dense_mp4=encode_mp4(dense.frames, fps),
    )


def add_run(trace: Trace, dense: DenseRun, sparse: SparseRun, result: dict[str, Any]) -> Trace:
    """The trace with one more sparse run of its request."""
    stats = sparse.stats
    run = Run(
        method=sparse.method,
        config=sparse.config.to_dict(),
        result=result,
        mp4=encode_mp4(sparse.frames, trace.request["fps"]),
        psnr_frame=psnr_per_frame(dense.frames, sparse.frames),
        call=stats.call,
        density=stats.call_density,
        kept_mass=stats.call_kept_mass,
        stage_ms=stats.call_stage_ms,
    )
    number = len(trace.runs)
    records = tuple(dataclasses.replace(record, run=number) for record in sparse.records)
    return dataclasses.replace(trace, runs=(*trace.runs, run), records=(*trace.records, *records))


def save_comparison(comparison: Comparison, folder: str | os.PathLike) -> dict[str, Path]:
    """Write dense.mp4, svg2.mp4, compare.mp4, trace.npz and result.json, each whole or not at all.

    Raises:
        OSError: the folder can't be written.
    """
    dense, sparse, result = comparison.dense, comparison.sparse, comparison.result
    trace = comparison.trace
    psnr = "identical" if result["psnr_db"] is None else f"{result['psnr_db']:.1f} dB"
    captions = (
        f"dense  {result['dense_seconds']:.1f} s",
        f"{result['method']}  {result['svg2_seconds']:.1f} s  {psnr}",
    )
    both = encode_mp4(side_by_side(dense.frames, sparse.frames, captions), trace.request["fps"])
    contents = {
        "dense.mp4": trace.dense_mp4,
        "svg2.mp4": trace.runs[0].mp4,
        "compare.mp4": both,
        "trace.npz": trace_bytes(trace),
        "result.json": json_bytes(result),
    }
    for name, data in contents.items():
        write_atomic(Path(folder, name), data)
    return {name: Path(folder, name) for name in contents}


def _generate(
    pipe: Any,
    request: ResolvedRequest,
    spec: ModelSpec,
    watch: Watch,
    run: str,
    handle: Handle | None = None,
) -> tuple[Frames, dict[str, float]]:
    """Frames, and seconds of encode, denoise and decode."""
    stopwatch = Stopwatch(device_of(pipe))
    loop = Loop(pipe, watch, run, stopwatch, handle if watch.preview else None)
    watch.check()
    watch.report(run, "encode")
    stopwatch.lap()
    frames = _call(pipe, request, spec, loop, output_type="np")[0]
    loop.seconds["decode"] = stopwatch.lap()
    watch.check()
    return (np.asarray(frames) * 255).round().astype(np.uint8), loop.seconds


def _warm_up(pipe: Any, request: ResolvedRequest, spec: ModelSpec, watch: Watch) -> None:
    """One step that nobody sees."""
    num_steps = 1
    kind = spec.kind_for(request)
    while kind.num_steps(num_steps) < 1:
        num_steps += 1
    short = dataclasses.replace(request, num_inference_steps=num_steps)
    loop = Loop(pipe, watch, None, Stopwatch(device_of(pipe)))
    _call(pipe, short, spec, loop, output_type="latent")


def _call(
    pipe: Any, request: ResolvedRequest, spec: ModelSpec, loop: Loop, output_type: str
) -> Any:
    """The pipeline's own frames or latents of a request.

    The starting noise comes from a CPU generator, so that a seed means the same on every device.
    """
    import torch

    kind = spec.kind_for(request)
    given = None
    if kind.takes == "image" and request.image is not None:
        given = read_image(request.image, request.width, request.height)
    elif kind.takes == "video" and request.video is not None:
        size = (request.num_frames, request.width, request.height)
        given = read_video(request.video, *size)
    arguments = call_arguments(kind, request, spec.max_sequence_length, given)
    if loop.handle is not None and "callback_on_step_end" in inspect.signature(pipe).parameters:
        arguments = {**arguments, "callback_on_step_end": loop.see}
    generator = torch.Generator("cpu").manual_seed(request.seed)
    with ExitStack() as undo:
        set_on_instance(pipe, "progress_bar", loop.progress_bar, undo)
        if kind.guidance == "guider":
            guider = pipe.guider
            undo.callback(setattr, pipe, "guider", guider)
            pipe.guider = guider.new(guidance_scale=request.guidance_scale)
        try:
            return pipe(**arguments, generator=generator, output_type=output_type).frames
        except Cancelled:
            pipe.maybe_free_model_hooks()  # what the pipeline's call ends with
            raise


def _facts(pipe: Any, memory: PeakMemory) -> dict[str, Any]:
    """What both kinds of run say of where they ran."""
    from svg2.processors import attention_backend, transformers_of

    backend = attention_backend(pipe) or os.environ.get("DIFFUSERS_ATTN_BACKEND", "native")
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    dtype = str(transformers_of(pipe)[0].dtype).removeprefix("torch.")
    return {
        "backend": str(getattr(backend, "value", backend)),
        "dtype": names.get(dtype, dtype),
        "peak_memory_bytes": memory.nbytes,
        "provenance": provenance(device_of(pipe)) | {"processes": _sharing(pipe)},
    }


def _sharing(pipe: Any) -> int:
    """Processes that work on one video together."""
    from svg2.processors import main_attentions

    is_shared = main_attentions(pipe)[0].module.processor._parallel_config is not None
    return processes().world if is_shared else 1


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator
