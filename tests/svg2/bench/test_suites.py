"""The op-level benchmark on a small problem: what it records, not how fast it is."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from svg2.bench.baselines import flex_padded
from svg2.bench.cpu import run_cpu_suite
from svg2.bench.e2e import run_e2e_suite
from svg2.bench.exact import ExactRows
from svg2.bench.gpu import run_gpu_suite
from svg2.bench.race import race
from svg2.bench.workload import (
    Workload,
    compute_density_of,
    density_of,
    make_clustered,
    select_density,
)
from svg2.errors import SuiteUnavailable

SMALL = Workload(
    (3, 8, 8), num_q_clusters=6, num_k_clusters=12, densities=(0.3, 1.0), heads=2, head_dim=16
)


def test_suite_writes_every_field(tmp_path):
    messages: list[str] = []
    path = tmp_path / "cpu.json"
    record = run_cpu_suite(path, messages.append, workloads=[SMALL], rounds=3)
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
        assert row["speedup"] == pytest.approx(row["kernel_gain"] * row["sparsity_speedup"])
        assert row["speedup"] == pytest.approx(row["dense_ms"] / row["sparse_ms"])
        assert row["flop_ratio"] == pytest.approx(1 / row["compute_density"])
    (steps,) = record["steps"]
    assert all(steps[f"{name}_ms"] > 0 for name in ("kmeans_q", "kmeans_k", "permute", "select"))


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path):
    missing = tmp_path / "missing" / "cpu.json"
    missing.parent.write_text("a file, not a folder")
    with pytest.raises(OSError, match="missing"):
        run_cpu_suite(missing, lambda text: None, workloads=[], rounds=1)


def test_density_is_met_from_above():
    clustered = make_clustered(SMALL)
    for asked in (0.2, 0.5):
        top_p, kept, density = select_density(clustered, asked)
        assert 0 < top_p < 1
        # One more cluster for one query cluster is the least that can be added.
        assert asked <= density < asked + 0.2
        assert density == density_of(clustered, kept)
        virtual = compute_density_of(clustered, kept) - density
        assert 0 < virtual <= SMALL.num_k_clusters / SMALL.tokens
    assert select_density(clustered, 1.0)[2] == 1.0


def test_workload_is_ragged_and_repeats():
    clustered, again = make_clustered(SMALL), make_clustered(SMALL)
    assert clustered.k_clusters.sizes.unique().numel() > 3
    assert torch.equal(clustered.k_sorted, again.k_sorted)
    assert torch.equal(clustered.compensation.v_centroids, again.compensation.v_centroids)


def test_race_interleaves():
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = race(runs, rounds=3)
    assert order == ["a", "b"] * 5
    assert {name: len(ms) for name, ms in times.items()} == {"a": 3, "b": 3}


WITH_TEXT = Workload(
    (3, 8, 8),
    num_q_clusters=6,
    num_k_clusters=12,
    densities=(0.3,),
    heads=2,
    head_dim=16,
    text_tokens=5,
)


def test_gpu_suite_runs_whole_at_toy_sizes_and_says_so(tmp_path):
    path = tmp_path / "gpu.json"
    record = run_gpu_suite(path, lambda text: None, toy=True, rounds=3)
    assert json.loads(path.read_text()) == record
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
    assert all(row["share"] == pytest.approx(1) for row in best)


def test_e2e_suite_runs_whole_at_toy_sizes_and_says_so(tmp_path):
    path = tmp_path / "e2e.json"
    record = run_e2e_suite(path, lambda text: None, toy=True, rounds=2)
    assert json.loads(path.read_text()) == record
    assert record["left_out"] == []
    assert [run["method"] for run in record["runs"]] == ["svg2", "svg2-comp", "svg2"]
    for run in record["runs"]:
        assert run["toy"] is True
        assert run["weights"] == "random"
        assert run["density"] == pytest.approx(run["density_asked"], abs=0.15)
        assert 0 < run["attention_share"] < 1
        assert run["warmup_fraction"] == 0.25
        assert all(ms > 0 for ms in run["stage_ms_per_forward"].values())
        assert run["speedup"] == pytest.approx(run["dense_seconds"] / run["svg2_seconds"])
        predicted_seconds = run["dense_seconds"] / run["predicted"]
        missing_seconds = run["svg2_seconds"] - predicted_seconds
        assert run["unexplained"] == pytest.approx(missing_seconds / run["svg2_seconds"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("run_suite", [run_gpu_suite, run_e2e_suite])
def test_gpu_suites_need_a_gpu(tmp_path, run_suite):
    with pytest.raises(SuiteUnavailable, match="NVIDIA GPU"):
        run_suite(tmp_path / "gpu.json", lambda text: None)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("workload", [SMALL, WITH_TEXT])
def test_baselines_are_held_to_the_same_rows(workload):
    clustered = make_clustered(workload)
    _, kept, density = select_density(clustered, 0.3)
    assert 0.3 <= density < 0.6
    expected = ExactRows(clustered, kept, has_virtual=False)
    right = flex_padded(clustered, kept)()
    assert expected.error_of(right) < 1e-5
    assert expected.error_of(1.01 * right) > 5e-3
    right[0, 0, 0, 0] = torch.nan
    assert not expected.error_of(right) < 1e-5


def test_text_sees_all_and_is_seen_by_all():
    clustered = make_clustered(WITH_TEXT)
    _, kept, _ = select_density(clustered, 0.3)
    assert kept.shape[-2:] == (7, 13)
    assert kept[..., -1, :].all()
    assert kept[..., -1].all()
    assert clustered.q_offsets[..., -1].tolist() == [[197, 197]]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_tuning_runs_whole_at_toy_sizes_and_says_so(tmp_path):
    path = tmp_path / "tune.json"
    command = [sys.executable, "-m", "svg2.bench.tune", "--toy", "--out", path]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert record["left_out"] == []
    assert record["toy"] is True
    kinds = [(row["op"], row.get("compensate"), row["name"]) for row in record["rows"]]
    assert kinds == [
        *(("attention", False, name) for name in ("shipped", "chunk 8")),
        *(("attention", True, name) for name in ("shipped", "chunk 8")),
        *(("kmeans", None, name) for name in ("shipped", "32×16")),
    ]
    for row in record["rows"]:
        assert row["toy"] is True
        assert row["ms"] > 0
        assert row["name"] != "shipped" or row["over_shipped"] == 1
