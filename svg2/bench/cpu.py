"""The CPU suite: the ops of a sparse step against dense SDPA, in one process.

Every number is a median over interleaved rounds, each of which runs all the contestants once, so
that a slow moment of the machine falls on all of them.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kernels import bf16_is_native, cluster_attention, kmeans, permute, sort_by_label
from svg2.bench.race import race
from svg2.bench.workload import (
    Clustered,
    Workload,
    compute_density_of,
    make_clustered,
    select_density,
    spread,
)
from svg2.method.plan import cluster_mass
from svg2.method.selection import COMPENSATED_METHOD, PAPER_METHOD
from svg2.method.selection.top_p import keep_top_p
from svg2.runs.provenance import provenance
from svg2.trace.atomic import json_bytes, write_atomic

_TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
DEFAULT_WORKLOADS = (
    # the clusters that the built-in model ships with, then coarser and finer ones
    Workload((9, 24, 24), 24, 400, densities=_TENTHS),
    Workload((9, 24, 24), num_q_clusters=16, num_k_clusters=96, densities=(0.1, 0.2, 0.3, 0.5)),
    Workload((9, 24, 24), num_q_clusters=100, num_k_clusters=300, densities=(0.1, 0.2, 0.3, 0.5)),
    Workload((9, 16, 16), num_q_clusters=50, num_k_clusters=100, densities=(0.1, 0.2, 0.3, 0.5)),
)
_KMEANS_ITERS = 2  # of a warm step
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")

Progress = Callable[[str], object]


def run_cpu_suite(
    out_path: Path,
    on_progress: Progress,
    *,
    workloads: Sequence[Workload] = DEFAULT_WORKLOADS,
    rounds: int = 11,
) -> dict[str, Any]:
    """Measure every workload, write the record to `out_path` as JSON, whole or not at all.

    Of each row, `speedup` is dense / sparse, `kernel_gain` dense / (everything kept) and
    `sparsity_speedup` (everything kept) / sparse; `flop_ratio` is 1 / compute_density and no
    measurement. The machine should have nothing else to do: `load_before` says whether it had.
    """
    record: dict[str, Any] = {
        "suite": "cpu",
        **provenance(torch.device("cpu")),
        "cpu_flags": _cpu_flags(),
        "bf16_is_native": bf16_is_native(),
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "dtype": "float32",
        "rounds": rounds,
        "attention": [],
        "steps": [],
    }
    with torch.inference_mode():
        for workload in workloads:
            on_progress(f"{workload.title}: clustering")
            clustered = make_clustered(workload)
            record["steps"].append(_measure_steps(workload, clustered, rounds))
            for density in workload.densities:
                rows = _measure_attention(workload, clustered, density, rounds)
                record["attention"] += rows
                for row in rows:
                    on_progress(
                        f"{workload.title}, density {row['density']:.2f}, {row['method']}: "
                        f"{row['sparse_ms']:.1f} ms, {row['speedup']:.2f}x dense"
                    )
    write_atomic(Path(out_path), json_bytes(record))
    return record


def _measure_attention(
    workload: Workload, clustered: Clustered, density_asked: float, rounds: int
) -> list[dict[str, Any]]:
    """One row per method at one density."""
    top_p, kept, density = select_density(clustered, density_asked)
    everything = torch.ones_like(kept)

    def attend(kept, compensation=None):
        return cluster_attention(
            clustered.q_sorted,
            clustered.k_sorted,
            clustered.v_sorted,
            clustered.q_offsets,
            clustered.k_offsets,
            kept,
            compensation=compensation,
        )

    ms = race(
        {
            "dense": lambda: F.scaled_dot_product_attention(clustered.q, clustered.k, clustered.v),
            "everything": lambda: attend(everything),
            PAPER_METHOD: lambda: attend(kept),
            COMPENSATED_METHOD: lambda: attend(kept, clustered.compensation),
        },
        rounds,
    )
    dense_ms, everything_ms = statistics.median(ms["dense"]), statistics.median(ms["everything"])
    compute_densities = {
        PAPER_METHOD: density,
        COMPENSATED_METHOD: compute_density_of(clustered, kept),
    }
    dense_gflop = 4 * workload.heads * workload.tokens**2 * workload.head_dim / 1e9
    rows = []
    for method, compute_density in compute_densities.items():
        sparse_ms = statistics.median(ms[method])
        paired = [a / b for a, b in zip(ms["dense"], ms[method], strict=True)]
        low, _, high = statistics.quantiles(paired, n=4)
        rows.append(
            {
                "op": "cluster_attention",
                "method": method,
                **workload.sizes,
                "density_asked": density_asked,
                "density": density,
                "compute_density": compute_density,
                "top_p": top_p,
                "dense_ms": dense_ms,
                "everything_kept_ms": everything_ms,
                "sparse_ms": sparse_ms,
                "speedup": dense_ms / sparse_ms,
                "speedup_quartiles": [low, high],
                "kernel_gain": dense_ms / everything_ms,
                "sparsity_speedup": everything_ms / sparse_ms,
                "flop_ratio": 1 / compute_density,
                "dense_gflops": dense_gflop / dense_ms * 1e3,
                "useful_gflops": compute_density * dense_gflop / sparse_ms * 1e3,
            }
        )
    return rows


def _measure_steps(workload: Workload, clustered: Clustered, rounds: int) -> dict[str, Any]:
    """What a sparse call costs beside its attention: a warm k-means, the sort, the selection."""
    q_clusters, k_clusters = clustered.q_clusters, clustered.k_clusters

    def sort_and_permute() -> None:
        q_order = sort_by_label(q_clusters.labels, workload.num_q_clusters)
        k_order = sort_by_label(k_clusters.labels, workload.num_k_clusters)
        permute(clustered.q, q_order)
        permute(clustered.k, k_order)
        permute(clustered.v, k_order)

    ms = race(
        {
            "dense": lambda: F.scaled_dot_product_attention(clustered.q, clustered.k, clustered.v),
            "kmeans_q": lambda: kmeans(clustered.q, q_clusters.centroids, _KMEANS_ITERS),
            "kmeans_k": lambda: kmeans(clustered.k, k_clusters.centroids, _KMEANS_ITERS),
            "permute": sort_and_permute,
            "select": lambda: keep_top_p(
                cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes),
                *(k_clusters.sizes, 0.9, 0.1),
            ),
        },
        rounds,
    )
    return {
        "op": "steps",
        **workload.sizes,
        "kmeans_iters": _KMEANS_ITERS,
        **{f"{name}_ms": statistics.median(times) for name, times in ms.items()},
        "q_cluster_sizes": spread(q_clusters.sizes),
        "k_cluster_sizes": spread(k_clusters.sizes),
    }


def _cpu_flags() -> list[str]:
    """Which of the instruction sets that matter here the chip lists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    listed = next((line for line in lines if line.startswith("flags")), "").split()
    return [flag for flag in _FLAGS if flag in listed]
