"""Where a number was measured: hardware, versions and commit; and peak memory."""

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
    """Device, hardware, versions, commit and UTC date, which go with every measured number."""
    return {
        "device": str(device),
        "hardware": hardware(device),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware(device: torch.device) -> str:
    """Name of the GPU with its memory, or of the CPU with the number of cores that are usable."""
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_name()}, {cores} cores"


def versions() -> dict[str, str | None]:
    """Versions of Python and packages by name; None if a package is not installed."""
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
    """The commit of this checkout; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # git would find a repository around this folder
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


class PeakMemory:
    """Peak memory in bytes while it counts, on the GPU or else of this process.

    Attributes:
        nbytes: the peak up to the last pause; None if an earlier, larger peak hides it.
    """

    def __init__(self, device: torch.device) -> None:
        self.nbytes: int | None = None
        self._device = device
        self._is_known = False  # whether what is read next is no older than the last `resume`
        self._before = 0

    def resume(self) -> None:
        """Count from here on."""
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            self._is_known = True
            return
        self._is_known = _reset_resident_peak()
        self._before = _resident_peak_bytes()

    def pause(self) -> None:
        """Count up to here."""
        if self._device.type == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident_peak_bytes()
        # without a reset, an unchanged peak may come from an earlier block
        if self._is_known or peak > self._before:
            self.nbytes = max(peak, self.nbytes or 0)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of a block."""
    peak = PeakMemory(device)
    peak.resume()
    yield peak
    peak.pause()


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
