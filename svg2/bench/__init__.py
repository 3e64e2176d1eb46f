"""Op-level benchmarks: cluster attention and k-means against the stock dense attention."""

from svg2.bench.cpu import DEFAULT_WORKLOADS, run_cpu_suite
from svg2.bench.workload import Workload

__all__ = ["DEFAULT_WORKLOADS", "Workload", "run_cpu_suite"]
