"""The GPU suite: our kernels at the sizes of real models, against dense and other sparse ones.

Nothing is timed before it was found right: a contestant whose result is off gets an error in the
record and no number. Each row is written as soon as it is measured, so what an interrupted run
has found is kept.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import (
    Compensation,
    cluster_attention,
    kmeans,
    permute,
    resolve_impl,
    sort_by_label,
)
from svg2.bench.baselines import (
    BaselineUnavailable,
    dense_baselines,
    flashinfer_blocks,
    flex_padded,
)
from svg2.bench.exact import ERROR_BUDGET, ExactRows
from svg2.bench.race import race
from svg2.bench.workload import (
    Clustered,
    Workload,
    compute_density_of,
    make_clustered,
    select_density,
    spread,
)
from svg2.config import SVG2Config
from svg2.errors import SuiteUnavailable
from svg2.method.call import sparse_call
from svg2.method.clustering import CacheKey, Centroids
from svg2.method.plan import cluster_mass
from svg2.method.selection import COMPENSATED_METHOD, PAPER_METHOD
from svg2.method.selection.top_p import keep_top_p
from svg2.method.stages import StageClock
from svg2.runs.provenance import peak_memory, provenance
from svg2.trace.atomic import json_bytes, write_atomic

_KMEANS_ITERS = 2  # of a warm step, as the paper has it
_OTHERS_AT = 0.3  # the density at which the slower sparse baselines run

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Case:
    """A workload under the name of the model whose attention has its sizes."""

    name: str
    workload: Workload


_TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
_SOME = (0.1, 0.2, 0.3, 0.5, 1.0)
# The most telling first, since time may run out.
CASES = (
    Case("wan-720p", Workload((21, 45, 80), 300, 1000, _TENTHS, heads=40, head_dim=128)),
    Case(
        "hunyuan-720p",
        Workload((33, 45, 80), 400, 1000, _SOME, heads=24, head_dim=128, text_tokens=256),
    ),
    Case("wan-480p", Workload((21, 30, 52), 200, 1000, _SOME, heads=40, head_dim=128)),
    Case("wan-480p", Workload((21, 30, 52), 200, 1000, _SOME, heads=12, head_dim=128)),
    Case("wan-720p", Workload((21, 45, 80), 400, 1000, (0.3,), heads=40, head_dim=128)),
    Case("wan-720p", Workload((21, 45, 80), 100, 500, (0.3,), heads=40, head_dim=128)),
    Case("builtin", Workload((9, 24, 24), 24, 400, _SOME, heads=4, head_dim=64)),
)
TOY_CASES = (
    Case("toy", Workload((3, 8, 8), 6, 12, (0.3, 1.0), heads=2, head_dim=64)),
    Case("toy", Workload((3, 8, 8), 6, 12, (0.3,), heads=2, head_dim=64, text_tokens=5)),
)


def suite_device(suite: str, toy: bool) -> torch.device:
    """Where a GPU suite runs: on the GPU, and as a toy on whatever there is.

    Raises:
        SuiteUnavailable: there is no GPU, and no toy was asked for.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if toy:
        return torch.device("cpu")
    raise SuiteUnavailable(
        f"The {suite} suite needs an NVIDIA GPU, and none was found; --toy tries out the harness "
        "at toy sizes."
    )


def run_gpu_suite(
    out_path: Path,
    on_progress: Progress,
    *,
    toy: bool = False,
    rounds: int = 7,
    budget_seconds: float = 450,
) -> dict[str, Any]:
    """Measure all cases on the GPU and write the record to `out_path` after every row.

    Useful TFLOP/s are 4·D·(kept pairs) over time, virtual keys not counted. A row's `share` is
    that over the TFLOP/s of the best dense kernel in the same rounds. With `toy` the harness runs
    at toy sizes on any device, and every row says so.

    Raises:
        SuiteUnavailable: there is no GPU, and no toy was asked for.
        OSError: `out_path` can't be written.
    """
    device = suite_device("GPU", toy)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    impl = resolve_impl("auto" if toy else "fused")
    record: dict[str, Any] = {
        "suite": "gpu",
        "toy": toy,
        **provenance(device),
        "impl": impl,
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": rounds,
        "error_budget": ERROR_BUDGET[dtype],
        "attention": [],
        "steps": [],
        "calls": [],
        "left_out": [],
    }
    suite = _Suite(record, Path(out_path), device, dtype, rounds, on_progress, budget_seconds)
    with torch.inference_mode():
        for case in TOY_CASES if toy else CASES:
            suite.run(case)
    suite.save()
    return record


@dataclass
class _Suite:
    record: dict[str, Any]
    path: Path
    device: torch.device
    dtype: torch.dtype
    rounds: int
    on_progress: Progress
    budget_seconds: float

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.impl = self.record["impl"]
        self.errors: dict[str, float] = {}

    def save(self) -> None:
        write_atomic(self.path, json_bytes(self.record))

    def run(self, case: Case) -> None:
        workload = case.workload
        self.on_progress(f"{case.name}: {workload.title}, {workload.heads} heads")
        if self._is_late():
            self.record["left_out"].append({"case": case.name, **workload.sizes})
            return
        clustered = make_clustered(workload, self.device.type, self.dtype, self.impl)
        dense = self._right(
            case, dense_baselines(clustered, self.impl), clustered, None, has_virtual=False
        )
        if not dense:
            return
        best = min(
            dense, key=lambda name: statistics.median(self._race({name: dense[name]})[name])
        )
        self._steps(case, clustered, dense[best])
        self._call(case, clustered, dense[best])
        # 0.3 first: it is what the floors are about.
        for density in sorted(workload.densities, key=lambda d: (d != _OTHERS_AT, d)):
            if self._is_late():
                left = {"case": case.name, "density_asked": density, **workload.sizes}
                self.record["left_out"].append(left)
                continue
            self._attention(case, clustered, density, dense, best)
            self.save()

    def _attention(
        self, case: Case, clustered: Clustered, asked: float, dense: dict, best: str
    ) -> None:
        """One row per contestant at one density."""
        workload = case.workload
        top_p, kept, density = select_density(clustered, asked)

        def ours(compensation: Compensation | None = None) -> Tensor:
            return cluster_attention(
                *(clustered.q_sorted, clustered.k_sorted, clustered.v_sorted),
                *(clustered.q_offsets, clustered.k_offsets, kept),
                compensation=compensation,
                impl=self.impl,
            )

        sparse = {PAPER_METHOD: ours}
        if not self.record["toy"] and asked == _OTHERS_AT:
            sparse |= self._others(case, clustered, kept)
        contestants = dict(dense) if asked == _OTHERS_AT else {best: dense[best]}
        contestants |= self._right(case, sparse, clustered, kept, has_virtual=False)
        with_virtual = {COMPENSATED_METHOD: lambda: ours(clustered.compensation)}
        contestants |= self._right(case, with_virtual, clustered, kept, has_virtual=True)
        ms = self._race(contestants)
        gflop = 4 * workload.head_dim * workload.heads * workload.tokens**2 / 1e9
        dense_tflops = gflop / statistics.median(ms[best])
        for name, times in ms.items():
            middle = statistics.median(times)
            pairs = 1.0 if name in dense else density
            paired = [a / b for a, b in zip(ms[best], times, strict=True)]
            self.record["attention"].append(
                {
                    "case": case.name,
                    "toy": self.record["toy"],
                    "contestant": name,
                    **workload.sizes,
                    "density_asked": asked,
                    "density": pairs,
                    "compute_density": compute_density_of(clustered, kept)
                    if name == COMPENSATED_METHOD
                    else pairs,
                    "top_p": top_p,
                    "ms": middle,
                    "ms_min": min(times),
                    "useful_tflops": pairs * gflop / middle,
                    "share": pairs * gflop / middle / dense_tflops,
                    "speedup": statistics.median(paired),
                    "best_dense": best,
                    "relative_error": self.errors[name],
                }
            )
            row = self.record["attention"][-1]
            self.on_progress(
                f"  density {pairs:.2f} {name}: {middle:.2f} ms, {row['useful_tflops']:.0f} "
                f"TFLOP/s, {row['share']:.2f} of {best}"
            )

    def _others(self, case: Case, clustered: Clustered, kept: Tensor) -> dict[str, Callable]:
        found: dict[str, Callable] = {}
        for name, build in (("flex_padded", flex_padded), ("flashinfer", flashinfer_blocks)):
            try:
                found[name] = build(clustered, kept)
            except (BaselineUnavailable, RuntimeError, TypeError, ValueError) as error:
                self._leave_out(case, name, error)
        return found

    def _right(
        self,
        case: Case,
        contestants: dict[str, Callable],
        clustered: Clustered,
        kept: Tensor | None,
        *,
        has_virtual: bool,
    ) -> dict[str, Callable]:
        """The contestants whose result is right; the others go to the record with the reason."""
        expected = ExactRows(clustered, kept, has_virtual)
        right = {}
        for name, attend in contestants.items():
            try:
                error = expected.error_of(attend())
            except (RuntimeError, TypeError, ValueError) as failure:
                self._leave_out(case, name, failure)
                continue
            if not error <= self.record["error_budget"]:
                self._leave_out(case, name, f"wrong result: relative error {error:.2e}")
                continue
            self.on_progress(f"  {name}: relative error {error:.1e}")
            self.errors[name] = error
            right[name] = attend
        return right

    def _leave_out(self, case: Case, name: str, why: object) -> None:
        reason = " ".join(str(why).split())[:300]
        self.record["left_out"].append({"case": case.name, "contestant": name, "why": reason})
        self.on_progress(f"  {name} left out: {reason}")

    def _steps(self, case: Case, clustered: Clustered, dense: Callable) -> None:
        """What a sparse call does beside its attention, as shares of one dense call."""
        workload = case.workload
        q_clusters, k_clusters = clustered.q_clusters, clustered.k_clusters
        num_q, num_k, impl = workload.num_q_clusters, workload.num_k_clusters, self.impl
        k_order = sort_by_label(k_clusters.labels, num_k, impl=impl)
        ms = self._race(
            {
                "dense": dense,
                "assign_k": lambda: kmeans(clustered.k, k_clusters.centroids, 1, impl=impl),
                "kmeans_q": lambda: kmeans(
                    clustered.q, q_clusters.centroids, _KMEANS_ITERS, impl=impl
                ),
                "kmeans_k": lambda: kmeans(
                    clustered.k, k_clusters.centroids, _KMEANS_ITERS, impl=impl
                ),
                "sort": lambda: (
                    sort_by_label(q_clusters.labels, num_q, impl=impl),
                    sort_by_label(k_clusters.labels, num_k, impl=impl),
                ),
                # queries are gathered, and their results scattered, by attention itself
                "gather": lambda: (
                    permute(clustered.k, k_order, impl=impl),
                    permute(clustered.v, k_order, impl=impl),
                ),
                "select": lambda: keep_top_p(
                    cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes),
                    *(k_clusters.sizes, 0.9, 0.1),
                ),
            }
        )
        medians = {name: statistics.median(times) for name, times in ms.items()}
        # An assignment and a sort are part of k-means, and timed by themselves for scale.
        overhead = sum(medians[name] for name in ("kmeans_q", "kmeans_k", "gather", "select"))
        self.record["steps"].append(
            {
                "case": case.name,
                "toy": self.record["toy"],
                **workload.sizes,
                "kmeans_iters": _KMEANS_ITERS,
                **{f"{name}_ms": value for name, value in medians.items()},
                "share_of_dense": overhead / medians["dense"],
                "q_cluster_sizes": spread(q_clusters.sizes),
                "k_cluster_sizes": spread(k_clusters.sizes),
            }
        )
        self.on_progress(f"  all but attention: {overhead / medians['dense']:.1%} of dense")

    def _call(self, case: Case, clustered: Clustered, dense: Callable) -> None:
        """One whole sparse call of the video's tokens: its time, its memory beyond its inputs.

        On a GPU also: what made the host wait, and whether a CUDA graph can hold the call.
        """
        workload = case.workload
        config = SVG2Config(
            num_q_clusters=workload.num_q_clusters,
            num_k_clusters=workload.num_k_clusters,
            kmeans_iters_step=_KMEANS_ITERS,
            impl=self.impl,
        )
        shape = tuple(clustered.q.shape)
        centroids = Centroids(CacheKey(0, 0, 0, shape))
        centroids.q = clustered.q_clusters.centroids.to(self.dtype)
        centroids.k = clustered.k_clusters.centroids.to(self.dtype)

        def call() -> Tensor:
            clock = StageClock(torch.device("cpu"))  # lays no event into the stream
            return sparse_call(clustered.q, clustered.k, clustered.v, config, centroids, clock).out

        call()
        before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        with peak_memory(self.device) as peak:
            call()
        ms = self._race({"dense": dense, "call": call})
        qkvo_bytes = 4 * clustered.q.nbytes
        row = {
            "case": case.name,
            "toy": self.record["toy"],
            **workload.sizes,
            "top_p": config.top_p,
            "call_ms": statistics.median(ms["call"]),
            "dense_ms": statistics.median(ms["dense"]),
            "qkvo_bytes": qkvo_bytes,
            "extra_bytes": peak.nbytes - before
            if self.device.type == "cuda" and peak.nbytes is not None
            else None,
        }
        if self.device.type == "cuda":
            row |= {"host_syncs": _host_syncs(call), "cuda_graph": _captured(call)}
        self.record["calls"].append(row)
        self.save()

    def _race(self, contestants: dict[str, Callable]) -> dict[str, list[float]]:
        return race(contestants, self.rounds, self.device)

    def _is_late(self) -> bool:
        return time.monotonic() - self.started > self.budget_seconds


def _host_syncs(call: Callable[[], object]) -> str:
    """ "none", or what made the host wait."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return " ".join(str(error).split())[:300]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _captured(call: Callable[[], Tensor]) -> str:
    """ "replayed" where a graph of the call was captured and gave finite numbers, or why not."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return " ".join(str(error).split())[:300]
    return "replayed" if bool(replayed.isfinite().all()) else "not finite"
