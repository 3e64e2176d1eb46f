"""Traces as `.npz` files: written whole, read with every name, shape and bound checked."""

import io
import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from svg2.errors import TraceError
from svg2.git_lfs import ADVICE, is_pointer
from svg2.method.stages import STAGES
from svg2.trace.atomic import write_atomic
from svg2.trace.header import read_header, require
from svg2.trace.records import (
    MAX_BYTES,
    MAX_PAIRS,
    NUM_NEAR,
    TICKS,
    Record,
    Trace,
    TraceRun,
)

_MAX_FILE_BYTES = 64 << 20
_MAX_MEMBERS = 20_000
_MAX_HEADER_BYTES = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound
_ENTRY = b"PK\x01\x02"  # each entry of an archive's directory begins with it


def save_trace(trace: Trace, path: str | os.PathLike) -> None:
    """Write a trace as `.npz`, whole or not at all.

    Raises:
        OSError: the folder can't be written.
    """
    write_atomic(path, trace_bytes(trace))


def trace_bytes(trace: Trace) -> bytes:
    """A trace as the bytes of its `.npz` file."""
    header = {
        "version": trace.version,
        "request": trace.request,
        "grid": list(trace.grid),
        "n_tokens": trace.n_tokens,
        "n_text": trace.n_text,
        "policy": trace.policy,
        "provenance": trace.provenance,
        "dense_result": trace.dense_result,
        "runs": [{"method": r.method, "config": r.config, "result": r.result} for r in trace.runs],
        "num_records": len(trace.records),
    }
    arrays: dict[str, ndarray] = {
        "header": np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8),
        "dense/mp4": np.frombuffer(trace.dense_mp4, np.uint8),
    }
    for r, run in enumerate(trace.runs):
        arrays[f"r{r}/mp4"] = np.frombuffer(run.mp4, np.uint8)
        for name in _RUN_ARRAYS:
            arrays[f"r{r}/{name}"] = getattr(run, name)
    for i, record in enumerate(trace.records):
        arrays[f"i{i}/index"] = np.array(record.position, np.int32)
        arrays[f"i{i}/kept"] = np.packbits(record.kept)
        arrays[f"i{i}/recall"] = np.array(record.recall, np.float32)
        for name in (*_RECORD_ARRAYS, *(_ERROR_ARRAYS if record.gain is not None else ())):
            arrays[f"i{i}/{name}"] = getattr(record, name)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # numbers alone, so nothing is pickled
    return buffer.getvalue()


def load_trace(source: str | os.PathLike | bytes) -> Trace:
    """Read a trace from a file or its bytes, checking all names, shapes, types and bounds.

    Nothing is ever unpickled.
    Raises:
        TraceError: the file is missing, truncated, foreign or hostile.
    """
    data = source if isinstance(source, bytes) else _read_file(Path(source))
    if is_pointer(data):
        raise TraceError(f"The file {ADVICE}.")
    try:
        return _parse(_Members(data))
    except zipfile.BadZipFile as error:
        raise TraceError(
            "The file is no trace: it is not an .npz archive, or is cut short."
        ) from error


_RUN_ARRAYS = {
    "psnr_frame": (np.float32, 1),
    "call": (np.int32, 2),
    "density": (np.float32, 2),
    "kept_mass": (np.float32, 2),
    "stage_ms": (np.float32, 2),
}
_RECORD_ARRAYS = {
    "q_labels": (np.uint16, 1),
    "k_labels": (np.uint16, 1),
    "P": (np.float16, 2),
    "q_rgb": (np.uint8, 2),
    "k_rgb": (np.uint8, 2),
    "k_near": (np.uint16, 2),
}
_ERROR_ARRAYS = {"gain": (np.float16, 2), "thresholds": (np.float32, 1)}  # both or neither
_NAME = re.compile(
    r"header|dense/mp4"
    rf"|r\d{{1,4}}/(mp4|{'|'.join(_RUN_ARRAYS)})"
    rf"|i\d{{1,5}}/(index|kept|recall|{'|'.join((*_RECORD_ARRAYS, *_ERROR_ARRAYS))})"
)


class _Members:
    """The arrays of an .npz archive, each checked for its size before any memory is taken.

    `np.load` allocates what an array's header claims, so a file of 1 kB could ask for all memory.
    """

    def __init__(self, data: bytes):
        if len(data) > _MAX_FILE_BYTES:
            raise TraceError(
                f"The file is larger than the {_MAX_FILE_BYTES >> 20} MB a trace may have."
            )
        if data.count(_ENTRY) > _MAX_MEMBERS:
            raise TraceError(f"The file is no trace: it holds more than {_MAX_MEMBERS} entries.")
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        members = self._zip.infolist()
        if sum(m.file_size for m in members) > MAX_BYTES:
            raise TraceError(
                f"The file unpacks to more than the {MAX_BYTES >> 20} MB a trace may hold."
            )
        self._sizes = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if (
                not member.filename.endswith(".npy")
                or not _NAME.fullmatch(name)
                or name in self._sizes
                or member.compress_type not in _METHODS
            ):
                raise TraceError(
                    f"The file is no trace: it holds an unknown entry {member.filename[:40]!r}."
                )
            self._sizes[name] = member.file_size
        if "header" not in self._sizes:
            raise TraceError("The file is no trace: its header is missing.")
        if self._sizes["header"] > _MAX_HEADER_BYTES:
            raise TraceError("The file is no sound trace: its header is too large.")

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def array(self, name: str, dtype: Any, ndim: int) -> ndarray:
        if name not in self._sizes:
            raise TraceError(f"The trace is incomplete: {name} is missing.")
        try:
            with self._zip.open(f"{name}.npy") as member:
                # Without a bound all is unpacked first, whatever the directory says.
                raw = member.read(self._sizes[name] + 1)
            stream = io.BytesIO(raw)
            version = np.lib.format.read_magic(stream)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, found = read_header(stream)
        # zlib.error, EOFError and NotImplementedError (encrypted, odd compression) come from a
        # damaged or odd archive
        except Exception as error:
            raise TraceError(f"The trace is damaged: {name} can't be read.") from error
        if found.hasobject or found != np.dtype(dtype) or fortran or len(shape) != ndim:
            raise TraceError(f"The trace is not sound: {name} has the wrong type or shape.")
        start = stream.tell()
        if math.prod(shape) * found.itemsize != len(raw) - start:
            raise TraceError(f"The trace is damaged: {name} is cut short.")
        return np.frombuffer(raw, found, offset=start).reshape(shape)


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise TraceError(
                f"The file is larger than the {_MAX_FILE_BYTES >> 20} MB a trace may have."
            )
        return path.read_bytes()
    except OSError as error:
        raise TraceError(
            f"The trace {path} can't be opened: {error.strerror or error}."
        ) from error


def _parse(members: _Members) -> Trace:
    header = read_header(members.array("header", np.uint8, 1).tobytes())
    runs = tuple(_run(members, r, fields) for r, fields in enumerate(header["runs"]))
    records = _records(members, header, runs)
    positions = {record.position for record in records}
    require(len(positions) == len(records), "two of its records have one position")
    with_errors = sum(record.gain is not None for record in records)
    expected = (
        2
        + len(runs) * (1 + len(_RUN_ARRAYS))
        + len(records) * (3 + len(_RECORD_ARRAYS))
        + with_errors * len(_ERROR_ARRAYS)
    )
    require(len(members) == expected, "it holds entries that its header does not name")
    return Trace(
        **{name: header[name] for name in ("version", "n_tokens", "n_text", "request")},
        **{name: header[name] for name in ("policy", "provenance", "dense_result")},
        grid=tuple(header["grid"]),
        dense_mp4=_mp4(members, "dense/mp4"),
        runs=runs,
        records=records,
    )


def _run(members: _Members, r: int, fields: dict[str, Any]) -> TraceRun:
    arrays = {name: members.array(f"r{r}/{name}", *kind) for name, kind in _RUN_ARRAYS.items()}
    calls = len(arrays["call"])
    require(
        arrays["call"].shape == (calls, 3) and (arrays["call"] >= 0).all(), f"r{r}/call is off"
    )
    require(arrays["stage_ms"].shape == (calls, len(STAGES)), f"r{r}/stage_ms is off")
    require(len(arrays["density"]) == calls, f"r{r}/density is off")
    require(arrays["kept_mass"].shape == arrays["density"].shape, f"r{r}/kept_mass is off")
    for name in ("density", "kept_mass", "stage_ms"):
        require(
            np.isfinite(arrays[name]).all() and (arrays[name] >= 0).all(), f"r{r}/{name} is off"
        )
    require(not np.isnan(arrays["psnr_frame"]).any(), f"r{r}/psnr_frame is off")
    return TraceRun(
        fields["method"], fields["config"], fields["result"], _mp4(members, f"r{r}/mp4"), **arrays
    )


def _records(
    members: _Members, header: dict[str, Any], runs: tuple[TraceRun, ...]
) -> tuple[Record, ...]:
    records, pairs = [], 0
    for i in range(header["num_records"]):
        records.append(_record(members, i, header, runs))
        pairs += records[-1].P.size
        if pairs > MAX_PAIRS:
            raise TraceError(
                f"The trace holds more than the {MAX_PAIRS >> 20} million pairs of clusters that "
                "its records may have together: record fewer calls, or with fewer clusters."
            )
    return tuple(records)


def _record(
    members: _Members, i: int, header: dict[str, Any], runs: tuple[TraceRun, ...]
) -> Record:
    kinds = _RECORD_ARRAYS | (_ERROR_ARRAYS if f"i{i}/gain" in members else {})
    arrays = {name: members.array(f"i{i}/{name}", *kind) for name, kind in kinds.items()}
    index = members.array(f"i{i}/index", np.int32, 1)
    require(index.shape == (5,) and (index >= 0).all(), f"i{i}/index is off")
    run, step, layer, branch, head = index.tolist()
    require(
        run < len(runs) and head < runs[run].density.shape[1], f"i{i}/index names no run or head"
    )
    require(
        (runs[run].call == (step, layer, branch)).all(axis=1).any(), f"i{i}/index names no call"
    )
    n_tokens, (num_q, num_k) = header["n_tokens"], arrays["P"].shape
    require(0 < num_q <= n_tokens and 0 < num_k <= n_tokens, f"i{i}/P is off")
    for name, count in (("q_labels", num_q), ("k_labels", num_k)):
        labels = arrays[name]
        require(labels.shape == (n_tokens,) and labels.max() < count, f"i{i}/{name} is off")
    require(
        arrays["q_rgb"].shape == (num_q, 3) and arrays["k_rgb"].shape == (num_k, 3),
        f"i{i}/rgb is off",
    )
    near = arrays["k_near"]
    require(near.shape == (num_k, NUM_NEAR) and near.max() < num_k, f"i{i}/k_near is off")
    mass = arrays["P"]
    require(np.isfinite(mass).all() and (mass >= 0).all() and (mass <= 1).all(), f"i{i}/P is off")
    if "gain" in arrays:
        gain, thresholds = arrays["gain"], arrays["thresholds"]
        require(gain.shape == mass.shape and np.isfinite(gain).all(), f"i{i}/gain is off")
        sound = thresholds.shape == (TICKS + 1,) and np.isfinite(thresholds).all()
        require(sound and (np.diff(thresholds) <= 0).all(), f"i{i}/thresholds is off")
    packed = members.array(f"i{i}/kept", np.uint8, 1)
    require(len(packed) == -(-num_q * num_k // 8), f"i{i}/kept is off")
    kept = np.unpackbits(packed, count=num_q * num_k).astype(bool).reshape(num_q, num_k)
    recall = float(members.array(f"i{i}/recall", np.float32, 0))
    require(0 <= recall <= 1 + 1e-6, f"i{i}/recall is off")
    return Record(run, step, layer, branch, head, **arrays, kept=kept, recall=min(recall, 1.0))


def _mp4(members: _Members, name: str) -> bytes:
    data = members.array(name, np.uint8, 1).tobytes()
    require(data[4:8] == b"ftyp", f"{name} is no MP4 video")
    return data
