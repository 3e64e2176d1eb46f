"""The timings suite at toy size."""

import json

import pytest

from svg2.bench.report import tables
from svg2.bench.timings import Case, run_timings_suite
from svg2.models.request import Request
from svg2.runs.run import Run
from tests.svg2.pipelines import make_model_folder


@pytest.mark.slow
def test_it_repeats_each_way_and_tells_what_spreads(tiny_pipeline_path, tmp_path):
    folder = make_model_folder(tiny_pipeline_path, tmp_path / "tiny")
    run = Run.of(Request("a red ball", model=str(folder), dtype="fp32", device="cpu"))
    cases, said = (Case(True), Case(False, busy=1)), []
    record = run_timings_suite(
        tmp_path / "timings.json", said.append, cases=cases, repeats=2, run=run
    )
    assert json.loads((tmp_path / "timings.json").read_text()) == record
    assert len(said) == len(record["cases"]) == 2
    for row, case in zip(record["cases"], cases, strict=True):
        assert (row["in_turns"], row["busy"]) == (case.in_turns, case.busy)
        low, high = sorted(row["speedups"])
        assert low <= row["median"] <= high
        assert row["spread"] == pytest.approx(2 * (high - low) / (high + low))
        assert [r["is_scaled"] for r in row["results"]] == [not case.in_turns] * 2
        stopwatch = [r["dense_seconds"] / r["svg2_seconds"] for r in row["results"]]
        assert row["plain"] == stopwatch
    text = tables(tmp_path)
    assert "| in turns | 0 |" in text
    assert "| one after the other | 1 |" in text
