"""Timing in turns."""

from svg2.bench.turns import time_in_turns


def test_contestants_run_in_turns_and_warm_ups_are_not_timed():
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = time_in_turns(runs, rounds=3, warm_ups=2)
    assert order == ["a", "b"] * 5
    assert {name: len(ms) for name, ms in times.items()} == {"a": 3, "b": 3}
