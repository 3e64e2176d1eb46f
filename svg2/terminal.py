"""A command in a terminal: progress on stderr, and cancelling with Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from svg2.errors import Cancelled, ModelUnavailable, NotFinite
from svg2.runs.progress import Progress, Watch


class Stopped(Exception):
    """A command ended early. The message is one sentence."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def running(
    describe_kept: Callable[[Cancelled], str], shows_progress: bool = True
) -> Iterator[Watch]:
    """A watch for the block, which shows progress on stderr and which Ctrl-C cancels.

    Args:
        describe_kept: returns a clause that says what an interrupted command leaves behind.

    Raises:
        Stopped: Ctrl-C, a model that can't be loaded here, or a run that is not finite.
    """
    with _interruptible() as was_interrupted, _Line() as line:
        try:
            yield Watch(line.show if shows_progress else None, was_interrupted)
        except (ModelUnavailable, NotFinite) as error:
            line.end()
            raise Stopped(str(error), 1) from error
        except Cancelled as cancelled:
            line.end()
            raise Stopped(f"Interrupted; {describe_kept(cancelled)}.", 130) from cancelled


@contextmanager
def _interruptible():
    """Yield a function that tells whether Ctrl-C was pressed; a second Ctrl-C stops at once."""
    is_interrupted = False

    def on_interrupt(*_: Any) -> None:
        nonlocal is_interrupted
        if is_interrupted:
            raise KeyboardInterrupt
        is_interrupted = True
        print("\nsvg2: Stopping; Ctrl-C again stops at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: is_interrupted
    finally:
        signal.signal(signal.SIGINT, before)


class _Line:
    """Progress on stderr: one updated line on a terminal, else a line per stage and five steps."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._length = 0
        self._stage = ("", "")

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def show(self, progress: Progress) -> None:
        text = f"{progress.run} {progress.stage}".strip()
        if progress.num_steps:
            text += f" {progress.step}/{progress.num_steps}"
        if progress.eta_seconds is not None:
            text += f", about {_duration(progress.eta_seconds)} left"
        if self._is_terminal:
            print(f"\r{text:{self._length}}", end="", file=sys.stderr, flush=True)
            self._length = len(text)
            return
        stage = (progress.run, progress.stage)
        if stage != self._stage or progress.step % 5 == 0:
            print(text, file=sys.stderr, flush=True)
        self._stage = stage

    def end(self) -> None:
        """Keep the current line and start a new one."""
        if self._length:
            print(file=sys.stderr)
        self._length = 0


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
