"""A stand-in for ZeroGPU: a scheduler with a quota, a process for each call, no CUDA outside it.

Like the real one it is a decorator of generators that forks, pickles what goes in and comes out,
passes exceptions as the names of their classes, and ends a call only where it yields.
"""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import torch
from gradio.context import LocalContext

_FORBIDDEN = ("is_available", "device_count", "get_device_capability", "mem_get_info", "init")


def _touched(*_: Any, **__: Any) -> None:
    raise AssertionError("CUDA was asked for in the process without a GPU")


@dataclass
class StandIn:
    """What the scheduler saw, and what it does.

    Attributes:
        quota_seconds: GPU seconds that a visitor has left.
        aborts_at: message of a call after which its process is killed; None for never.
        durations: seconds asked for, one per call. visitors: who asked.
    """

    quota_seconds: float = 10_000
    aborts_at: int | None = None
    durations: list[int] = field(default_factory=list)
    visitors: list[Any] = field(default_factory=list)
    processes: list[Any] = field(default_factory=list)

    def GPU(self, task: Callable, duration: Callable[..., int]) -> Callable[..., Generator]:
        def call(*args: Any) -> Generator:
            self.visitors.append(LocalContext.request.get(None))
            self.durations.append(duration(*args))
            if self.durations[-1] > self.quota_seconds:
                left = f"({self.durations[-1]}s requested vs. {self.quota_seconds:.0f}s left)"
                raise gr.Error(
                    f"You have exceeded your free ZeroGPU quota {left}. Try again in 3:10:00. ",
                    title="ZeroGPU quota exceeded",
                )
            self.quota_seconds -= self.durations[-1]
            yield from self._forked(task, pickle.dumps(args))

        return call

    def _forked(self, task: Callable, arguments: bytes) -> Generator:
        context = multiprocessing.get_context("fork")
        (mine, theirs), stop = context.Pipe(duplex=False), context.Event()
        process = context.Process(target=_serve, args=(task, arguments, theirs, stop), daemon=True)
        process.start()
        theirs.close()
        self.processes.append(process)
        count = 0
        try:
            while True:
                try:
                    kind, value = pickle.loads(mine.recv_bytes())
                except EOFError:
                    raise gr.Error("GPU task aborted", title="ZeroGPU worker error") from None
                if kind == "end":
                    return
                if kind == "error":
                    raise gr.Error(value, title="ZeroGPU worker error")
                if count == self.aborts_at:
                    process.kill()
                count += 1
                yield value
        finally:
            stop.set()
            while _drain(mine):
                pass
            process.join(60)


def _drain(pipe: Any) -> bool:
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        return False
    return True


def _serve(task: Callable, arguments: bytes, pipe: Any, stop: Any) -> None:
    for name, value in _real.items():
        setattr(torch.cuda, name, value)

    def send(kind: str, value: Any = None) -> None:
        pipe.send_bytes(pickle.dumps((kind, value)))

    def iterate() -> None:
        made = task(*pickle.loads(arguments))
        try:
            for value in made:
                if stop.is_set():
                    made.close()
                    break
                send("value", value)
        except Exception as error:
            send("error", type(error).__name__)
        else:
            send("end")

    thread = threading.Thread(target=contextvars.copy_context().run, args=(iterate,))
    thread.start()
    thread.join()
    pipe.close()
    os._exit(0)


_real: dict[str, Any] = {}


@contextmanager
def without_cuda() -> Iterator[None]:
    """Whoever asks for CUDA in this process fails; in the process of a call it is as before."""
    _real.update({name: getattr(torch.cuda, name) for name in _FORBIDDEN})
    for name in _FORBIDDEN:
        setattr(torch.cuda, name, _touched)
    try:
        yield
    finally:
        for name, value in _real.items():
            setattr(torch.cuda, name, value)
        _real.clear()
