"""Sweeps over many prompts: equal compute, resumed where they were stopped, statistics."""

import json

import pytest

from svg2.errors import Cancelled
from svg2.method.selection import ROUTED_METHOD
from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs import sweep_prompts as module
from svg2.runs.progress import Watch
from svg2.runs.run import Run
from svg2.runs.sweep_prompts import Grid, statistics_of, sweep_prompts
from tests.svg2.pipelines import make_model_folder

PROMPTS = (("a red ball", 3), ("a blue cube", 4))


@pytest.fixture(scope="module")
def grid(tiny_pipeline_path, tmp_path_factory):
    folder = make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny")
    run = Run.of(Request("a red ball", model=str(folder)))
    return Grid(run, PROMPTS, ("svg2", ROUTED_METHOD), (0.3, 0.6))


@pytest.fixture(scope="module")
def pipe(grid):
    return load_pipeline(model_spec(grid.run.request.model), "fp32", "cpu")


@pytest.fixture(scope="module")
def swept(grid, pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep_prompts(grid, folder, pipe)


def test_every_method_at_every_budget_for_every_prompt(swept, grid):
    folder, content = swept
    assert json.loads((folder / "sweep.json").read_text()) == content
    found = {(p["prompt"], p["method"], p["budget"]) for p in content["points"]}
    assert len(found) == len(content["points"])
    for prompt, seed in PROMPTS:
        for method, budget, _ in grid.points(prompt, seed):
            assert (prompt, method, budget) in found


def test_budgets_are_of_all_that_is_computed(swept):
    for point in swept[1]["points"]:
        assert point["compute_density"] <= point["budget"] + 0.02
        if point["method"] == "svg2":
            assert point["compute_density"] == pytest.approx(point["density"])
        else:
            assert point["compute_density"] > point["density"]


def test_what_is_there_is_not_made_again(swept, grid, pipe, monkeypatch):
    folder, content = swept
    monkeypatch.setattr(module, "generate_sparse", None)
    monkeypatch.setattr(module, "generate_dense", None)
    assert sweep_prompts(grid, folder, pipe) == content


def test_a_stopped_sweep_goes_on(grid, pipe, tmp_path, monkeypatch):
    made = []
    generate = module.generate_sparse

    def stop_after_two(*arguments):
        if len(made) == 2:
            raise Cancelled(None)
        made.append(1)
        return generate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "generate_sparse", stop_after_two)
        with pytest.raises(Cancelled):
            sweep_prompts(grid, tmp_path, pipe)
    assert len(list(tmp_path.glob("point-*.json"))) == 2
    dense = []
    stock = module.generate_dense
    monkeypatch.setattr(
        module, "generate_dense", lambda *a: dense.append(a[1].request.prompt) or stock(*a)
    )
    content = sweep_prompts(grid, tmp_path, pipe, Watch())
    assert len(content["points"]) == len(PROMPTS) * 4
    assert dense == ["a blue cube"]  # the first prompt's was kept


def test_statistics_are_quartiles_over_prompts():
    points = [
        {"method": "svg2", "budget": 0.1, "psnr_db": psnr, "ssim": None}
        for psnr in (20.0, 30.0, 40.0, None)
    ]
    (row,) = statistics_of(points)
    assert row["prompts"] == 4
    assert row["psnr_db"] == {"low": 27.5, "median": 35.0, "high": 55.0}  # identical counts 100
    assert row["ssim"] is None


def test_a_budget_below_what_a_method_always_computes_is_left_out(grid):
    small = Grid(grid.run, PROMPTS, (ROUTED_METHOD,), (0.001,))
    assert small.points(*PROMPTS[0]) == []


@pytest.mark.parametrize(("method", "holds_gains"), [(ROUTED_METHOD, True), ("svg2-ear", False)])
def test_errors_are_recorded_where_they_decide_alone(grid, pipe, method, holds_gains):
    run = grid.run.with_settings(method=method, warmup_fraction=0.0)
    records = module.generate_sparse(pipe, run, Watch()).records
    assert records
    assert all((record.gain is not None) == holds_gains for record in records)
