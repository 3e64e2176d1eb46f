"""A trace as the explorer reads it: plain JSON with arrays in base64, gzipped for the way."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy import ndarray

from svg2.errors import MediaError, TraceError
from svg2.method.selection import METHODS
from svg2.trace.records import Record, Trace, TraceRun
from svg2.trace.video import check_mp4

FORMAT = "svg2-explorer"
MAX_FRAMES = 1000
MAX_DECODE_SECONDS = 120

Check = Callable[[], None]
"""Called between the steps of long work; what it raises ends the work."""


def no_check() -> None:
    """Lets the work go on."""


def explorer_payload(trace: Trace, mode: str = "trace") -> dict[str, Any]:
    """All that the explorer draws from.

    Args:
        mode: where the trace comes from, as the page shows it: "ready-made trace", "live CPU",
            "live GPU", "upload".
    Raises:
        TraceError: no page can show it, see `check_showable`.
    """
    check_showable(trace)
    num_frames = len(trace.runs[0].psnr_frame)
    return {
        "format": FORMAT,
        "mode": mode,
        "request": _json_safe(trace.request),
        "grid": list(trace.grid),
        "n_tokens": trace.n_tokens,
        "n_text": trace.n_text,
        "provenance": _json_safe(trace.provenance),
        "num_frames": num_frames,
        "latent_frames": latent_frames(num_frames, trace.grid[0]),
        "dense": {"mp4": _base64(trace.dense_mp4)},
        "methods": [method.to_dict() for method in METHODS.values()],
        "runs": [_run(run) for run in trace.runs],
        "records": [_record(record) for record in trace.records],
    }


def payload_bytes(payload: dict[str, Any], check: Check = no_check) -> bytes:
    """A payload as gzipped JSON, which the explorer unpacks; equal payloads, equal bytes.

    Args:
        check: called again and again; what it raises ends the work.
    """
    # Piece by piece: the whole text would take several times the memory of the trace.
    pieces = json.JSONEncoder(allow_nan=False, separators=(",", ":")).iterencode(payload)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as file:
        for piece in pieces:
            check()
            file.write(piece.encode())
    return packed.getvalue()


def latent_frames(num_frames: int, num_latent: int) -> list[list[int]]:
    """First and one-past-last video frame that each latent frame decodes to.

    A causal video VAE (Wan) gives one frame to the first latent and an equal number to each
    later one; where the counts do not fit that, frames are shared out evenly.
    """
    if num_frames >= num_latent > 1 and (num_frames - 1) % (num_latent - 1) == 0:
        scale = (num_frames - 1) // (num_latent - 1)
        return [[0, 1], *([1 + (t - 1) * scale, 1 + t * scale] for t in range(1, num_latent))]
    edges = [t * num_frames // num_latent for t in range(num_latent + 1)]
    return [[a, max(a + 1, b)] for a, b in pairwise(edges)]


def check_showable(trace: Trace) -> None:
    """What `load_trace` leaves open because a trace may hold it, but no page can show it.

    Raises:
        TraceError: there is no sparse run, a recorded run has no sound budget, or the clip is too
            long.
    """
    if not trace.runs:
        raise TraceError("The trace holds no sparse run, so there is nothing to compare.")
    if max(len(trace.runs[0].psnr_frame), trace.grid[0]) > MAX_FRAMES:
        raise TraceError(
            f"The trace has more than the {MAX_FRAMES} frames that the page can show."
        )
    for r in {record.run for record in trace.records}:
        config = trace.runs[r].config
        for name, least in (("top_p", 1e-9), ("min_keep_ratio", 0)):
            value = config.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                value = -1
            if not least <= value <= 1:
                raise TraceError(f"The trace is not sound: run {r} was recorded without a {name}.")


def check_clips(trace: Trace) -> None:
    """Check that every clip can be decoded to its end and has as many frames as were measured.

    Raises:
        TraceError: a clip that can't, or all take longer than `MAX_DECODE_SECONDS`.
    """
    num_frames = len(trace.runs[0].psnr_frame)
    if any(len(run.psnr_frame) != num_frames for run in trace.runs):
        raise TraceError("The trace is not sound: its runs have different numbers of frames.")
    end = time.monotonic() + MAX_DECODE_SECONDS
    clips = {"dense clip": trace.dense_mp4}
    clips |= {f"clip of run {r}": run.mp4 for r, run in enumerate(trace.runs)}
    for name, data in clips.items():
        try:
            check_mp4(data, num_frames, max(0.01, end - time.monotonic()))
        except MediaError as error:
            reason = str(error)
            raise TraceError(
                f"The {name} can't be shown: {reason[0].lower()}{reason[1:]}"
            ) from error


def _run(run: TraceRun) -> dict[str, Any]:
    return {
        "method": run.method,
        "config": _json_safe(run.config),
        "result": _json_safe(run.result),
        "mp4": _base64(run.mp4),
        **{name: _pack(getattr(run, name)) for name in ("psnr_frame", "call", "density")},
    }


def _record(record: Record) -> dict[str, Any]:
    return {
        **{
            name: int(getattr(record, name)) for name in ("run", "step", "layer", "branch", "head")
        },
        "recall": float(record.recall),
        "kept": _pack(np.packbits(record.kept)),
        **{
            name: _pack(getattr(record, name))
            for name in ("q_labels", "k_labels", "P", "q_rgb", "k_rgb", "k_near")
        },
        **{
            name: _pack(array)
            for name in ("gain", "thresholds")
            if (array := getattr(record, name)) is not None
        },
    }


def _pack(array: ndarray) -> dict[str, Any]:
    """Little-endian bytes of an array in base64, with its type and shape."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": _base64(little.tobytes()),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _json_safe(value: Any) -> Any:
    """JSON has no infinity and no NaN: both become null."""
    if isinstance(value, dict):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
