"""Comparison of a dense and a sparse run of the same request, and the files it writes."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svg2.errors import Cancelled, RequestError
from svg2.runs.call import load_for
from svg2.runs.dense_sparse import (
    DenseRun,
    SparseRun,
    check_sparse,
    generate_dense,
    generate_sparse,
)
from svg2.runs.progress import Watch
from svg2.runs.race import race, why_no_race
from svg2.runs.result import Order, result_record
from svg2.runs.run import Run
from svg2.trace.atomic import json_bytes, write_or_keep
from svg2.trace.clip_settings import tags_of
from svg2.trace.file import trace_bytes
from svg2.trace.metrics import psnr_per_frame
from svg2.trace.records import VERSION, RecordingPolicy, Trace, TraceRun, policy_dict
from svg2.trace.video import check_encoder, encode_mp4, side_by_side


@dataclass(frozen=True, eq=False)
class Comparison:
    """A dense and a sparse run of the same request, the fields of result.json, and the trace."""

    dense: DenseRun
    sparse: SparseRun
    result: dict[str, Any]
    trace: Trace


def compare(
    run: Run,
    pipe: Any = None,
    *,
    watch: Watch | None = None,
    dense: DenseRun | None = None,
    policy: RecordingPolicy | None = None,
    in_turns: bool = True,
) -> Comparison:
    """Generate a video with dense and with sparse attention, and compare the two.

    The two take turns, step by step, where the model allows it, so that a machine that is busy for
    a while slows both. Otherwise one follows the other, and the result says so.

    Args:
        pipe: the loaded pipeline of the run's model; None loads it.
        watch: reports progress and can cancel.
        dense: an earlier dense run of the same request. It is used again, and the result says so.
        policy: what to record; None takes the default policy.
        in_turns: False has the sparse run follow the dense one.

    Raises:
        RequestError: a `dense` of another request; an input file that can't be read; or a
            pipeline that the method does not support.
        ConfigError: kernels (`impl`) that can't run the model here, or that take fewer clusters.
        MediaError: no ffmpeg that can encode the clips.
        ModelUnavailable: a model that can't be loaded here.
        NotFinite: latents or frames that are infinite or NaN.
        Cancelled: the watch was cancelled; it carries the dense run if that was complete.
    """
    watch = watch or Watch()
    if dense is not None and dense.request != run.request:
        raise RequestError("The dense run must be of the same request as the sparse run.")
    check_encoder()
    if pipe is None:
        pipe = load_for(run, watch)
    check_sparse(pipe, run)
    if dense is None and in_turns and why_no_race(pipe) is None:
        dense, sparse = race(pipe, run, watch, policy)
        return compared(dense, sparse, watch, Order.IN_TURNS)
    order = Order.DENSE_FIRST if dense is None else Order.DENSE_EARLIER
    if dense is None:
        # For the time left, a sparse step counts as much as a dense one until it is measured.
        watch.steps_after = run.request.num_inference_steps
        dense = generate_dense(pipe, run, watch)
    try:
        watch.steps_after = 0
        sparse = generate_sparse(pipe, run, watch, policy)
    except Cancelled:
        raise Cancelled(dense) from None
    return compared(dense, sparse, watch, order)


def compared(dense: DenseRun, sparse: SparseRun, watch: Watch, order: Order) -> Comparison:
    """The comparison of two complete runs.

    Raises:
        Cancelled: the watch was cancelled; it carries the dense run.
    """
    watch.report(sparse.run.method.name, "measure")
    result = result_record(dense, sparse, order)
    trace = add_run(start_trace(dense, sparse), dense, sparse, result)
    if watch.is_cancelled:
        raise Cancelled(dense)
    return Comparison(dense, sparse, result, trace)


def start_trace(dense: DenseRun, sparse: SparseRun) -> Trace:
    """A trace of the dense run without sparse runs; `sparse` gives its grid and its policy."""
    fps, grid = sparse.run.spec.fps, sparse.run.grid
    return Trace(
        version=VERSION,
        request=dense.request.to_dict()
        | {"fps": fps, "dtype": dense.dtype, "device": dense.provenance["device"]},
        grid=grid,
        n_tokens=sparse.run.n_tokens,
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
        dense_mp4=encode_mp4(dense.frames, fps, tags=tags_of(dense.request.to_dict())),
    )


def add_run(trace: Trace, dense: DenseRun, sparse: SparseRun, result: dict[str, Any]) -> Trace:
    """The trace with one more sparse run of the same request, and its records."""
    stats = sparse.stats
    run = TraceRun(
        method=sparse.run.method.name,
        config=sparse.run.config.to_dict(),
        result=result,
        mp4=encode_mp4(
            sparse.frames,
            trace.request["fps"],
            tags=tags_of(trace.request, sparse.run.config.to_dict()),
        ),
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
    """Write dense.mp4, svg2.mp4, compare.mp4, trace.npz and result.json into a folder.

    All are written or none: earlier files of a comparison stay where that fails.

    Returns:
        Paths by file name.
    Raises:
        OSError: a folder that can't be written; `svg2.trace.atomic.KeptElsewhere` where the files
            are in another one.
    """
    dense, sparse, result = comparison.dense, comparison.sparse, comparison.result
    trace = comparison.trace
    psnr = "identical" if result["psnr_db"] is None else f"{result['psnr_db']:.1f} dB"
    captions = (
        f"dense  {result['dense_seconds']:.1f} s",
        f"{result['method']}  {result['svg2_seconds']:.1f} s  {psnr}",
    )
    both = encode_mp4(
        side_by_side(dense.frames, sparse.frames, captions),
        trace.request["fps"],
        tags=tags_of(trace.request, trace.runs[0].config),
    )
    contents = {
        "dense.mp4": trace.dense_mp4,
        "svg2.mp4": trace.runs[0].mp4,
        "compare.mp4": both,
        "trace.npz": trace_bytes(trace),
        "result.json": json_bytes(result),
    }
    write_or_keep(folder, contents)
    return {name: Path(folder, name) for name in contents}
