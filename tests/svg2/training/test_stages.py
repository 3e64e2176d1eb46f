"""All stages of training run, resume and ship a pipeline that diffusers loads."""

import json

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from svg2.training.__main__ import main
from svg2.training.data import open_clips
from svg2.training.dit import Denoiser, _frame_positions
from svg2.training.muon import orthogonalise


@pytest.mark.slow
def test_stages_from_clips_to_a_pipeline(tmp_path):
    def stage(name: str, *args: str) -> None:
        main([name, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), *args])

    stage("render", "--clips", "2")
    assert open_clips(tmp_path / "work" / "clips").ready == 2
    stage("render", "--clips", "2")  # nothing left to do
    stage("vae", "--minutes", "0.02")
    stage("dit", "--minutes", "0.03")
    stage("dit", "--minutes", "0.06")  # resumes
    stage("decoder", "--minutes", "0.02")
    stage("ship")
    (tmp_path / "work" / "dit.pt").unlink()
    stage("dit", "--minutes", "0.02", "--start", str(tmp_path / "out"))
    pipe = WanPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    lab = json.loads((tmp_path / "out" / "lab.json").read_text())
    frames = pipe(
        "a red ball",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=lab["guidance_scale"],
        max_sequence_length=lab["max_sequence_length"],
        generator=torch.Generator().manual_seed(0),
    ).frames
    assert frames.shape == (1, 5, 32, 32, 3)
    assert np.isfinite(frames).all()


def test_a_subset_of_frames_gets_the_positions_of_its_times():
    transformer = Denoiser().transformer
    whole = torch.zeros(1, 16, 9, 2, 3)
    cos, sin = transformer.rope(whole)
    frames = torch.tensor([1, 4, 8])
    with _frame_positions(transformer, frames):
        some_cos, some_sin = transformer.rope(whole[:, :, :3])
    assert torch.equal(some_cos, cos.unflatten(1, (9, 6))[:, frames].flatten(1, 2))
    assert torch.equal(some_sin, sin.unflatten(1, (9, 6))[:, frames].flatten(1, 2))
    assert torch.equal(transformer.rope(whole)[0], cos)


def test_long_prompts_pad_with_zeros_as_the_pipeline_does():
    model = Denoiser()
    short = model.encode(["a red ball", "a ball"], 8)
    assert short.shape == (2, 8, 96)
    assert (short[1, 3:] == 0).all()
    assert (short[1, :3] != 0).any(-1).all()


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 6, 20), (3, 20, 6)])
def test_orthogonalised_updates_have_singular_values_near_one(shape):
    update = orthogonalise(torch.randn(shape, generator=torch.manual_seed(0)))
    values = torch.linalg.svdvals(update)
    assert update.shape == shape
    assert (values > 0.3).all()
    assert (values < 1.4).all()
