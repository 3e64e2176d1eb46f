"""Benchmarks: ops against dense attention on a CPU and on a GPU, and whole transformers."""

from svg2.bench.cpu import DEFAULT_WORKLOADS, run_cpu_suite
from svg2.bench.e2e import run_e2e_suite
from svg2.bench.gpu import SuiteUnavailable, run_gpu_suite
from svg2.bench.workload import Workload

__all__ = [
    "DEFAULT_WORKLOADS",
    "SuiteUnavailable",
    "Workload",
    "run_cpu_suite",
    "run_e2e_suite",
    "run_gpu_suite",
]
