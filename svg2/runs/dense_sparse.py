"""Dense and sparse generation of one run, measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from svg2.hooks.enable import enable, measure_dense
from svg2.hooks.stats import RunStats
from svg2.models.loading import as_kind
from svg2.models.request import ResolvedRequest
from svg2.runs.call import generate, warm_up
from svg2.runs.distributed import processes
from svg2.runs.progress import Watch, device_of
from svg2.runs.provenance import PeakMemory, peak_memory, provenance
from svg2.runs.run import Run
from svg2.trace.metrics import psnr_db
from svg2.trace.recording import Recorder, choose
from svg2.trace.records import Record, RecordingPolicy
from svg2.trace.video import Frames


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
        run: the request, the method and its settings.
        stats: what the calls did; its times leave recording out.
        records: what the policy asked for; note: what of it was thinned away.
        recording_seconds: time that recording took, already taken off `seconds`.
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


def generate_dense(pipe: Any, run: Run, watch: Watch | None = None) -> DenseRun:
    """Generate with the pipeline's own attention, timed; one untimed step before warms it up.

    A joint model runs twice: as its pipeline does it, and with the prompt's padding dropped, which
    is what counts as dense.

    Raises:
        RequestError: the files given cannot be read.
        Cancelled: the watch said so.
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
        stock_seconds = stock["denoise"]
    with peak_memory(device_of(pipe)) as memory:
        watch.report("dense", "warm up")
        with measure_dense(pipe) as handle:
            warm_up(pipe, run, watch)
            watch.check()
            frames, seconds = generate(pipe, run, watch, "dense", handle)
            attention_seconds = handle.stats.attention_seconds
    return DenseRun(
        request=run.request,
        frames=frames,
        seconds=seconds,
        attention_seconds=attention_seconds,
        stock_seconds=stock_seconds,
        stock_psnr_db=None if stock_frames is None else psnr_db(stock_frames, frames),
        **_facts(pipe, memory),
    )


def generate_sparse(
    pipe: Any, run: Run, watch: Watch | None = None, policy: RecordingPolicy | None = None
) -> SparseRun:
    """Generate with sparse attention, timed and recorded; recording is taken off the time.

    On a GPU one untimed sparse step goes before, which compiles kernels. On a CPU none does: the
    first steps of a run are dense, or the dense run before it has warmed up what both share.

    Raises:
        RequestError: the files given cannot be read.
        Cancelled: the watch said so.
    """
    from svg2.hooks.families import main_attentions  # loads torch, which a page can do without

    watch, policy = watch or Watch(), policy or RecordingPolicy()
    pipe = as_kind(pipe, run.kind)
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
    recorder = Recorder(selection, policy.branches, run.request.seed)
    with peak_memory(device_of(pipe)) as memory:
        if device_of(pipe).type == "cuda":
            watch.report(name, "warm up")
            with enable(pipe, config.replace(warmup_fraction=0.0, kmeans_iters_init=1)):
                warm_up(pipe, run, watch)
            watch.check()
        with enable(pipe, config, observer=recorder) as handle:
            frames, seconds = generate(pipe, run, watch, name, handle)
            stats = handle.stats
    seconds["denoise"] -= recorder.seconds
    return SparseRun(
        run=run,
        frames=frames,
        seconds=seconds,
        stats=stats,
        policy=policy,
        records=tuple(recorder.records),
        note=selection.note,
        recording_seconds=recorder.seconds,
        **_facts(pipe, memory),
    )


def _facts(pipe: Any, memory: PeakMemory) -> dict[str, Any]:
    """What both kinds of run say of where they ran."""
    from svg2.hooks.families import attention_backend, transformers_of

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
    from svg2.hooks.families import main_attentions

    is_shared = main_attentions(pipe)[0].module.processor._parallel_config is not None
    return processes().world if is_shared else 1
