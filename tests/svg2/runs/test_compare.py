import json
import math

import numpy as np
import pytest
import torch

from svg2 import progress
from svg2.errors import Cancelled, ConfigError, RequestError
from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs.dense_sparse import (
    Progress,
    compare,
    generate_dense,
    generate_sparse,
    save_comparison,
)
from svg2.trace.file import load_trace, trace_bytes
from svg2.trace.metrics import psnr_db
from svg2.trace.records import RecordingPolicy
from svg2.trace.video import decode_mp4
from tests.svg2.models.pipelines import make_model_folder

PROMPT = "a red ball rolling to the right"
FIELDS = {
    *("model", "prompt", "negative_prompt", "seed", "height", "width", "num_frames"),
    *("num_inference_steps", "guidance_scale", "dtype", "tokens", "method", "config", "density"),
    *("density_run", "compute_density", "psnr_db", "psnr_per_frame", "ssim", "dense_seconds"),
    *("svg2_seconds", "speedup", "attention_speedup", "attention_share", "stage_seconds"),
    *("total_seconds", "peak_memory_bytes", "backend", "device", "versions", "commit"),
}


@pytest.fixture(scope="module")
def folder(tiny_pipeline_path, tmp_path_factory):
    return str(make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny"))


@pytest.fixture(scope="module")
def pipe(folder):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_pipeline(folder, "fp32", "cpu")
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def request_(folder):
    return Request(PROMPT, model=folder, dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def comparison(pipe, request_):
    return compare(request_, "svg2", pipe=pipe)


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
    assert result["speedup"] == result["dense_seconds"] / result["svg2_seconds"]
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


def test_keeping_everything_equals_dense(pipe, request_, comparison):
    config = model_spec(request_.model).config.replace(top_p=1.0)
    result = compare(request_, "svg2", config, pipe=pipe, dense=comparison.dense).result
    assert result["density"] == 1
    assert result["psnr_db"] is None or result["psnr_db"] >= 60


def test_a_seed_means_the_same_frames_and_another_seed_others(pipe, request_, comparison, folder):
    again = compare(request_, "svg2", pipe=pipe)
    np.testing.assert_array_equal(again.dense.frames, comparison.dense.frames)
    np.testing.assert_array_equal(again.sparse.frames, comparison.sparse.frames)
    other = generate_dense(pipe, Request(PROMPT, model=folder, seed=1))
    assert not np.array_equal(other.frames, comparison.dense.frames)


def test_a_dense_run_serves_again_for_the_same_request_only(pipe, request_, comparison, folder):
    result = compare(request_, "svg2-comp", pipe=pipe, dense=comparison.dense).result
    assert result["dense_reused"] is True
    assert result["dense_seconds"] == comparison.result["dense_seconds"]
    assert result["config"]["compensate"] is True
    assert result["compute_density"] > result["density"]
    with pytest.raises(RequestError):
        compare(Request(PROMPT, model=folder, seed=1), "svg2", pipe=pipe, dense=comparison.dense)


def test_the_trace_tells_the_run(comparison):
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
        place = (run.call == (record.step, record.layer, record.branch)).all(axis=1)
        density = record.q_sizes @ record.kept @ record.k_sizes / trace.n_tokens**2
        assert density == pytest.approx(run.density[place][0, record.head], abs=1e-6)
        assert record.P.sum(axis=1) == pytest.approx(1, abs=1e-2)
        assert 0 < record.recall <= 1


def test_recording_follows_the_policy_and_its_size(pipe, request_, comparison):
    config = model_spec(request_.model).config
    policy = RecordingPolicy(steps=(0, 2), layers=(1,), heads=(1, 9), branches=(1,))
    run = generate_sparse(pipe, request_, "svg2", config, policy=policy)
    assert [(r.step, r.layer, r.branch, r.head) for r in run.records] == [(2, 1, 1, 1)]
    assert run.note == ""
    np.testing.assert_array_equal(run.frames, comparison.sparse.frames)

    one = run.records[0].nbytes
    small = RecordingPolicy(max_bytes=8 * one)  # 18 records do not fit
    run = generate_sparse(pipe, request_, "svg2", config, policy=small)
    assert 0 < len(run.records) < 18
    assert sum(record.nbytes for record in run.records) <= 8 * one
    assert "to stay under" in run.note


def test_without_guidance_there_is_one_branch(pipe, folder):
    request = Request(PROMPT, model=folder, guidance_scale=1.0)
    result = compare(request, "svg2", pipe=pipe)
    assert set(result.sparse.stats.call[:, 2]) == {0}


def test_one_step_is_all_warm_up(pipe, folder, tmp_path):
    comparison = compare(Request(PROMPT, model=folder, num_inference_steps=1), "svg2", pipe=pipe)
    assert comparison.result["density"] is None
    assert comparison.result["density_run"] == 1
    assert comparison.result["psnr_db"] is None
    assert set(comparison.result["psnr_per_frame"]) == {None}
    save_comparison(comparison, tmp_path)
    assert load_trace(tmp_path / "trace.npz").records == ()


def test_progress_counts_steps_and_tells_the_time_left(pipe, request_):
    seen: list[Progress] = []
    compare(request_, "svg2", pipe=pipe, on_progress=seen.append)
    for run in ("dense", "svg2"):
        steps = [p.step for p in seen if p.run == run and p.stage == "denoise"]
        assert steps == [0, 1, 2, 3, 4]
    assert [p.stage for p in seen if p.run == "dense" and p.stage != "denoise"] == [
        *("warm up", "encode", "decode")
    ]
    assert seen[-1].stage == "measure"
    known = [p.eta_seconds for p in seen if p.stage == "denoise" and p.step]
    assert all(eta is not None and eta >= 0 for eta in known)
    assert known[-1] == 0


def test_previews_show_the_latent_and_change_nothing(pipe, request_, comparison, monkeypatch):
    monkeypatch.setattr(progress, "GLIMPSE_SECONDS", 0.0)
    seen: list[Progress] = []
    watched = compare(request_, "svg2", pipe=pipe, on_progress=seen.append, preview=True)
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


def test_without_being_asked_progress_carries_no_pictures(pipe, request_):
    seen: list[Progress] = []
    compare(request_, "svg2", pipe=pipe, on_progress=seen.append)
    assert all(p.preview is None and p.density == () for p in seen)


@pytest.mark.parametrize("in_run", ["dense", "svg2"])
def test_cancel_stops_within_a_step_and_the_next_run_is_as_ever(
    pipe, request_, comparison, in_run
):
    seen: list[Progress] = []

    def should_cancel():
        return bool(seen) and (seen[-1].run, seen[-1].step) == (in_run, 2)

    before = [block.attn1.processor for block in pipe.transformer.blocks]
    with pytest.raises(Cancelled) as caught:
        compare(request_, "svg2", pipe=pipe, on_progress=seen.append, should_cancel=should_cancel)
    assert seen[-1].step == 2
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before
    if in_run == "dense":
        assert caught.value.dense is None
    else:
        np.testing.assert_array_equal(caught.value.dense.frames, comparison.dense.frames)
    again = compare(request_, "svg2", pipe=pipe)
    np.testing.assert_array_equal(again.sparse.frames, comparison.sparse.frames)


def test_what_cannot_work_is_refused_before_anything_is_loaded(request_, folder):
    config = model_spec(folder).config
    with pytest.raises(ConfigError):
        compare(request_, "svg2", config.replace(num_k_clusters=97))
    with pytest.raises(ConfigError):
        compare(request_, "svg3", config)
    with pytest.raises(RequestError):
        compare(Request(PROMPT, model=folder, num_frames=4), "svg2", config)
    with pytest.raises(RequestError):
        compare(Request(PROMPT, model="nope"), "svg2", config)


def test_files_are_the_five_of_a_comparison(comparison, tmp_path):
    paths = save_comparison(comparison, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(paths)
    assert sorted(paths) == ["compare.mp4", "dense.mp4", "result.json", "svg2.mp4", "trace.npz"]
    result = json.loads(paths["result.json"].read_text())
    assert result == comparison.result
    assert not any(isinstance(v, float) and math.isnan(v) for v in result.values())
    assert len(decode_mp4(paths["compare.mp4"].read_bytes())) == 5
