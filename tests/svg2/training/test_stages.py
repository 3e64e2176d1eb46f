"""All stages of training run, resume and ship a pipeline that diffusers loads."""

import json

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from svg2.training.__main__ import main
from svg2.training.data import open_clips
from svg2.training.dit import Denoiser, Places, _positions
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


def test_a_subset_of_tokens_gets_the_positions_of_its_places():
    transformer = Denoiser().transformer
    whole = torch.zeros(1, 16, 9, 4, 5)
    tables = transformer.rope(whole)
    places = Places(torch.tensor([1, 4, 8]), torch.tensor([1, 3]), torch.tensor([0, 2, 4]))
    numbers = torch.arange(9 * 4 * 5).view(1, 1, 9, 4, 5)
    wanted = places.of(numbers).flatten()
    with _positions(transformer, places):
        some = transformer.rope(places.of(whole))
    for table, part in zip(tables, some, strict=True):
        assert torch.equal(part, table[:, wanted])
    assert torch.equal(transformer.rope(whole)[0], tables[0])


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
