"""Sweep: several budgets and methods on one request, all compared with the same dense clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svg2.errors import Cancelled, RequestError
from svg2.runs.call import load_for
from svg2.runs.compare import add_run, start_trace
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
from svg2.trace.file import trace_bytes
from svg2.trace.recording import fit
from svg2.trace.records import RecordingPolicy, Trace
from svg2.trace.video import check_encoder


@dataclass(frozen=True)
class SweepPlan:
    """The sparse runs of a sweep.

    Attributes:
        run: the request and the settings that all runs share.
        runs: per method a run at top-p 1, then the other budgets in falling order.
        top_ps: the requested budgets.
    """

    run: Run
    runs: tuple[Run, ...]
    top_ps: frozenset[float]

    @classmethod
    def of(cls, run: Run, methods: Sequence[str], top_ps: Sequence[float]) -> SweepPlan:
        """Plan every method at every budget, and at top-p 1.

        Raises:
            ConfigError: an unknown method, or a budget outside (0, 1].
        """
        runs = tuple(
            run.with_settings(method=method, top_p=top_p)
            for method in dict.fromkeys(methods)
            for top_p in (1.0, *sorted(set(top_ps) - {1.0}, reverse=True))
        )
        return cls(run, runs, frozenset(top_ps))


def sweep(
    plan: SweepPlan,
    folder: Path,
    pipe: Any = None,
    *,
    watch: Watch | None = None,
    policy: RecordingPolicy | None = None,
    trace_bytes_limit: int | None = None,
    in_turns: bool = False,
) -> dict[str, Any]:
    """Run every method at every budget and return the content of sweep.json.

    sweep.json and trace.npz are written after each run, so that completed runs are kept. Each
    point has the fields of result.json and, relative to its method's run at top-p 1
    (`baselines`):

    - `kernel_gain`: dense seconds / seconds at top-p 1, the gain of our attention kernels alone;
    - `sparsity_speedup`: seconds at top-p 1 / seconds of the point, the gain of skipping pairs;
    - `sparsity_speedup_bound`: 1 / (1 - a (1 - density_run)), the upper bound of that gain, where
      a is the share of self-attention in the run at top-p 1.

    Args:
        folder: where the files are written; it must exist.
        pipe: the loaded pipeline of the model; None loads it.
        watch: reports progress and can cancel.
        policy: what all runs together record; None takes the default policy.
        trace_bytes_limit: most bytes of trace.npz; records are dropped to stay under it.
        in_turns: whether every run takes turns with a dense run of its own, which doubles the
            time. Otherwise all follow one dense run, and speedups are scaled by the shared work.

    Raises:
        RequestError: runs of this pipeline that can't take turns.
        As `svg2.runs.compare.compare`, and `OSError` as `svg2.runs.compare.save_comparison`.
    """
    check_encoder()
    watch = watch or Watch()
    run, runs = plan.run, plan.runs
    policy = policy or RecordingPolicy()
    if trace_bytes_limit is None:  # else the file is fitted to its limit
        policy = dataclasses.replace(policy, max_bytes=policy.max_bytes // len(runs))
    pipe = load_for(run, watch) if pipe is None else pipe
    for sparse_run in runs:
        check_sparse(pipe, sparse_run)
    if in_turns and (reason := why_no_race(pipe)):
        raise RequestError(f"The runs of this sweep can't take turns. {reason}")

    content: dict[str, Any] = {"points": [], "baselines": {}, "complete": False}
    trace: Trace | None = None
    made = _in_turns if in_turns else _after_dense
    for sparse_run, dense, sparse in made(pipe, plan, watch, policy):
        content.setdefault("dense", _dense_record(dense))
        method, top_p = sparse_run.method.name, sparse_run.config.top_p
        result = result_record(dense, sparse, Order.IN_TURNS if in_turns else Order.DENSE_FIRST)
        if top_p == 1.0:
            content["baselines"][method] = result | {
                "loop_attention_share": _attention_share(sparse)
            }
        if top_p in plan.top_ps:
            point = _against_baseline(result, content["baselines"][method])
            content["points"].append(point)
            trace = add_run(trace or start_trace(dense, sparse), dense, sparse, point)
        content["complete"] = sparse_run is runs[-1]
        recorded = (
            {} if trace is None else {"trace.npz": trace_bytes(_fitted(trace, trace_bytes_limit))}
        )
        # A trace of an earlier sweep does not belong to these points.
        write_or_keep(folder, {**recorded, "sweep.json": json_bytes(content)}, ["trace.npz"])
    return content


_Made = Iterator[tuple[Run, DenseRun, SparseRun]]


def _after_dense(pipe: Any, plan: SweepPlan, watch: Watch, policy: RecordingPolicy) -> _Made:
    """Every run of the plan after one dense run."""
    num_steps = plan.run.request.num_inference_steps
    watch.steps_after = len(plan.runs) * num_steps
    dense = generate_dense(pipe, plan.run, watch)
    for run in plan.runs:
        watch.steps_after -= num_steps
        try:
            sparse = generate_sparse(pipe, run, watch, policy)
        except Cancelled:
            raise Cancelled(dense) from None
        yield run, dense, sparse


def _in_turns(pipe: Any, plan: SweepPlan, watch: Watch, policy: RecordingPolicy) -> _Made:
    """Every run of the plan in turns with a dense run."""
    num_steps = plan.run.request.num_inference_steps
    for number, run in enumerate(plan.runs, 1):
        watch.steps_after = 2 * (len(plan.runs) - number) * num_steps
        yield run, *race(pipe, run, watch, policy)


def _fitted(trace: Trace, limit: int | None) -> Trace:
    """The trace in at most `limit` bytes; its fastest run, which pages open with, keeps most."""
    if limit is None:
        return trace
    speedups = [run.result["speedup"] for run in trace.runs]
    return fit(trace, limit, most=speedups.index(max(speedups)))


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
        "kernel_gain": baseline["speedup"],
        "sparsity_speedup": result["speedup"] / baseline["speedup"],
        "sparsity_speedup_bound": bound,
    }


def _attention_share(sparse: SparseRun) -> float | None:
    attention_seconds = sparse.stats.attention_seconds
    return None if attention_seconds is None else attention_seconds / sparse.seconds["denoise"]
