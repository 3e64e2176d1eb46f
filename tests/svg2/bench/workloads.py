"""Problems small enough for a test."""

from dataclasses import replace

from svg2.bench.workload import Workload

SMALL = Workload(
    (3, 8, 8), num_q_clusters=6, num_k_clusters=12, densities=(0.3, 1.0), heads=2, head_dim=16
)
WITH_TEXT = replace(SMALL, densities=(0.3,), text_tokens=5)
