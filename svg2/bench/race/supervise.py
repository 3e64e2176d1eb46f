"""The processes of a race: started, watched, and ended in time."""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from svg2.bench.harness import Progress
from svg2.bench.race.record import ROOT, Place

_POLL_SECONDS = 0.1
_TAIL_LINES = 3


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        code: its exit code, below 0 for a signal.
        last_line: of its stdout.
        tail: the last lines of its stderr.
        stopped: why it was killed, or None.
    """

    code: int
    last_line: str
    tail: str
    stopped: str | None

    @property
    def fault(self) -> str | None:
        """What went wrong, or None."""
        if self.stopped is not None:
            return self.stopped
        return f"ended with code {self.code}: {self.tail}" if self.code else None


def run_process(
    module: str,
    arguments: list[str],
    place: Place,
    *,
    seconds: float,
    say: Progress | None = None,
    stall: Callable[[float], str | None] = lambda waited: None,
) -> Ending:
    """Run `python -m module` until it ends or is killed.

    Args:
        seconds: it is killed after these.
        say: gets the lines of its stderr.
        stall: is asked, with the seconds that this process has waited, why to kill it. Time in
            which this process itself stood still does not count.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=_environment(place),
        stdin=subprocess.PIPE,  # it closes with this process, and the other ends: stop_with_parent
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines: deque[str] = deque(maxlen=1)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def told(line: str) -> None:
        tail.append(line)
        if say is not None:
            say(line)

    readers = [
        threading.Thread(target=_read, args=pair, daemon=True)
        for pair in ((process.stdout, lines.append), (process.stderr, told))
    ]
    for reader in readers:
        reader.start()
    stopped = None
    try:
        stopped = _wait(process, seconds, stall)
    finally:
        process.kill()
        process.wait()
    for reader in readers:
        reader.join(5)
    return Ending(process.returncode, lines[0] if lines else "", " ".join(tail), stopped)


def _wait(
    process: subprocess.Popen, seconds: float, stall: Callable[[float], str | None]
) -> str | None:
    """Wait for the end; or say why the process must be killed."""
    end, waited, before = time.monotonic() + seconds, 0.0, time.monotonic()
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        waited += min(now - before, 10 * _POLL_SECONDS)
        before = now
        if now >= end:
            return "the time was over"
        why = stall(waited)
        if why is not None:
            return why
    return None


def watch(path: Path, limit_seconds: float) -> Callable[[float], str | None]:
    """Finds a process that has not written `path` for `limit_seconds`."""
    seen: list[float] = [0.0, 0.0]  # when the file was written, and the wait at that time

    def stall(waited: float) -> str | None:
        written = path.stat().st_mtime if path.is_file() else 0.0
        if written != seen[0]:
            seen[:] = [written, waited]
        if waited - seen[1] > limit_seconds:
            return f"nothing happened for {limit_seconds:.0f} s"
        return None

    return stall


def stop_with_parent() -> None:
    """End this process when the one that started it is gone, also if that was killed."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def add_place(parser: argparse.ArgumentParser) -> None:
    """The options that all processes of a race share."""
    parser.add_argument(
        "--out", type=Path, help="folder of the results; assets/bench if not given"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="toy sizes in Triton's interpreter on the CPU: tries out the race, measures nothing",
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="in a rehearsal, race variants too that are wrong, crash and hang on purpose",
    )


def place_of(arguments: argparse.Namespace) -> Place:
    """The place that the options name; a rehearsal without a folder writes to a temporary one."""
    folder = arguments.out or (
        Path(tempfile.gettempdir()) / "svg2-race-rehearsal"
        if arguments.rehearse
        else ROOT / "assets" / "bench"
    )
    return Place(folder.resolve(), arguments.rehearse, arguments.controls)


def _environment(place: Place) -> dict[str, str]:
    changes = {"PYTHONUNBUFFERED": "1"}
    if place.is_rehearsal:
        changes |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **changes}


def _read(stream, take: Callable[[str], object]) -> None:
    for line in stream:
        if line.strip():
            take(line.rstrip())
