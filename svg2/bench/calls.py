"""The calls suite: whole sparse calls against dense SDPA on a CPU, also beside busy processes.

A sparse call is everything that replaces one dense call of a warm step: k-means of queries and
keys, sort, routing, selection and attention.
"""

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kernels import bf16_is_native, kmeans, on_one_thread
from svg2.bench.harness import Progress, save_record
from svg2.bench.turns import time_in_turns
from svg2.bench.workload import ClusteredWorkload, Workload, make_clustered
from svg2.config import SVG2Config
from svg2.method.call import sparse_call
from svg2.method.clustering import Centroids
from svg2.method.selection import METHODS, ROUTED_METHOD
from svg2.method.stages import StageClock
from svg2.runs.provenance import provenance

_Q, _K = 64, 150  # clusters of the built-in model's default method
_BUSY = "while True: pass"
_SHARE_SLACK = 0.005


@dataclass(frozen=True)
class Case:
    """One race: sizes, precision, share of the pairs to compute, busy processes beside it."""

    grid: tuple[int, int, int]
    dtype: str = "fp32"
    compute_density: float = 0.10
    busy: int = 0


_SHIPPED, _LONG = (9, 24, 24), (17, 24, 24)
CASES = (
    *(Case(grid) for grid in ((9, 12, 12), (9, 18, 18), _SHIPPED, _LONG, (9, 48, 48))),
    *(Case(_SHIPPED, compute_density=share) for share in (0.08, 0.15, 0.2)),
    *(Case(grid, dtype="bf16") for grid in (_SHIPPED, _LONG)),
    *(Case(_SHIPPED, busy=count) for count in (1, 3)),
)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run_calls_suite(
    out_path: Path, on_progress: Progress, *, cases: Sequence[Case] = CASES, rounds: int = 15
) -> dict[str, Any]:
    """Race every case and write the record to `out_path` as JSON, whole or not at all.

    `ratio` is the median of dense over sparse in pairs that ran one after another, with its
    quartiles. `exponents` say how times grow with the number of tokens, fitted to the fp32 cases
    without busy processes that compute a tenth of the pairs; short videos can't, whose stand-ins
    and routing alone are more.

    Raises:
        OSError: `out_path` can't be written.
    """
    record: dict[str, Any] = {
        "suite": "calls",
        **provenance(torch.device("cpu")),
        "bf16_is_native": bf16_is_native(),
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "method": ROUTED_METHOD,
        "rounds": rounds,
        "calls": [],
    }
    with torch.inference_mode():
        for case in cases:
            row = _race(case, rounds)
            record["calls"].append(row)
            on_progress(
                f"{row['tokens']:,} tokens, {case.dtype}, {row['compute_density']:.1%} computed, "
                f"{case.busy} busy: dense {row['dense_ms']:.0f} ms, sparse {row['sparse_ms']:.0f} "
                f"ms, {row['ratio']:.2f}x"
            )
    record["exponents"] = _exponents(record["calls"])
    save_record(out_path, record)
    return record


def _race(case: Case, rounds: int) -> dict[str, Any]:
    workload = Workload(case.grid, _Q, _K, densities=())
    tokens = make_clustered(workload, dtype=_DTYPES[case.dtype])
    fixed = (_K + METHODS[ROUTED_METHOD].passes * _Q) / workload.tokens
    config = SVG2Config(
        method=ROUTED_METHOD,
        density=max(case.compute_density - fixed, 1 / workload.tokens),
        num_q_clusters=_Q,
        num_k_clusters=_K,
        kmeans_iters_step=1,
    )
    clocks: list[StageClock] = []
    plans = []

    def sparse() -> None:
        clock = StageClock(tokens.q.device)
        centroids = Centroids()
        centroids.q, centroids.k = tokens.q_clusters.centroids, tokens.k_clusters.centroids
        result = sparse_call(tokens.q, tokens.k, tokens.v, config, centroids, clock)
        clocks.append(clock)
        plans[:] = [result.plan]

    contestants = {
        "dense": lambda: F.scaled_dot_product_attention(tokens.q, tokens.k, tokens.v),
        "sparse": sparse,
        "kmeans": lambda: on_one_thread(lambda: _kmeans(tokens), tokens.q.device),
    }
    with busy_processes(case.busy):
        ms = time_in_turns(contestants, rounds)
    paired = [dense / sparse for dense, sparse in zip(ms["dense"], ms["sparse"], strict=True)]
    low, ratio, high = statistics.quantiles(paired, n=4)
    stages = [clock.stage_ms for clock in clocks[-rounds:]]
    kmeans_ms = statistics.median(ms["kmeans"])
    flop = 2 * workload.heads * workload.tokens * workload.head_dim * (_Q + _K)
    return {
        **workload.sizes,
        "dtype": case.dtype,
        "compute_density_asked": case.compute_density,
        "busy": case.busy,
        "density": float(plans[0].density().mean()),
        "compute_density": float(plans[0].compute_density().mean()),
        "overhead_density": plans[0].overhead_density(),
        "dense_ms": statistics.median(ms["dense"]),
        "sparse_ms": statistics.median(ms["sparse"]),
        "stage_ms": {name: statistics.median(s[name] for s in stages) for name in stages[0]},
        "kmeans_ms": kmeans_ms,
        "kmeans_gflops": flop / kmeans_ms / 1e6,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
    }


def _kmeans(tokens: ClusteredWorkload) -> None:
    """One warm iteration of both sides, as every step runs it."""
    kmeans(tokens.q, tokens.q_clusters.centroids, 1)
    kmeans(tokens.k, tokens.k_clusters.centroids, 1)


def _exponents(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Slope of log time over log tokens."""
    by_tokens = {
        row["tokens"]: row
        for row in rows
        if row["dtype"] == "fp32"
        and row["busy"] == 0
        and abs(row["compute_density"] - Case.compute_density) < _SHARE_SLACK
    }
    if len(by_tokens) < 2:
        return {"dense": None, "sparse": None}
    x = [math.log(tokens) for tokens in by_tokens]
    return {
        name: statistics.linear_regression(
            x, [math.log(row[f"{name}_ms"]) for row in by_tokens.values()]
        ).slope
        for name in ("dense", "sparse")
    }


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes beside this one, each with a core's worth of work."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
