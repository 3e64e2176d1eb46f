"""The clock of a sparse call's stages."""

from typing import ClassVar

import torch

from svg2.method.stages import StageClock


class _Event:
    """A CUDA event that remembers its stream; events lie 2 ms apart."""

    made: ClassVar[list["_Event"]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at_ms = 2.0 * len(self.made)
        self.made.append(self)

    def record(self, stream: str) -> None:
        self.stream = stream

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "_Event") -> float:
        return end.at_ms - self.at_ms


def test_events_are_recorded_on_the_gpu_of_the_call_and_not_on_the_current_one(monkeypatch):
    monkeypatch.setattr(_Event, "made", [])
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = StageClock(torch.device("cuda:1"))
    for mark in ("kmeans", "attention", "kmeans"):
        clock.mark(mark)
    clock.skip()
    assert {event.stream for event in _Event.made} == {"stream of cuda:1"}
    assert clock.stage_ms == {"kmeans": 4.0, "attention": 2.0}
    assert clock.skipped_ms == 2.0
