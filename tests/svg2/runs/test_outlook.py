"""What is said of a run before it is made and after."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from svg2.models.request import Request
from svg2.runs import outlook
from svg2.runs.outlook import Measured, budget_warning, forecast, made, measured, warnings_of
from svg2.runs.run import Run
from svg2.trace.file import save_trace
from tests.traces import make_synthetic_trace

CHIP = "AMD EPYC, 2 cores"


@pytest.fixture(scope="module")
def run() -> Run:
    return Run.of(Request("a red ball", num_frames=17))


def row(speedup: float, **changes) -> Measured:
    row = Measured("builtin", 5184, CHIP, "svg2-routed", speedup, "2026-01-02")
    return dataclasses.replace(row, **changes)


@pytest.mark.parametrize(
    ("speedups", "says"),
    [
        ([1.5, 2.0], "Expect a gain: .* were 1.50 to 2.00 times as fast as dense on AMD EPYC"),
        ([1.5], "Expect a gain: .* were 1.50 times"),
        ([0.6, 0.5], "Expect a loss: .* were 0.50 to 0.60 times"),
        ([0.8, 1.3], "depends on the budget: .* were 0.80 to 1.30 times"),
        ([1.01], "depends on the budget"),
    ],
)
def test_a_forecast_is_what_was_measured(run: Run, speedups, says) -> None:
    assert re.search(says, forecast(run, CHIP, [row(speedup) for speedup in speedups]))


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": "AMD EPYC, 4 cores"},
        {"model": "Wan 2.1 1.3B"},
        {"tokens": 9792},
        {"method": "svg2"},
    ],
)
def test_what_was_measured_elsewhere_is_no_forecast(run: Run, changes) -> None:
    assert forecast(run, CHIP, [row(2.0, **changes)]).endswith(": not measured.")
    assert forecast(run, CHIP, []).endswith(": not measured.")


def test_the_projects_own_records_are_read() -> None:
    rows = measured()
    assert {"builtin", "Wan 2.1 1.3B"} <= {row.model for row in rows}
    e2e = json.loads((outlook.BENCH / "e2e.json").read_text())
    wan = Run.of(Request("a fox", model="wan2.1-1.3b"), settings={"method": "svg2"})
    said = forecast(wan, e2e["hardware"])
    assert f"{e2e['runs'][0]['speedup']:.2f} times" in said
    assert "with random weights" in said
    evaluation = json.loads((outlook.BENCH / "builtin_model.json").read_text())
    default = Run.of(Request("a red ball"))
    median = evaluation["fidelity"][default.method.name]["speedup_median"]
    assert f"{median:.2f} times" in forecast(default, evaluation["hardware"])


def test_a_folder_without_records_measures_nothing(tmp_path) -> None:
    assert measured(tmp_path) == ()


def result(top_p: float | None, psnr_db: float | None, **changes) -> dict:
    config = {"top_p": top_p or 0.9, "density": changes.pop("density", None)}
    made = {"model": "builtin", "method": "svg2-routed", "psnr_db": psnr_db, "config": config}
    return made | changes


@pytest.mark.parametrize(
    ("settings", "results", "warns"),
    [
        ({"top_p": 0.3}, [result(0.3, 19.0), result(0.9, 30.0)], True),
        ({"top_p": 0.1}, [result(0.3, 19.0), result(0.9, 30.0)], True),
        ({"top_p": 0.5}, [result(0.3, 19.0), result(0.9, 30.0)], False),
        ({"top_p": 0.3}, [result(0.3, 24.0), result(0.2, 19.0)], False),
        ({"top_p": 0.3}, [result(0.3, None)], False),
        ({"top_p": 0.3}, [result(0.3, 19.0, method="svg2")], False),
        ({"top_p": 0.3}, [result(0.3, 19.0, model="another")], False),
        ({"top_p": 0.3}, [result(0.9, 19.0, density=0.05)], False),
        ({"density": 0.05}, [result(None, 19.0, density=0.05)], True),
        ({"density": 0.1}, [result(None, 19.0, density=0.05)], False),
        ({"top_p": 0.3}, [{}], False),
    ],
)
def test_a_budget_that_broke_pictures_is_said(run: Run, settings, results, warns) -> None:
    said = budget_warning(run.with_settings(**settings), results)
    assert (said is not None) == warns
    if said is not None:
        assert "19.0 dB" in said
        assert ("top_p 0.9 did not" in said) == (len(results) == 2)


def test_what_was_made_is_read_from_traces_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    trace = make_synthetic_trace()
    save_trace(trace, tmp_path / "whole.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:500])
    (tmp_path / "pointer.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert made(tmp_path) == [run.result for run in trace.runs]
    assert made(tmp_path / "none") == []


def record(q_labels, k_labels, num: int = 40):
    base = make_synthetic_trace(grid=(2, 20, 20), num_q=num, num_k=num).records[0]
    return dataclasses.replace(
        base, q_labels=np.array(q_labels, np.uint16), k_labels=np.array(k_labels, np.uint16)
    )


EVEN = [i % 40 for i in range(800)]
ONE = [7] * 720 + [i % 40 for i in range(80)]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([record(EVEN, EVEN)], None),
        ([record(EVEN, ONE)], "Key clusters collapsed: in step .* 2 clusters hold 90% of the"),
        ([record(EVEN, EVEN), record(ONE, EVEN)], "Query clusters collapsed"),
        ([record([0] * 800, [0] * 800, num=7)], None),  # so few can't tell
        ([], None),
    ],
)
def test_collapsed_clusters_are_said(records, says) -> None:
    said = warnings_of(30.0, records)
    if says is None:
        assert said == []
    else:
        assert len(said) == 1
        assert re.match(says, said[0])


@pytest.mark.parametrize(("psnr_db", "warns"), [(None, False), (23.6, False), (19.2, True)])
def test_a_clip_far_from_dense_is_said(psnr_db, warns) -> None:
    assert bool(warnings_of(psnr_db, [])) == warns
