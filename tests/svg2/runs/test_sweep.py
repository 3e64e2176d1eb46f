"""Sweeps: every method at every budget, and what a cancelled sweep leaves."""

import json

import pytest
import torch

from svg2.errors import Cancelled, RequestError
from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs.progress import Watch
from svg2.runs.run import Run
from svg2.runs.sweep import SweepPlan, sweep
from svg2.trace.file import load_trace
from tests.svg2.pipelines import make_model_folder


@pytest.fixture(scope="module")
def folder(tiny_pipeline_path, tmp_path_factory):
    return str(make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny"))


@pytest.fixture(scope="module")
def pipe(folder):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_pipeline(model_spec(folder), "fp32", "cpu")
    torch.set_num_threads(num_threads)


def run_of(folder):
    return Run.of(Request("a red ball", model=folder))


@pytest.mark.slow
def test_sweep_measures_every_method_and_budget(folder, pipe, tmp_path):
    methods, top_ps = ["svg2", "svg2-comp"], [0.5, 0.9]
    content = sweep(SweepPlan.of(run_of(folder), methods, top_ps), tmp_path, pipe)
    assert json.loads((tmp_path / "sweep.json").read_text()) == content
    assert content["complete"]
    points = content["points"]
    assert sorted((p["method"], p["config"]["top_p"]) for p in points) == [
        *(("svg2", 0.5), ("svg2", 0.9), ("svg2-comp", 0.5), ("svg2-comp", 0.9))
    ]
    for point in points:
        baseline = content["baselines"][point["method"]]
        assert baseline["density"] == 1
        product = point["kernel_gain"] * point["sparsity_speedup"]
        assert product == pytest.approx(point["speedup"])
        assert point["sparsity_speedup_bound"] > 1
        assert point["dense_seconds"] == content["dense"]["dense_seconds"]
    density = {(p["method"], p["config"]["top_p"]): p["density"] for p in points}
    assert density["svg2", 0.5] < density["svg2", 0.9]
    trace = load_trace(tmp_path / "trace.npz")
    assert [run.result for run in trace.runs] == points
    assert {record.run for record in trace.records} == {0, 1, 2, 3}


@pytest.mark.slow
def test_every_run_can_take_turns_with_a_dense_one(folder, pipe, tmp_path):
    plan = SweepPlan.of(run_of(folder), ["svg2", "svg2-comp"], [0.5])
    after, turns = (sweep(plan, tmp_path, pipe, in_turns=turns) for turns in (False, True))
    trace = load_trace(tmp_path / "trace.npz")
    assert turns["complete"]
    assert {point["order"] for point in after["points"]} == {"dense first"}
    for one, other, run in zip(after["points"], turns["points"], trace.runs, strict=True):
        assert (other["order"], other["is_scaled"]) == ("in turns", False)
        assert other["psnr_db"] == one["psnr_db"]
        assert run.result == other
    dense_seconds = [point["dense_seconds"] for point in turns["points"]]
    assert len(set(dense_seconds)) == len(dense_seconds)


def test_runs_that_cannot_take_turns_are_refused_before_any_is_made(
    folder, pipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("svg2.runs.sweep.why_no_race", lambda pipe: "The model is compiled.")
    plan = SweepPlan.of(run_of(folder), ["svg2"], [0.5])
    with pytest.raises(RequestError, match="can't take turns\\. The model is compiled"):
        sweep(plan, tmp_path, pipe, in_turns=True)
    assert not list(tmp_path.iterdir())


def test_top_p_1_is_measured_once_and_is_a_point_if_requested(folder, pipe, tmp_path):
    content = sweep(SweepPlan.of(run_of(folder), ["svg2"], [1.0]), tmp_path, pipe)
    (point,) = content["points"]
    assert point["sparsity_speedup"] == 1
    assert point["svg2_seconds"] == content["baselines"]["svg2"]["svg2_seconds"]


def test_completed_runs_are_kept_when_cancelled(folder, pipe, tmp_path):
    seen = []

    def should_cancel():
        return sum(p.stage == "decode" for p in seen) == 3  # dense, all kept, first point

    watch = Watch(seen.append, should_cancel)
    with pytest.raises(Cancelled):
        sweep(SweepPlan.of(run_of(folder), ["svg2"], [0.5, 0.9]), tmp_path, pipe, watch=watch)
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert not content["complete"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.json"]
    assert content["points"] == []
    assert set(content["baselines"]) == {"svg2"}
