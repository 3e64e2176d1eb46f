"""A dense run kept in a file, so that later sparse runs can be compared with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from svg2.models.request import ResolvedRequest
from svg2.runs.dense_sparse import DenseRun
from svg2.trace.atomic import write_atomic

_NUMBERS = (
    *("seconds", "attention_seconds", "peak_memory_bytes", "backend", "dtype", "provenance"),
    *("stock_seconds", "stock_psnr_db", "step_seconds", "step_attention_seconds"),
)


def save_dense(path: Path, dense: DenseRun) -> None:
    """Write frames and measurements, whole or not at all.

    Raises:
        OSError: a file that can't be written.
    """
    facts = json.dumps({name: getattr(dense, name) for name in _NUMBERS})
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, frames=dense.frames, facts=np.frombuffer(facts.encode(), dtype=np.uint8)
    )
    write_atomic(path, buffer.getvalue())


def load_dense(path: Path, request: ResolvedRequest) -> DenseRun | None:
    """The dense run of `request` that `save_dense` wrote; None if there is no whole file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(file["facts"].tobytes())
            return DenseRun(request=request, frames=file["frames"], **facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None
