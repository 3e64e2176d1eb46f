"""Previews never fail or slow down a run."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.video_processor import VideoProcessor

from svg2.hooks.stats import StatsRecorder
from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs import progress
from svg2.runs.dense_sparse import generate_dense, generate_sparse
from svg2.runs.progress import Watch
from svg2.runs.run import Run
from svg2.trace.file import load_trace
from svg2.trace.video import decode_mp4
from tests.svg2.pipelines import make_model_folder
from viz.payload import latent_frames


@pytest.fixture(scope="module")
def run(tiny_pipeline_path, tmp_path_factory):
    folder = make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny")
    return Run.of(Request("a red ball", model=str(folder), dtype="fp32", device="cpu"))


@pytest.fixture(scope="module")
def pipe(run):
    return load_pipeline(model_spec(run.request.model), "fp32", "cpu")


@pytest.fixture
def at_every_step(monkeypatch):
    monkeypatch.setattr(progress, "GLIMPSE_SECONDS", 0.0)


def denoising(seen):
    return [p for p in seen if p.stage == "denoise" and p.step]


def test_a_failing_preview_ends_no_run_and_is_logged_once(
    pipe, run, at_every_step, monkeypatch, caplog
):
    plain = generate_sparse(pipe, run)
    tries = []

    def decode(*arguments, **names):
        tries.append(1)
        raise RuntimeError("the decoder wants a whole clip")

    monkeypatch.setattr(progress, "_preview", decode)
    seen = []
    watch = Watch(seen.append, preview=True)
    with caplog.at_level(logging.WARNING, logger="svg2"):
        generate_dense(pipe, run, watch)
        sparse = generate_sparse(pipe, run, watch)
    np.testing.assert_array_equal(sparse.frames, plain.frames)
    assert len(tries) == len(caplog.records) == 1
    assert "preview" in caplog.text
    assert "the decoder wants a whole clip" in caplog.text
    steps = denoising(seen)
    assert len(steps) == 2 * run.request.num_inference_steps
    assert all(p.preview is None for p in steps)
    assert steps[-1].density == pytest.approx(sparse.stats.density_table().mean(axis=0))


def test_a_preview_takes_no_snapshot_of_the_statistics(pipe, run, at_every_step, monkeypatch):
    snapshots = []
    snapshot = StatsRecorder.snapshot

    def counted(self):
        snapshots.append(1)
        return snapshot(self)

    monkeypatch.setattr(StatsRecorder, "snapshot", counted)
    seen = []
    generate_sparse(pipe, run, Watch(seen.append, preview=True))
    steps = denoising(seen)
    assert [len(p.density) for p in steps] == [1, 2, 3, 4]
    assert all(p.preview is not None for p in steps)
    assert len(snapshots) == 1, "the one after the run"


def test_a_preview_has_the_colours_of_the_clip():
    folder = Path(__file__).parents[3] / "assets"
    vae = AutoencoderKLWan.from_pretrained(folder / "models" / "builtin", subfolder="vae")
    pipe = SimpleNamespace(vae=vae, video_processor=VideoProcessor(vae_scale_factor=8))
    clip = decode_mp4(load_trace(folder / "traces" / "red-ball.npz").dense_mp4)
    frames = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        latents = (vae.encode(frames).latent_dist.mode() - mean) / std
    picture = progress._preview(pipe, latents)
    middle = latents.shape[2] // 2
    shown = clip[latent_frames(len(clip), latents.shape[2])[middle][1] - 1]
    assert psnr(picture, shown) > 25  # of this latent frame alone 12 to 15 dB
    first = progress._preview(pipe, latents[:, :, :1])
    assert psnr(first, clip[0]) > 25


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))
