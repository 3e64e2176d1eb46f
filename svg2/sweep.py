"""Many budgets and methods on one request, each measured by the same dense run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg2.config import SVG2Config, method_config
from svg2.generate import (
    Cancelled,
    DenseRun,
    OnProgress,
    ShouldCancel,
    SparseRun,
    Watch,
    add_run,
    generate_dense,
    generate_sparse,
    result_record,
    start_trace,
)
from svg2.media import json_bytes, write_atomic
from svg2.models import load_pipeline, model_spec
from svg2.recording import fit
from svg2.request import Request
from svg2.trace import RecordingPolicy, Trace, trace_bytes


def sweep(
    request: Request,
    methods: Sequence[str],
    top_ps: Sequence[float],
    config: SVG2Config | None,
    folder: Path,
    *,
    pipe: Any = None,
    on_progress: OnProgress | None = None,
    should_cancel: ShouldCancel | None = None,
    policy: RecordingPolicy | None = None,
    trace_bytes_limit: int | None = None,
) -> dict[str, Any]:
    """Run every method at every budget and return what sweep.json holds.

    sweep.json and trace.npz are written after each run, so that what is done stays. Each point has
    the fields of result.json and, by the run of its method at top-p 1 (`baselines`):

    - `kernel_gain`: dense seconds over those at top-p 1, what our attention path gains by itself;
    - `sparsity_speedup`: seconds at top-p 1 over those of the point, what skipping gains;
    - `sparsity_speedup_bound`: 1/(1 - a(1 - density_run)), which that cannot pass; a is the share
      of self-attention in the run at top-p 1.

    With `trace_bytes_limit` the trace keeps fewer records, so that its file is no larger.

    Raises: as `svg2.generate.compare`; OSError when the folder can't be written.
    """
    watch = Watch(on_progress, should_cancel)
    spec = model_spec(request.model)
    request = request.resolve(spec)
    size = (request.num_frames, request.height, request.width)
    config = spec.config_for(*size) if config is None else config
    config.check_tokens(math.prod(spec.grid(*size)))
    plan = [
        (method, method_config(method, config).replace(top_p=top_p))
        for method in dict.fromkeys(methods)
        for top_p in (1.0, *sorted({float(p) for p in top_ps} - {1.0}, reverse=True))
    ]
    # every run records, so each has its share of the trace
    policy = policy or RecordingPolicy()
    policy = dataclasses.replace(policy, max_bytes=policy.max_bytes // len(plan))
    if pipe is None:
        watch.report("", "load")
        pipe = load_pipeline(request.model, request.dtype, request.device)
        watch.check()

    watch.steps_after = len(plan) * request.num_inference_steps
    dense = generate_dense(pipe, request, watch=watch)
    content: dict[str, Any] = {
        "dense": _dense_record(dense),
        "points": [],
        "baselines": {},
        "complete": False,
    }
    trace: Trace | None = None
    for method, run_config in plan:
        watch.steps_after -= request.num_inference_steps
        try:
            sparse = generate_sparse(pipe, request, method, run_config, policy=policy, watch=watch)
        except Cancelled:
            raise Cancelled(dense) from None
        result = result_record(dense, sparse)
        if run_config.top_p == 1.0:
            content["baselines"][method] = result | {"loop_attention_share": _share(sparse)}
        if run_config.top_p in top_ps:
            point = _against_baseline(result, content["baselines"][method])
            content["points"].append(point)
            trace = add_run(trace or start_trace(dense, sparse), dense, sparse, point)
            write_atomic(folder / "trace.npz", trace_bytes(_fitted(trace, trace_bytes_limit)))
        content["complete"] = (method, run_config) == plan[-1]
        write_atomic(folder / "sweep.json", json_bytes(content))
    return content


def _fitted(trace: Trace, limit: int | None) -> Trace:
    return trace if limit is None else fit(trace, limit)


def _dense_record(dense: DenseRun) -> dict[str, Any]:
    return {
        **dense.request.to_dict(),
        "dtype": dense.dtype,
        "dense_seconds": dense.seconds["denoise"],
        "dense_stock_seconds": dense.stock_seconds,
        "total_seconds": dense.seconds,
        "attention_seconds": dense.attention_seconds,
        "peak_memory_bytes": dense.peak_memory_bytes,
        "backend": dense.backend,
        **dense.provenance,
    }


def _against_baseline(result: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    share, density_run = baseline["loop_attention_share"], result["density_run"]
    bound = None if share is None else 1 / (1 - share * (1 - density_run))
    return result | {
        "kernel_gain": result["dense_seconds"] / baseline["svg2_seconds"],
        "sparsity_speedup": baseline["svg2_seconds"] / result["svg2_seconds"],
        "sparsity_speedup_bound": bound,
    }


def _share(sparse: SparseRun) -> float | None:
    attention_seconds = sparse.stats.attention_seconds
    return None if attention_seconds is None else attention_seconds / sparse.seconds["denoise"]
