"""The suites on small problems: what they record, not how fast anything is."""

import json
from dataclasses import replace

import pytest
import torch

from svg2.bench import cpu, e2e, gpu
from svg2.bench.blocks import BlockClock, block_counts, shortened
from svg2.bench.e2e import run_e2e_suite, speedup_limit
from svg2.bench.gpu import run_gpu_suite
from svg2.bench.harness import reason
from svg2.bench.report import tables
from svg2.errors import SuiteUnavailable
from tests.svg2.bench.workloads import SMALL


def test_cpu_suite_writes_every_field(tmp_path):
    messages: list[str] = []
    path = tmp_path / "cpu.json"
    record = cpu.run_cpu_suite(path, messages.append, workloads=[SMALL], rounds=3)
    assert json.loads(path.read_text()) == record
    assert messages
    for field in ("hardware", "versions", "commit", "date", "cpu_flags", "torch_threads"):
        assert field in record
    assert [(row["method"], row["density_asked"]) for row in record["attention"]] == [
        ("svg2", 0.3),
        ("svg2-comp", 0.3),
        ("svg2", 1.0),
        ("svg2-comp", 1.0),
    ]
    for row in record["attention"]:
        assert row["tokens"] == 192
        assert row["seed"] == 0
        assert row["density_asked"] <= row["density"] <= row["compute_density"]
    (steps,) = record["steps"]
    assert all(steps[f"{name}_ms"] > 0 for name in ("kmeans_q", "kmeans_k", "permute", "select"))


def test_cpu_ratios_are_those_of_the_times(tmp_path, monkeypatch):
    ms = {"dense": 100.0, "everything": 80.0, "svg2": 20.0, "svg2-comp": 25.0}

    def race(contestants, rounds):
        return {name: [ms.get(name, 1.0)] * rounds for name in contestants}

    monkeypatch.setattr(cpu, "time_in_turns", race)
    record = cpu.run_cpu_suite(tmp_path / "x", lambda _: None, workloads=[SMALL], rounds=2)
    plain, compensated = record["attention"][-2:]  # at density 1
    assert (plain["speedup"], plain["kernel_gain"], plain["sparsity_speedup"]) == (5, 1.25, 4)
    assert plain["speedup_quartiles"] == [5, 5]
    assert compensated["speedup"] == 4
    assert plain["flop_ratio"] == 1
    # 4 operations per pair and dimension: 2 heads of 16, 192² pairs, in 100 ms and in 20 ms.
    assert plain["dense_gflops"] == pytest.approx(0.04718592)
    assert plain["useful_gflops"] == pytest.approx(0.2359296)


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path):
    missing = tmp_path / "missing" / "cpu.json"
    missing.parent.write_text("a file, not a folder")
    with pytest.raises(OSError, match="missing"):
        cpu.run_cpu_suite(missing, lambda text: None, workloads=[], rounds=1)


def test_gpu_suite_runs_whole_at_toy_sizes_and_says_so(toy_gpu):
    record = toy_gpu
    assert record["toy"] is True
    assert record["left_out"] == []
    assert len(record["calls"]) == len(record["steps"]) == 2
    for row in (*record["attention"], *record["steps"], *record["calls"]):
        assert row["toy"] is True
        assert row["case"] == "toy"
    sparse = [row for row in record["attention"] if row["contestant"].startswith("svg2")]
    assert {row["contestant"] for row in sparse} == {"svg2", "svg2-comp"}
    for row in sparse:
        assert row["density_asked"] <= row["density"] <= row["compute_density"]
        assert row["ms_min"] <= row["ms"]
        assert 0 <= row["relative_error"] <= record["error_budget"]
    best = [row for row in record["attention"] if row["contestant"] == row["best_dense"]]
    assert len(best) == 3  # at each density of the two cases


def test_gpu_ratios_are_those_of_the_times(tmp_path, monkeypatch):
    ms = {"svg2": 2.0, "svg2-comp": 4.0}
    monkeypatch.setattr(
        gpu, "time_in_turns", lambda runs, *_: {name: [ms.get(name, 8.0)] for name in runs}
    )
    monkeypatch.setattr(gpu, "TOY_CASES", gpu.TOY_CASES[:1])
    record = run_gpu_suite(tmp_path / "gpu.json", lambda text: None, toy=True, rounds=1)
    for row in record["attention"]:
        speedup = {"svg2": 4.0, "svg2-comp": 2.0}.get(row["contestant"], 1.0)
        assert row["speedup"] == speedup
        assert row["share"] == pytest.approx(speedup * row["density"])
        # 4 operations per pair and dimension: 2 heads of 64, 192² pairs, in 8 ms if dense.
        tflops = speedup * row["density"] * 0.002359296
        assert row["useful_tflops"] == pytest.approx(tflops)
    sparse = {row["density"] for row in record["attention"] if row["contestant"] == "svg2"}
    assert min(sparse) < 1 == max(sparse)


def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch):
    right = gpu.cluster_attention
    monkeypatch.setattr(gpu, "cluster_attention", lambda *a, **k: 1.01 * right(*a, **k))
    monkeypatch.setattr(gpu, "TOY_CASES", gpu.TOY_CASES[:1])
    record = run_gpu_suite(tmp_path / "gpu.json", lambda text: None, toy=True, rounds=1)
    assert not any(row["contestant"].startswith("svg2") for row in record["attention"])
    assert {left["contestant"] for left in record["left_out"]} == {"svg2", "svg2-comp"}
    assert all("wrong result" in left["why"] for left in record["left_out"])


@pytest.mark.slow
def test_e2e_suite_runs_whole_at_toy_sizes_and_says_so(toy_e2e):
    assert toy_e2e["left_out"] == []
    runs = toy_e2e["runs"]
    assert [run["method"] for run in runs] == ["svg2", "svg2-comp", "svg2"]
    for run, branches in zip(runs, (2, 2, 1), strict=True):
        assert run["toy"] is True
        assert run["weights"] == "random"
        assert run["density"] == pytest.approx(run["density_asked"], abs=0.15)
        assert 0 < run["attention_share"] < 1
        assert run["warmup_fraction"] == 0.25
        assert all(ms > 0 for ms in run["stage_ms_per_forward"].values())
        # Of 4 steps the first is dense, the second starts cold, and two more are warm.
        sparse_ms = run["dense_forward_ms"] + run["cold_forward_ms"] + 2 * run["warm_forward_ms"]
        assert run["svg2_seconds"] == pytest.approx(branches * sparse_ms / 1e3)
        assert run["dense_seconds"] == pytest.approx(branches * run["dense_forward_ms"] * 4 / 1e3)


def test_a_run_is_put_together_from_its_forwards(tmp_path, monkeypatch):
    forwards_ms = iter([150.0, 100.0, 40.0])  # stock, dense, warm
    toy = replace(e2e.TOY_MODELS[0], settings=e2e.TOY_MODELS[0].settings[:1])

    def race(contestants, *_, **__):
        (forward,) = contestants.values()
        forward()
        return {name: [70.0] for name in contestants}

    def timed(bench, what):
        bench._forward()
        return next(forwards_ms), None

    monkeypatch.setattr(e2e, "TOY_MODELS", (toy,))
    monkeypatch.setattr(e2e, "time_in_turns", race)
    monkeypatch.setattr(e2e._Bench, "_timed", timed)
    monkeypatch.setattr(e2e, "_BISECTIONS", 1)
    monkeypatch.setattr(e2e, "speedup_limit", lambda *_: 2.0)
    (run,) = run_e2e_suite(tmp_path / "e2e.json", lambda text: None, toy=True)["runs"]
    # 4 steps of 2 forwards: 400 ms against 100 dense, 70 cold and twice 40 warm, times 2.
    assert run["dense_seconds"] == pytest.approx(0.8)
    assert run["svg2_seconds"] == pytest.approx(0.5)
    assert run["speedup"] == pytest.approx(1.6)
    # A run at the predicted speedup of 2 would take 0.4 of the 0.5 seconds.
    assert run["unexplained"] == pytest.approx(0.2)


def test_speedup_limit():
    assert speedup_limit(1.0, 0.0, 0.25) == 4
    assert speedup_limit(0.8, 0.5, 1.0) == 1  # no cheaper than dense
    assert speedup_limit(0.8, 0.5, 0.0) == pytest.approx(5 / 3)  # 0.6 of the time is left


@pytest.mark.parametrize(("name", "toy"), [("gpu.json", "toy_gpu"), ("e2e.json", "toy_e2e")])
def test_no_toy_number_reaches_the_readme(tmp_path, request, name, toy):
    record = request.getfixturevalue(toy)
    nothing = tables(tmp_path)
    (tmp_path / name).write_text(json.dumps(record))
    assert tables(tmp_path) == nothing
    (tmp_path / name).write_text(json.dumps(record | {"toy": False}))
    text = tables(tmp_path)
    assert text.count("not measured.") == nothing.count("not measured.") - 1
    assert "| toy |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("run_suite", [run_gpu_suite, run_e2e_suite])
def test_gpu_suites_need_a_gpu(tmp_path, run_suite):
    with pytest.raises(SuiteUnavailable, match="NVIDIA GPU"):
        run_suite(tmp_path / "gpu.json", lambda text: None)
    assert not any(tmp_path.iterdir())


def test_a_reason_is_one_short_line():
    assert reason(RuntimeError("out of\n  shared memory")) == "out of shared memory"
    assert reason(MemoryError()) == "MemoryError"
    assert len(reason("x" * 1000)) == 300


@pytest.mark.slow
def test_whole_forwards_are_put_together_from_blocks(tmp_path, monkeypatch):
    forward_ms, block_ms = 100.0, 30.0

    def race(contestants, rounds, *_):
        (name, forward), *_ = contestants.items()
        forward()
        return {name: [forward_ms] * rounds}

    monkeypatch.setattr(e2e, "time_in_turns", race)
    monkeypatch.setattr(
        e2e.BlockClock, "block_ms", lambda clock, _: dict.fromkeys(clock.counts, block_ms)
    )
    monkeypatch.setattr(e2e._Bench, "_backends", lambda _: {"native": 1.0})
    monkeypatch.setattr(e2e, "_BISECTIONS", 1)
    monkeypatch.setattr(e2e, "TOY_BLOCK_MODELS", e2e.TOY_BLOCK_MODELS[:1])
    path = tmp_path / "e2e.json"
    record = run_e2e_suite(path, lambda _: None, toy=True, rounds=1, blocks=2, facts={"x": 1})
    assert record["left_out"] == []
    assert [row["method"] for row in record["runs"]] == ["svg2", "svg2-routed"]
    for row in record["runs"]:
        assert (row["blocks_made"], row["blocks_of_model"], row["x"]) == (2, 3, 1)
        for what in ("stock", "dense", "cold", "warm"):
            assert row[f"{what}_forward_ms"] == forward_ms + block_ms  # one block more
            assert row["block_ms"][what] == {"num_layers": block_ms}
    assert record["runs"][1]["config"]["density"] == 0.3
    assert record["runs"][1]["density"] <= 0.3 + 0.05
    # What was measured before is kept and not measured again.
    again = run_e2e_suite(
        path, lambda _: None, toy=True, rounds=1, blocks=2, measured=record["runs"][:1]
    )
    assert again["runs"][0] == record["runs"][0]
    assert [row["method"] for row in again["runs"]] == ["svg2", "svg2-routed"]
    assert "x" not in again["runs"][1]


def test_a_block_clock_times_each_block_of_each_kind():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
    model.single_transformer_blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    counts = {"num_layers": 5, "num_single_layers": 1}
    clock = BlockClock(model, counts, torch.device("cpu"))
    assert clock.missing == {"num_layers": 3, "num_single_layers": 0}
    with clock.running():
        for block in (*model.blocks, *model.single_transformer_blocks):
            block(torch.zeros(1, 4))
    found = clock.block_ms(1)
    assert found.keys() == counts.keys()
    assert all(ms > 0 for ms in found.values())
    assert not any(block._forward_hooks for block in model.blocks)


@pytest.mark.parametrize("model", e2e.BLOCK_MODELS, ids=lambda model: model.name)
def test_blocks_are_those_of_the_published_models(model):
    counts = block_counts(model.transformer, model.config)
    assert counts in ({"num_layers": 40}, {"num_layers": 20, "num_single_layers": 40})
    short = shortened(model.transformer, model.config, 2)
    assert {short[name] for name in counts} == {2}
    paper, routed = model.settings
    assert (paper.density, paper.warmup_fraction) in ((0.295, 0.3), (0.255, 0.1))
    assert (routed.method, routed.density, routed.warmup_fraction) == ("svg2-routed", 0.1, 0.1)
