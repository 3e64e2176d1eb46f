"""Comparing a dense and a sparse run: result, trace, progress, cancelling and files."""

import json
import math

import numpy as np
import pytest
import torch

from kernels import ImplUnavailable
from svg2.errors import Cancelled, ConfigError, RequestError
from svg2.models.finding import model_spec
from svg2.models.request import Request
from svg2.runs import progress
from svg2.runs.batch import PromptFolders, compare_all
from svg2.runs.call import load_for
from svg2.runs.compare import compare, save_comparison
from svg2.runs.dense_sparse import generate_dense, generate_sparse
from svg2.runs.distributed import Processes
from svg2.runs.progress import Progress, Watch
from svg2.runs.run import Run
from svg2.runs.sweep import SweepPlan, sweep
from svg2.runs.sweep_prompts import Grid, sweep_prompts
from svg2.trace.file import load_trace, trace_bytes
from svg2.trace.metrics import psnr_db
from svg2.trace.records import RecordingPolicy
from svg2.trace.video import decode_mp4
from tests.svg2.runs.conftest import PROMPT

FIELDS = {
    *("model", "prompt", "negative_prompt", "seed", "height", "width", "num_frames"),
    *("num_inference_steps", "guidance_scale", "dtype", "tokens", "method", "config", "density"),
    *("density_run", "compute_density", "psnr_db", "psnr_per_frame", "ssim", "dense_seconds"),
    *("svg2_seconds", "speedup", "attention_speedup", "attention_share", "stage_seconds"),
    *("total_seconds", "peak_memory_bytes", "backend", "device", "versions", "commit"),
}


@pytest.fixture(scope="module")
def folder(model):
    return model


def run_of(folder, settings=None, **changes):
    return Run.of(Request(PROMPT, model=folder, **changes), settings=settings)


@pytest.fixture(scope="module")
def comparison(pipe, run):
    return compare(run, pipe)


def test_result_has_every_field_and_is_json(comparison):
    result = comparison.result
    assert set(result) >= FIELDS
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result["stage_seconds"]) >= {"kmeans", "permute", "select", "attention", "other"}
    assert set(result["total_seconds"]) == {"encode", "denoise", "decode"}
    assert result["tokens"] == 96
    assert result["dtype"] == "fp32"
    assert result["backend"] == {"dense": "native", "attention": "reference"}
    assert result["config"]["num_k_clusters"] == 12


def test_result_numbers_belong_together(comparison):
    result, dense, sparse = comparison.result, comparison.dense, comparison.sparse
    assert dense.frames.shape == sparse.frames.shape == (5, 32, 64, 3)
    assert result["psnr_db"] == psnr_db(dense.frames, sparse.frames)
    assert len(result["psnr_per_frame"]) == 5
    times = result["step_seconds"]
    assert [len(steps) for steps in times.values()] == [4, 4]
    steps = sum(times["dense"])  # a busy machine may stop between two of these short steps
    assert result["dense_seconds"] / 2 < steps <= result["dense_seconds"] + 1e-6
    assert result["flop_ratio"] == 1 / result["compute_density"]
    assert 0 < result["density"] < 1
    warmup = 1 / 4  # of the steps, and a dense call counts as 1
    assert result["density_run"] == pytest.approx(warmup + (1 - warmup) * result["density"])
    attention = result["svg2_attention_seconds"]
    assert attention == pytest.approx(
        sum(v for name, v in result["stage_seconds"].items() if name != "other")
    )
    assert attention < result["svg2_seconds"]
    assert result["dense_attention_seconds"] < result["dense_seconds"]


def test_split_into_encode_denoise_decode_is_the_pipelines_own_output(pipe, comparison):
    request, spec = comparison.dense.request, model_spec(comparison.dense.request.model)
    frames = pipe(
        PROMPT,
        negative_prompt="",
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        max_sequence_length=spec.max_sequence_length,
        generator=torch.Generator().manual_seed(0),
    ).frames[0]
    np.testing.assert_array_equal(comparison.dense.frames, (frames * 255).round().astype(np.uint8))


def test_keeping_everything_equals_dense(pipe, run, comparison):
    result = compare(run.with_settings(top_p=1.0), pipe, dense=comparison.dense).result
    assert result["density"] == 1
    assert result["psnr_db"] is None or result["psnr_db"] >= 60


def test_a_seed_repeats_its_frames_and_another_seed_does_not(pipe, run, comparison, folder):
    again = compare(run, pipe)
    np.testing.assert_array_equal(again.dense.frames, comparison.dense.frames)
    np.testing.assert_array_equal(again.sparse.frames, comparison.sparse.frames)
    other = generate_dense(pipe, run_of(folder, seed=1))
    assert not np.array_equal(other.frames, comparison.dense.frames)


def test_a_dense_run_is_reused_for_the_same_request_only(pipe, run, comparison, folder):
    result = compare(run.with_settings(method="svg2-comp"), pipe, dense=comparison.dense).result
    assert result["dense_reused"] is True
    assert result["dense_seconds"] == comparison.result["dense_seconds"]
    assert result["config"]["method"] == result["method"] == "svg2-comp"
    assert result["compute_density"] > result["density"]
    with pytest.raises(RequestError):
        compare(run_of(folder, seed=1), pipe, dense=comparison.dense)


def test_the_trace_holds_the_run(comparison):
    trace = load_trace(trace_bytes(comparison.trace))
    stats, result = comparison.sparse.stats, comparison.result
    assert trace.grid == (3, 4, 8)
    assert trace.n_tokens == result["tokens"]
    assert trace.request["prompt"] == PROMPT
    assert trace.request["fps"] == 8
    assert trace.provenance["impl"] == "reference"
    assert decode_mp4(trace.dense_mp4).shape == comparison.dense.frames.shape
    (run,) = trace.runs
    assert run.result == result
    np.testing.assert_array_equal(run.call, stats.call)
    assert run.density.mean() == pytest.approx(result["density"], abs=1e-6)
    # 3 sparse steps, all of them recorded, 3 layers, 2 heads, the conditional branch
    assert len(trace.records) == 3 * 3 * 2
    for record in trace.records:
        is_call = (run.call == (record.step, record.layer, record.branch)).all(axis=1)
        density = record.q_sizes @ record.kept @ record.k_sizes / trace.n_tokens**2
        assert density == pytest.approx(run.density[is_call][0, record.head], abs=1e-6)
        assert record.P.sum(axis=1) == pytest.approx(1, abs=1e-2)
        assert 0 < record.recall <= 1


def test_recording_follows_the_policy_and_its_size(pipe, run, comparison):
    policy = RecordingPolicy(steps=(0, 2), layers=(1,), heads=(1, 9), branches=(1,))
    sparse = generate_sparse(pipe, run, policy=policy)
    assert [(r.step, r.layer, r.branch, r.head) for r in sparse.records] == [(2, 1, 1, 1)]
    assert sparse.note == ""
    np.testing.assert_array_equal(sparse.frames, comparison.sparse.frames)

    one = sparse.records[0].nbytes
    small = RecordingPolicy(max_bytes=8 * one)  # 18 records do not fit
    sparse = generate_sparse(pipe, run, policy=small)
    assert 0 < len(sparse.records) < 18
    assert sum(record.nbytes for record in sparse.records) <= 8 * one
    assert "to stay under" in sparse.note


def test_without_guidance_there_is_one_branch(pipe, folder):
    result = compare(run_of(folder, guidance_scale=1.0), pipe)
    assert set(result.sparse.stats.call[:, 2]) == {0}


def test_one_step_is_all_warm_up(pipe, folder, tmp_path):
    comparison = compare(run_of(folder, num_inference_steps=1), pipe)
    assert comparison.result["density"] is None
    assert comparison.result["density_run"] == 1
    assert comparison.result["psnr_db"] is None
    assert set(comparison.result["psnr_per_frame"]) == {None}
    save_comparison(comparison, tmp_path)
    assert load_trace(tmp_path / "trace.npz").records == ()


def test_progress_counts_steps_and_estimates_the_time_left(pipe, run):
    seen: list[Progress] = []
    compare(run, pipe, watch=Watch(seen.append))
    for run in ("dense", "svg2"):
        steps = [p.step for p in seen if p.run == run and p.stage == "denoise"]
        assert steps == [0, 1, 2, 3, 4]
    assert [p.stage for p in seen if p.run == "dense" and p.stage != "denoise"] == [
        *("warm up", "encode", "decode")
    ]
    turns = [(p.run, p.step) for p in seen if p.stage == "denoise" and p.step]
    assert turns == [
        *(("dense", 1), ("svg2", 1), ("svg2", 2), ("dense", 2)),
        *(("dense", 3), ("svg2", 3), ("svg2", 4), ("dense", 4)),
    ]
    last = [p for p in seen if p.stage == "denoise"][-1]
    assert (last.beside.run, last.beside.step) == ("svg2", 4)
    assert last.seconds > last.beside.seconds / 100 > 0
    assert seen[-1].stage == "measure"
    known = [p.eta_seconds for p in seen if p.stage == "denoise" and p.step]
    assert all(eta is not None and eta >= 0 for eta in known)
    assert known[-1] == 0


def test_previews_show_the_latent_and_leave_the_frames_unchanged(
    pipe, run, comparison, monkeypatch
):
    monkeypatch.setattr(progress, "GLIMPSE_SECONDS", 0.0)
    seen: list[Progress] = []
    watched = compare(run, pipe, watch=Watch(seen.append, preview=True))
    np.testing.assert_array_equal(watched.sparse.frames, comparison.sparse.frames)
    steps = [p for p in seen if p.run == "svg2" and p.stage == "denoise" and p.step]
    num_steps = watched.dense.request.num_inference_steps
    for step in steps:
        assert step.preview is not None
        assert step.preview.shape == watched.dense.frames.shape[1:]
        assert len(step.density) == step.step
    assert len(steps) == num_steps
    assert steps[0].density == (1.0,)  # warm-up is dense
    assert steps[-1].density[-1] < 1
    per_step = [p.preview for p in steps]
    assert not np.array_equal(per_step[0], per_step[-1])


def test_progress_has_no_previews_by_default(pipe, run):
    seen: list[Progress] = []
    compare(run, pipe, watch=Watch(seen.append))
    assert all(p.preview is None and p.density == () for p in seen)


@pytest.mark.parametrize("in_turns", [True, False])
@pytest.mark.parametrize("in_run", ["dense", "svg2"])
def test_cancel_stops_within_a_step_and_leaves_the_next_run_unchanged(
    pipe, run, comparison, in_run, in_turns
):
    seen: list[Progress] = []

    def should_cancel():
        return bool(seen) and (seen[-1].run, seen[-1].step) == (in_run, 2)

    before = [block.attn1.processor for block in pipe.transformer.blocks]
    with pytest.raises(Cancelled) as caught:
        compare(run, pipe, watch=Watch(seen.append, should_cancel), in_turns=in_turns)
    assert seen[-1].step == 2
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before
    if in_run == "dense" or in_turns:
        assert caught.value.dense is None
    else:
        np.testing.assert_array_equal(caught.value.dense.frames, comparison.dense.frames)
    again = compare(run, pipe)
    np.testing.assert_array_equal(again.sparse.frames, comparison.sparse.frames)


def test_invalid_requests_and_settings_are_refused_when_a_run_is_made(folder):
    with pytest.raises(ConfigError, match="num_k_clusters is 97"):
        run_of(folder, {"num_k_clusters": 97})
    with pytest.raises(ConfigError, match="Unknown method 'svg3'"):
        run_of(folder, {"method": "svg3"})
    with pytest.raises(ConfigError, match="Unknown preset"):
        Run.of(Request(PROMPT, model=folder), preset="magic")
    with pytest.raises(RequestError, match="num_frames"):
        run_of(folder, num_frames=4)
    with pytest.raises(RequestError, match="Unknown model"):
        run_of("nope")


def test_a_run_knows_its_method_grid_and_tokens(run):
    assert (run.grid, run.n_tokens) == ((3, 4, 8), 96)
    assert run.method.name == run.config.method == "svg2"
    other = run.with_settings(method="svg2-comp", top_p=0.5)
    assert (other.method.compensates, other.config.top_p, other.request) == (
        True,
        0.5,
        run.request,
    )
    with pytest.raises(ConfigError, match="num_q_clusters is 97"):
        run.with_settings(num_q_clusters=97)
    assert run.with_prompt("the floor").request.prompt == "the floor"
    with pytest.raises(RequestError, match="prompt is empty"):
        run.with_prompt(" ")


def test_files_are_the_five_of_a_comparison(comparison, tmp_path):
    paths = save_comparison(comparison, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(paths)
    assert sorted(paths) == ["compare.mp4", "dense.mp4", "result.json", "svg2.mp4", "trace.npz"]
    result = json.loads(paths["result.json"].read_text())
    assert result == comparison.result
    assert not any(isinstance(v, float) and math.isnan(v) for v in result.values())
    assert len(decode_mp4(paths["compare.mp4"].read_bytes())) == 5


def refusing_to_generate(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setattr(f"{module}.generate_dense", lambda *_: pytest.fail("it generates"))


def test_kernels_that_cannot_run_are_refused_before_the_dense_run(
    folder, pipe, run, tmp_path, monkeypatch
):
    modules = ("svg2.runs.compare", "svg2.runs.sweep", "svg2.runs.sweep_prompts")
    refusing_to_generate(monkeypatch, *modules)
    fused = run.with_settings(impl="fused")
    plan = SweepPlan.of(fused, ["svg2"], [0.5])
    for given in (pipe, None):
        with pytest.raises(ConfigError, match="fused"):
            compare(fused, given)
        with pytest.raises(ConfigError, match="fused"):
            sweep(plan, tmp_path, given)
        with pytest.raises(ConfigError, match="fused"):
            sweep_prompts(Grid(fused, ((PROMPT, 0),), ("svg2",), (0.5,)), tmp_path, given)
    with pytest.raises(ConfigError, match="fused"):
        compare_all(PromptFolders(tmp_path, [PROMPT], fused), Processes(0, 1, 0))
    assert not any(tmp_path.iterdir())


def test_no_model_is_loaded_for_kernels_that_cannot_run(run, monkeypatch):
    monkeypatch.setattr("svg2.runs.call.load_pipeline", lambda *_: pytest.fail("it loads"))
    with pytest.raises(ConfigError, match="fused"):
        load_for(run.with_settings(impl="fused"), Watch())


def test_a_cancel_during_the_load_stops_the_run(run, monkeypatch):
    loaded = []
    monkeypatch.setattr("svg2.runs.call.load_pipeline", lambda *_: loaded.append(1))
    with pytest.raises(Cancelled):
        compare(run, watch=Watch(should_cancel=lambda: bool(loaded)))


def test_attention_that_is_not_stock_is_refused_in_words(pipe, run, monkeypatch):
    attn = pipe.transformer.blocks[1].attn1
    monkeypatch.setattr(attn, "processor", type("SageProcessor", (), {})())
    for generate in (compare, lambda run, pipe: generate_sparse(pipe, run)):
        with pytest.raises(RequestError, match=r"SVG2 does not support .* SageProcessor"):
            generate(run, pipe)
    with pytest.raises(RequestError, match="SageProcessor"):
        generate_dense(pipe, run)


def test_kernels_that_compute_wrongly_here_are_refused_in_a_sentence(pipe, run, monkeypatch):
    def wrong(*_, **__):
        raise ImplUnavailable("The fused kernels give wrong attention. Set impl to reference.")

    monkeypatch.setattr("svg2.method.call.cluster_attention", wrong)
    with pytest.raises(ConfigError, match="Set impl to reference"):
        compare(run, pipe)
    monkeypatch.undo()
    assert compare(run, pipe).sparse.stats.sparse_calls > 0  # the pipeline is as it was
