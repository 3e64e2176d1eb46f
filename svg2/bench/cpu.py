"""The CPU suite: the operations of a sparse call against dense SDPA, in one process.

Every time is a median over the rounds of one `svg2.bench.turns.time_in_turns`.
"""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kernels import bf16_is_native, cluster_attention, kmeans, permute, sort_by_label
from svg2.bench.harness import Progress, save_record
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
from svg2.method.selection import COMPENSATED_METHOD, PAPER_METHOD
from svg2.runs.provenance import provenance

_TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
DEFAULT_WORKLOADS = (
    # The clusters of the built-in model, then coarser and finer ones.
    Workload((9, 24, 24), 24, 400, densities=_TENTHS),
    Workload((9, 24, 24), num_q_clusters=16, num_k_clusters=96, densities=(0.1, 0.2, 0.3, 0.5)),
    Workload((9, 24, 24), num_q_clusters=100, num_k_clusters=300, densities=(0.1, 0.2, 0.3, 0.5)),
    Workload((9, 16, 16), num_q_clusters=50, num_k_clusters=100, densities=(0.1, 0.2, 0.3, 0.5)),
)
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def run_cpu_suite(
    out_path: Path,
    on_progress: Progress,
    *,
    workloads: Sequence[Workload] = DEFAULT_WORKLOADS,
    rounds: int = 11,
) -> dict[str, Any]:
    """Measure every workload and write the record to `out_path` as JSON, whole or not at all.

    The rows under `attention` hold ratios of median times: `speedup` is dense over sparse,
    `kernel_gain` is dense over our kernel with every cluster kept, and `sparsity_speedup` is our
    kernel with every cluster kept over sparse. `flop_ratio` is computed, not measured:
    1 / compute_density. The rows under `steps` hold the times of the other operations.
    Other work on the machine disturbs the times; `load_before` is its load average at the start.

    Args:
        rounds: number of rounds per race.

    Raises:
        OSError: `out_path` can't be written.
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
    save_record(out_path, record)
    return record


def _measure_attention(
    workload: Workload, clustered: ClusteredWorkload, density_asked: float, rounds: int
) -> list[dict[str, Any]]:
    """Rows of one density, one per method."""
    top_p, kept, density = select_density(clustered, density_asked)
    everything = torch.ones_like(kept)

    def attend(kept, stand_ins=None):
        return cluster_attention(
            clustered.q_sorted,
            clustered.k_sorted,
            clustered.v_sorted,
            clustered.q_offsets,
            clustered.k_offsets,
            kept,
            stand_ins=stand_ins,
        )

    ms = time_in_turns(
        {
            "dense": lambda: F.scaled_dot_product_attention(clustered.q, clustered.k, clustered.v),
            "everything": lambda: attend(everything),
            PAPER_METHOD: lambda: attend(kept),
            COMPENSATED_METHOD: lambda: attend(kept, clustered.stand_ins),
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


def _measure_steps(
    workload: Workload, clustered: ClusteredWorkload, rounds: int
) -> dict[str, Any]:
    """Times of a sparse call without its attention: warm k-means, sort, selection."""
    q_clusters, k_clusters = clustered.q_clusters, clustered.k_clusters

    def sort_and_permute() -> None:
        q_order = sort_by_label(q_clusters.labels, workload.num_q_clusters)
        k_order = sort_by_label(k_clusters.labels, workload.num_k_clusters)
        permute(clustered.q, q_order)
        permute(clustered.k, k_order)
        permute(clustered.v, k_order)

    ms = time_in_turns(
        {
            "dense": lambda: F.scaled_dot_product_attention(clustered.q, clustered.k, clustered.v),
            "kmeans_q": lambda: kmeans(clustered.q, q_clusters.centroids, WARM_KMEANS_ITERS),
            "kmeans_k": lambda: kmeans(clustered.k, k_clusters.centroids, WARM_KMEANS_ITERS),
            "permute": sort_and_permute,
            "select": lambda: published_selection(clustered),
        },
        rounds,
    )
    return {
        "op": "steps",
        **workload.sizes,
        "kmeans_iters": WARM_KMEANS_ITERS,
        **{f"{name}_ms": statistics.median(times) for name, times in ms.items()},
        "q_cluster_sizes": spread(q_clusters.sizes),
        "k_cluster_sizes": spread(k_clusters.sizes),
    }


def _cpu_flags() -> list[str]:
    """Those of the instruction sets in `_FLAGS` that the CPU has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    listed = next((line for line in lines if line.startswith("flags")), "").split()
    return [flag for flag in _FLAGS if flag in listed]
