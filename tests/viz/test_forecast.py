"""What a budget that was not run would give: from curves and runs of known values."""

import math

import numpy as np
import pytest

from svg2.trace.records import selection_at
from tests.traces import make_synthetic_trace
from tests.viz.test_explorer import show

pytestmark = pytest.mark.browser

TICKS = 200
# Density is the budget, and what is missed halves (3 dB) with each fifth of it.
CURVES = {
    "density": [i / TICKS for i in range(TICKS + 1)],
    "missed": [10 ** (-1.5 * i / TICKS) for i in range(TICKS + 1)],
}


def run(top_p, psnr_db, **result):
    base = {
        "density": top_p / 2,  # the recorded calls are twice as dense as the rest
        "density_run": 0.2 + 0.8 * top_p / 2,  # a fifth of the calls is dense
        "compute_density": top_p / 2 + 0.05,
        "dense_seconds": 20.0,
        "svg2_seconds": 10.0,
        "speedup": 2.0,
        "attention_speedup": 4.0,
        "svg2_attention_seconds": 4.0,
        "stage_seconds": {"attention": 3.0},
    }
    return {"config": {"top_p": top_p}, "result": {**base, "psnr_db": psnr_db, **result}}


@pytest.fixture
def forecast(trace, open_page):
    page = open_page(trace)
    return lambda top_p, *runs: page.evaluate(
        "([top_p, runs, curves]) => explorer.math.forecastAt(top_p, runs, curves)",
        [top_p, list(runs), CURVES],
    )


def test_between_two_runs_psnr_goes_with_what_is_missed(forecast):
    told = forecast(0.4, run(0.2, 30), run(0.6, 38))
    assert told["psnr_db"] == pytest.approx(34)
    assert told["density"] == pytest.approx(0.2)
    assert told["off_db"] == pytest.approx(1.5 + 0.45 * 3)


def test_beyond_the_runs_it_follows_three_quarters_of_what_is_missed(forecast):
    assert forecast(0.8, run(0.6, 38))["psnr_db"] == pytest.approx(38 + 0.75 * 3)
    assert forecast(0.2, run(0.6, 38))["psnr_db"] == pytest.approx(38 - 0.75 * 6)


def test_time_of_attention_goes_with_what_is_computed(forecast):
    told = forecast(0.8, run(0.4, 30))  # density 0.4 for 0.2: compute 0.45 for 0.25
    assert told["compute_density"] == pytest.approx(0.45)
    more = 3.0 * 0.8
    assert told["speedup"] == pytest.approx(20 / (10 + more))
    assert told["attention_speedup"] == pytest.approx(16 / (4 + more))
    assert told["computed"] == pytest.approx(0.2 + 0.8 * 0.45)
    assert told["off_speed"] is None  # one stopwatch for each side does not tell
    paced = forecast(0.8, run(0.4, 30, order="in turns"))
    assert paced["off_speed"] == forecast(0.8, run(0.4, 30, is_scaled=True))["off_speed"] == 0.08
    untimed = forecast(0.8, run(0.4, 30, stage_seconds={}))
    assert "speedup" not in untimed
    assert untimed["psnr_db"] == told["psnr_db"]


def test_runs_without_a_budget_or_a_psnr_tell_nothing(forecast):
    by_density = run(0.4, 30)
    by_density["config"]["density"] = 0.1
    assert forecast(0.5) is None
    assert forecast(0.5, by_density, run(0.3, None)) is None


@pytest.mark.parametrize("method", ["svg2", "svg2-routed"])
def test_what_is_missed_is_that_of_the_skipped_blocks(method, open_page):
    made = make_synthetic_trace(
        grid=(5, 6, 7), num_q=11, num_k=29, steps=4, runs=((method, 0.4),), min_keep_ratio=0.0
    )
    page = open_page(made)
    record = made.records[0]
    show(page, record, 0.4)
    found = page.evaluate(
        "() => Array.from(explorer.math.curve(explorer.inspect().record, 0).missed)"
    )
    queries, keys = record.q_sizes.astype(float), record.k_sizes.astype(float)
    for top_p in (0.1, 0.4, 0.75):
        skipped = ~selection_at(record, top_p, 0.0)
        if method == "svg2":
            mass = record.P.astype(np.float64)
            mass /= np.where(keys > 0, mass, 0).sum(1, keepdims=True)
            expected = (queries * (mass * (skipped & (keys > 0))).sum(1) ** 2).sum()
        else:
            errors = np.exp(record.gain.astype(np.float64)) * keys
            expected = (queries[:, None] * np.where(skipped, errors, 0) ** 2).sum()
        assert found[round(TICKS * top_p)] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert math.isclose(found[TICKS], 0, abs_tol=1e-6 * found[0])
