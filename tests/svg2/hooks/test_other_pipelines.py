"""Pipelines that step copies of their scheduler, share a transformer, or are modular."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.wan import WanModularPipeline
from PIL import Image

import svg2
from tests.svg2 import tiny_families

CONFIG = svg2.SVG2Config(
    top_p=0.6,
    num_q_clusters=6,
    num_k_clusters=12,
    warmup_fraction=0.25,
    kmeans_iters_init=3,
    kmeans_iters_step=1,
    min_keep_ratio=0.0,
)
SIZE = {"height": 32, "width": 48}
LAYERS, BRANCHES = 3, 2


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def parts():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_families._wan_parts()


@pytest.fixture
def wan(parts):
    return quiet(tiny_families.wan_t2v())


@pytest.fixture
def forcing(parts):
    transformer = tiny_families._wan_transformer(
        diffusers.SkyReelsV2Transformer3DModel, inject_sample_info=False
    )
    kind = diffusers.SkyReelsV2DiffusionForcingPipeline
    return quiet(kind(**parts, transformer=transformer))


def generate(pipe, num_steps=4, **given):
    return pipe(
        prompt="a red ball",
        **SIZE,
        num_inference_steps=num_steps,
        guidance_scale=3.0,
        max_sequence_length=16,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **given,
    ).frames


def sparse_steps(run):
    """Steps with sparse calls, and the number of sparse and dense calls."""
    return (
        sorted(set(run.stats.call[:, 0].tolist())),
        run.stats.sparse_calls,
        run.stats.dense_calls,
    )


@pytest.mark.parametrize(
    ("given", "num_steps", "passes"),
    [
        ({"num_frames": 9}, 4, 1),
        ({"num_frames": 17, "base_num_frames": 9, "overlap_history": 5}, 4, 3),  # a long video
        ({"num_frames": 9, "ar_step": 1, "causal_block_size": 1}, 6, 1),  # frame after frame
    ],
    ids=["short", "long", "asynchronous"],
)
def test_diffusion_forcing_leaves_its_warm_up(forcing, given, num_steps, passes):
    dense = generate(forcing, **given)
    with svg2.enable(forcing, CONFIG) as run:
        for _ in range(2):
            generate(forcing, **given)
            warm_up = -(-num_steps // 4)
            per_step = LAYERS * BRANCHES * passes
            assert sparse_steps(run) == (
                list(range(warm_up, num_steps)),
                (num_steps - warm_up) * per_step,
                warm_up * per_step,
            )
            assert run.stats.num_steps == num_steps
    assert torch.equal(generate(forcing, **given), dense)
    with svg2.enable(forcing, CONFIG.replace(top_p=1.0)):
        torch.testing.assert_close(generate(forcing, **given), dense, rtol=1e-3, atol=1e-3)


def test_a_causal_mask_is_refused_before_the_warm_up(forcing):
    with svg2.enable(forcing, CONFIG) as run, pytest.raises(RuntimeError, match="no mask"):
        generate(forcing, num_frames=9, ar_step=2, causal_block_size=3)
    assert run.stats.dense_calls == 0


def test_a_modular_pipeline_is_followed(wan):
    modular = WanModularPipeline()
    names = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
    modular.update_components(**{name: wan.components[name] for name in names})
    with svg2.enable(modular, CONFIG) as run:
        for num_steps in (4, 8):
            modular(prompt="a ball", **SIZE, num_frames=9, num_inference_steps=num_steps)
            warm_up = num_steps // 4
            each = LAYERS * BRANCHES
            expected = list(range(warm_up, num_steps)), (num_steps - warm_up) * each
            assert sparse_steps(run) == (*expected, warm_up * each)
            assert set(run.stats.call[:, 2].tolist()) == {0, 1}
    assert "processor" not in vars(wan.transformer.blocks[0].attn1)["_modules"]


@pytest.mark.parametrize("ran_before", [0, pytest.param(2, marks=pytest.mark.nightly), 12])
def test_a_pipeline_made_by_from_pipe_has_its_own_number_of_steps(wan, ran_before):
    video = [Image.new("RGB", (48, 32), (i, 90, 40)) for i in range(9)]
    other = quiet(diffusers.WanVideoToVideoPipeline.from_pipe(wan))
    with svg2.enable(other, CONFIG) as run:
        expected = generate(other, 10, video=video, strength=0.8)
    wanted = sparse_steps(run)
    assert wanted[0] == list(range(2, 8))
    with svg2.enable(wan, CONFIG) as run:
        if ran_before:
            generate(wan, ran_before, num_frames=9)
        assert torch.equal(generate(other, 10, video=video, strength=0.8), expected)
        assert (sparse_steps(run), run.stats.num_steps) == (wanted, 8)
        generate(wan, 4, num_frames=9)
        assert (sparse_steps(run)[0], run.stats.num_steps) == ([1, 2, 3], 4)


@pytest.mark.parametrize(
    ("kind", "runs_first"),
    [
        *(("WanPipeline", True), ("WanVideoToVideoPipeline", False)),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (("WanPipeline", False), ("WanVideoToVideoPipeline", True))
        ),
    ],
)
def test_a_shared_transformer_under_another_scheduler_is_refused(wan, kind, runs_first):
    other = quiet(getattr(diffusers, kind).from_pipe(wan))
    other.scheduler = copy.deepcopy(wan.scheduler)
    given = {"num_frames": 9}
    if kind != "WanPipeline":
        given = {"video": [Image.new("RGB", (48, 32))] * 9}
    with svg2.enable(wan, CONFIG) as run:
        if runs_first:
            generate(wan, num_frames=9)
        with pytest.raises(RuntimeError, match="enable SVG2 for the pipeline that you run"):
            generate(other, 12, **given)
        generate(wan, num_frames=9)
        assert sparse_steps(run)[0] == [1, 2, 3]
    assert np.isfinite(generate(other, **given).numpy()).all()
