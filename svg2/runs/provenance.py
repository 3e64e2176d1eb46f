"""Where a number was measured: hardware, versions, commit, and the memory that a run took."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "diffusers", "transformers", "triton")


def provenance(device: torch.device) -> dict[str, Any]:
    """What every measured number carries: device, hardware, versions, commit, date in UTC."""
    return {
        "device": str(device),
        "hardware": hardware(device),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware(device: torch.device) -> str:
    """The processor that does the work, by name, with the cores or the memory that it has."""
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_name()}, {cores} cores"


def versions() -> dict[str, str | None]:
    """Versions by name; None for what is not installed."""
    from svg2 import __version__

    found: dict[str, str | None] = {"svg2": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


@functools.cache
def commit() -> str | None:
    """The commit of this checkout, or None where there is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an unpacked copy inside another repository is not that one
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


class PeakMemory:
    """Filled when its block ends: the most bytes that the GPU, or else this process, held."""

    nbytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of a block; None where the count can't be started afresh."""
    peak = PeakMemory()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.nbytes = torch.cuda.max_memory_allocated(device)
        return
    was_reset = _reset_resident_peak()
    before = _resident_peak_bytes()
    yield peak
    after = _resident_peak_bytes()
    # a peak that an earlier block reached is not this one's
    peak.nbytes = after if was_reset or after > before else None


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_peak_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
