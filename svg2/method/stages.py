"""The stages of one sparse call, and a clock that times them."""

from __future__ import annotations

import time
from typing import Any

STAGES = ("kmeans", "permute", "select", "attention", "other")
"""Stages of a sparse call.

`kmeans` clusters queries and keys, `permute` sorts keys and values by cluster, `select` estimates
masses and selects the pairs to keep, and `attention` attends over them; the queries are sorted
there, and means of the values taken for compensation. `other` is the rest of the layer's
self-attention: projections, norms, RoPE, the output layer, and the exchange of heads where several
processes share a video. Statistics and the observer are in no stage.
"""

DENSE_STAGE = "dense_attention"
"""The attention kernel of a dense call, without projections, norms, RoPE and the output layer."""


class StageClock:
    """Time by stage of one call: each `mark` ends a stage that began where the last one ended.

    On CUDA it records events in the device's current stream and waits for nothing; reading
    `stage_ms` waits for the last of them. On other devices it is wall time.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._cuda = None
        if device.type == "cuda":
            import torch

            self._cuda = torch.cuda
        self._names: list[str | None] = []
        self._instants: list[Any] = [self._now()]

    def _now(self) -> Any:
        if self._cuda is None:
            return time.perf_counter()
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))  # of several GPUs, this one's
        return event

    def mark(self, stage: str) -> None:
        """End the current stage here under this name; times of the same name add up."""
        self._names.append(stage)
        self._instants.append(self._now())

    def skip(self) -> None:
        """End the current stage here and count its time under no name."""
        self._names.append(None)
        self._instants.append(self._now())

    @property
    def skipped_ms(self) -> float:
        """Milliseconds under no name, so far."""
        return self._totals().get(None, 0.0)

    @property
    def stage_ms(self) -> dict[str, float]:
        """Milliseconds by stage, so far."""
        return {name: ms for name, ms in self._totals().items() if name is not None}

    def _totals(self) -> dict[str | None, float]:
        if self._cuda is not None:
            self._instants[-1].synchronize()
        totals: dict[str | None, float] = {}
        spans = zip(self._names, self._instants[:-1], self._instants[1:], strict=True)
        for name, start, end in spans:
            ms = (end - start) * 1e3 if self._cuda is None else start.elapsed_time(end)
            totals[name] = totals.get(name, 0.0) + ms
        return totals
