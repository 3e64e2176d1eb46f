"""Traces that are small as files and large once they are open: masses of 0 take no room packed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from svg2.trace.records import Record, Trace
from tests.traces import make_synthetic_trace


def make_large_trace(
    num_q: int, num_k: int, grid: tuple[int, int, int] = (2, 64, 64), records: int = 1
) -> Trace:
    """A sound trace of one run with records of `num_q` by `num_k` clusters."""
    small = make_synthetic_trace(
        grid=(grid[0], 4, 4),
        num_q=3,
        num_k=4,
        steps=3,
        layers=max(1, records),
        heads=1,
        runs=(("svg2", 0.9),),
    )
    num_tokens = int(np.prod(grid))
    tokens = np.arange(num_tokens)
    common = {
        "q_labels": (tokens % num_q).astype(np.uint16),
        "k_labels": (tokens % num_k).astype(np.uint16),
        "P": np.zeros((num_q, num_k), np.float16),
        "kept": np.ones((num_q, num_k), bool),
        "q_rgb": np.zeros((num_q, 3), np.uint8),
        "k_rgb": np.zeros((num_k, 3), np.uint8),
        "k_near": np.zeros((num_k, 4), np.uint16),
        "recall": 0.5,
    }
    made = tuple(Record(0, 1, layer, 0, 0, **common) for layer in range(records))
    return replace(small, grid=grid, n_tokens=num_tokens, records=made)
