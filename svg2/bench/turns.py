"""How all suites time: contestants run in turns, so that a slow moment falls on each of them.

A contestant is any function without arguments, such as a dense or a sparse kernel bound to its
inputs. This module only takes times. The suites choose the contestants, check their results
before the race (`svg2.bench.exact`) and write the records.
"""

import time
from collections.abc import Callable, Mapping

import torch


def time_in_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    warm_ups: int = 2,
    before: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Time every contestant once per round, in the order given.

    Args:
        contestants: functions to time, by name.
        rounds: number of rounds that are timed.
        device: where the contestants run. On a GPU the times come from CUDA events in the current
            stream, elsewhere from the host's clock.
        warm_ups: number of rounds before those, which are not timed.
        before: is told whose turn it is, before the clock starts.

    Returns:
        Milliseconds per contestant, one value per round. The values of one round are a pair (or
        more) measured one after another, so their ratio is a fair comparison.
    """
    measure = _cuda_ms if torch.device(device).type == "cuda" else _host_ms
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_ups + rounds):
        for name, run in contestants.items():
            if before is not None:
                before(name)
            if turn < warm_ups:
                run()
            else:
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
