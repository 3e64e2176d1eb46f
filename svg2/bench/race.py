"""Timing contestants against each other, round by round, so that a slow moment falls on all."""

import time
from collections.abc import Callable, Mapping

import torch


def race(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    warm_ups: int = 2,
) -> dict[str, list[float]]:
    """Milliseconds of each contestant in each round, after warm-up; each round runs all.

    On a GPU they are read from events in its own stream.
    """
    for _ in range(warm_ups):
        for run in contestants.values():
            run()
    measure = _cuda_ms if torch.device(device).type == "cuda" else _host_ms
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            times[name].append(measure(run))
    return times


def _host_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _cuda_ms(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
