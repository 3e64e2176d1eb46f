"""The GPU suite: our kernels at the sizes of real models, against dense and other sparse kernels.

A contestant is timed only after its result was checked. One whose result is wrong is listed under
`left_out` with its error. The record is saved after each density, so an interrupted run keeps
what it has measured.
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
    StandIns,
    cluster_attention,
    kmeans,
    permute,
    resolve_impl,
    sort_by_label,
)
from kernels.exact import ERROR_BUDGET
from svg2.bench.baselines import (
    BaselineUnavailable,
    dense_baselines,
    flashinfer_blocks,
    flex_padded,
)
from svg2.bench.exact import ExactRows
from svg2.bench.harness import Progress, reason, save_record, suite_device
from svg2.bench.turns import time_in_turns
from svg2.bench.workload import (
    WARM_KMEANS_ITERS,
    ClusteredWorkload,
    Workload,
    compute_density_of,
    make_clustered,
    published_selection,
    select_density,
    spread,
)
from svg2.config import SVG2Config
from svg2.method.call import sparse_call
from svg2.method.clustering import CacheKey, Centroids
from svg2.method.selection import COMPENSATED_METHOD, PAPER_METHOD
from svg2.method.stages import StageClock
from svg2.runs.provenance import peak_memory, provenance

_OTHERS_AT = 0.3  # the only density at which the other sparse kernels run, which are slow


@dataclass(frozen=True)
class Case:
    """A workload, and the name of the model whose attention has these sizes."""

    name: str
    workload: Workload


_TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
_SOME = (0.1, 0.2, 0.3, 0.5, 1.0)
# In order of importance: the last ones are left out when the time budget is spent.
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


def run_gpu_suite(
    out_path: Path,
    on_progress: Progress,
    *,
    toy: bool = False,
    rounds: int = 7,
    budget_seconds: float = 450,
) -> dict[str, Any]:
    """Measure all cases on the GPU and write the record to `out_path` after each density.

    `useful_tflops` of a row is 4·D operations per kept pair, over the time; virtual keys are not
    counted. `share` is that over the TFLOP/s of the fastest dense kernel in the same rounds.

    Args:
        toy: run the harness at toy sizes on any device; every row then has `toy: true`.
        rounds: number of rounds per race.
        budget_seconds: after this time no new case or density begins; the rest is listed under
            `left_out`.

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
        save_record(self.path, self.record)

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
        # 0.3 first: the throughput that the project promises is stated at this density.
        for density in sorted(workload.densities, key=lambda d: (d != _OTHERS_AT, d)):
            if self._is_late():
                left = {"case": case.name, "density_asked": density, **workload.sizes}
                self.record["left_out"].append(left)
                continue
            self._attention(case, clustered, density, dense, best)
            self.save()

    def _attention(
        self, case: Case, clustered: ClusteredWorkload, asked: float, dense: dict, best: str
    ) -> None:
        """Rows of one density, one per contestant."""
        workload = case.workload
        top_p, kept, density = select_density(clustered, asked)

        def ours(stand_ins: StandIns | None = None) -> Tensor:
            return cluster_attention(
                *(clustered.q_sorted, clustered.k_sorted, clustered.v_sorted),
                *(clustered.q_offsets, clustered.k_offsets, kept),
                stand_ins=stand_ins,
                impl=self.impl,
            )

        sparse = {PAPER_METHOD: ours}
        if not self.record["toy"] and asked == _OTHERS_AT:
            sparse |= self._others(case, clustered, kept)
        contestants = dict(dense) if asked == _OTHERS_AT else {best: dense[best]}
        contestants |= self._right(case, sparse, clustered, kept, has_virtual=False)
        with_virtual = {COMPENSATED_METHOD: lambda: ours(clustered.stand_ins)}
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

    def _others(
        self, case: Case, clustered: ClusteredWorkload, kept: Tensor
    ) -> dict[str, Callable]:
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
        clustered: ClusteredWorkload,
        kept: Tensor | None,
        *,
        has_virtual: bool,
    ) -> dict[str, Callable]:
        """The contestants whose result is right; the others are recorded under `left_out`."""
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
        left = {"case": case.name, "contestant": name, "why": reason(why)}
        self.record["left_out"].append(left)
        self.on_progress(f"  {name} left out: {left['why']}")

    def _steps(self, case: Case, clustered: ClusteredWorkload, dense: Callable) -> None:
        """Times of a sparse call without its attention, and their share of one dense call."""
        workload = case.workload
        q_clusters, k_clusters = clustered.q_clusters, clustered.k_clusters
        num_q, num_k, impl = workload.num_q_clusters, workload.num_k_clusters, self.impl
        k_order = sort_by_label(k_clusters.labels, num_k, impl=impl)
        ms = self._race(
            {
                "dense": dense,
                "assign_k": lambda: kmeans(clustered.k, k_clusters.centroids, 1, impl=impl),
                "kmeans_q": lambda: kmeans(
                    clustered.q, q_clusters.centroids, WARM_KMEANS_ITERS, impl=impl
                ),
                "kmeans_k": lambda: kmeans(
                    clustered.k, k_clusters.centroids, WARM_KMEANS_ITERS, impl=impl
                ),
                "sort": lambda: (
                    sort_by_label(q_clusters.labels, num_q, impl=impl),
                    sort_by_label(k_clusters.labels, num_k, impl=impl),
                ),
                # Attention itself gathers the queries and scatters the output.
                "gather": lambda: (
                    permute(clustered.k, k_order, impl=impl),
                    permute(clustered.v, k_order, impl=impl),
                ),
                "select": lambda: published_selection(clustered),
            }
        )
        medians = {name: statistics.median(times) for name, times in ms.items()}
        # `assign_k` and `sort` are parts of k-means, so they are not counted again.
        overhead = sum(medians[name] for name in ("kmeans_q", "kmeans_k", "gather", "select"))
        self.record["steps"].append(
            {
                "case": case.name,
                "toy": self.record["toy"],
                **workload.sizes,
                "kmeans_iters": WARM_KMEANS_ITERS,
                **{f"{name}_ms": value for name, value in medians.items()},
                "share_of_dense": overhead / medians["dense"],
                "q_cluster_sizes": spread(q_clusters.sizes),
                "k_cluster_sizes": spread(k_clusters.sizes),
            }
        )
        self.on_progress(f"  all but attention: {overhead / medians['dense']:.1%} of dense")

    def _call(self, case: Case, clustered: ClusteredWorkload, dense: Callable) -> None:
        """Time and extra memory of one whole sparse call of the video tokens.

        On a GPU also whether the host waits for the device, and whether a CUDA graph can capture
        the call.
        """
        workload = case.workload
        config = SVG2Config(
            num_q_clusters=workload.num_q_clusters,
            num_k_clusters=workload.num_k_clusters,
            kmeans_iters_step=WARM_KMEANS_ITERS,
            impl=self.impl,
        )
        shape = tuple(clustered.q.shape)
        centroids = Centroids(CacheKey(0, 0, 0, shape))
        centroids.q = clustered.q_clusters.centroids.to(self.dtype)
        centroids.k = clustered.k_clusters.centroids.to(self.dtype)

        def call() -> Tensor:
            clock = StageClock(torch.device("cpu"))  # records no CUDA events
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
        return time_in_turns(contestants, self.rounds, self.device)

    def _is_late(self) -> bool:
        return time.monotonic() - self.started > self.budget_seconds


def _host_syncs(call: Callable[[], object]) -> str:
    """What made the host wait for the device, or "none"."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return reason(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _captured(call: Callable[[], Tensor]) -> str:
    """Capture the call in a CUDA graph and replay it: "replayed", "not finite" or the error."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return reason(error)
    return "replayed" if bool(replayed.isfinite().all()) else "not finite"
