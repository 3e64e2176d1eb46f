"""HunyuanVideo: joint attention over video and prompt, with the prompt's padding dropped."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import svg2
from svg2.hooks.families.hunyuan_video import text_queries_keys_values, video_queries_keys_values
from svg2.trace.recording import Recorder, Selection

CONFIG = svg2.SVG2Config(
    top_p=0.5, num_q_clusters=8, num_k_clusters=16, warmup_fraction=0.25, kmeans_iters_init=3
)
NUM_LAYERS, NUM_STEPS, NUM_TOKENS, NUM_TEXT, NUM_PADDED = 3, 4, 96, 5, 9


@pytest.fixture
def pipe():
    """Random weights: 2 dual-stream blocks and 1 single-stream one, 2 heads of 32."""
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(8, 12, 12),
        guidance_embeds=True,
    ).eval()
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompt(seed: int = 0, num_text: int = NUM_TEXT, padding: float = 0.0, batch: int = 1) -> dict:
    """Embeddings of a prompt, `num_text` tokens long and padded with `padding`."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, NUM_PADDED, 16, generator=generator)
    embeds[:, num_text:] = padding
    return {
        "prompt_embeds": embeds,
        "pooled_prompt_embeds": torch.randn(batch, 8, generator=generator),
        "prompt_attention_mask": (torch.arange(NUM_PADDED) < num_text).long().repeat(batch, 1),
    }


def generate(pipe, **changes) -> torch.Tensor:
    """Latents of 6 x 4 x 4 tokens."""
    return pipe(
        **(prompt() | changes),
        height=32,
        width=32,
        num_frames=21,
        num_inference_steps=NUM_STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).frames


class AttentionInputs(TorchFunctionMode):
    """Keeps the q, k and v of every call of the stock attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value")
            self.calls.append(args[:3] if args else [kwargs[name] for name in names])
        return func(*args, **(kwargs or {}))


def test_the_whole_budget_is_dense_and_padding_does_not_matter(pipe):
    dense = generate(pipe)
    whole = CONFIG.replace(top_p=1.0, warmup_fraction=0.0)
    with svg2.enable(pipe, whole) as run:
        for padding in (0.0, 7.0):
            torch.testing.assert_close(
                generate(pipe, **prompt(padding=padding)), dense, rtol=0, atol=1e-4
            )
    stats = run.stats
    assert stats.density == stats.density_run == 1
    assert (stats.sparse_calls, stats.dense_calls) == (NUM_LAYERS * NUM_STEPS, 0)
    assert stats.n_tokens == NUM_TOKENS


def test_less_than_the_whole_is_sparse_and_another_prompt_starts_afresh(pipe):
    dense = generate(pipe)
    config = CONFIG.replace(method="svg2-comp")
    long = prompt(num_text=8)
    with svg2.enable(pipe, config):
        expected = generate(pipe, **long)
    with svg2.enable(pipe, config) as run:
        sparse = generate(pipe)
        assert torch.equal(generate(pipe, **long), expected)
    assert not torch.equal(sparse, dense)
    assert sparse.isfinite().all()
    stats = run.stats
    assert stats.dense_calls == NUM_LAYERS  # a quarter of four steps
    assert 0 < stats.density < stats.compute_density < 1
    assert torch.equal(generate(pipe), dense)


def test_the_dense_side_drops_the_padding_and_its_mask(pipe):
    stock = generate(pipe, **prompt(padding=7.0))
    with svg2.measure_dense(pipe) as run, AttentionInputs() as seen:
        trimmed = generate(pipe, **prompt(padding=7.0))
    torch.testing.assert_close(trimmed, stock, rtol=0, atol=1e-4)
    joint = [q for q, _, _ in seen.calls if q.shape[2] > NUM_PADDED]  # the rest refines the text
    assert {q.shape[2] for q in joint} == {NUM_TOKENS + NUM_TEXT}
    assert run.stats.dense_calls == len(joint) == NUM_LAYERS * NUM_STEPS


def test_density_counts_the_text(pipe):
    seen = []
    with svg2.enable(pipe, CONFIG, observer=seen.append):
        generate(pipe)
    call = seen[0]
    pairs = call.q_sizes[..., None].double() * call.k_sizes[..., None, :]
    kept = (pairs * call.kept).sum((0, 2, 3)) + NUM_TEXT * (2 * NUM_TOKENS + NUM_TEXT)
    torch.testing.assert_close(call.density, kept / (NUM_TOKENS + NUM_TEXT) ** 2)


@torch.no_grad()
def test_queries_keys_and_values_are_those_of_the_stock_attention(pipe):
    transformer = pipe.transformer
    for block in (transformer.transformer_blocks[1], transformer.single_transformer_blocks[0]):
        attn = block.attn
        generator = torch.Generator().manual_seed(0)
        for norm in (attn.norm_q, attn.norm_k):
            torch.nn.init.uniform_(norm.weight, 0.5, 2, generator=generator)
        video = torch.randn(2, NUM_TOKENS, 64, generator=generator)
        text = torch.randn(2, NUM_TEXT, 64, generator=generator)
        rope = transformer.rope(torch.empty(2, 4, 6, 4, 4))
        with AttentionInputs() as stock:
            attn(video, encoder_hidden_states=text, image_rotary_emb=rope)
        ours = video_queries_keys_values(attn, video, rope)
        of_text = text_queries_keys_values(attn, text)
        for x, t, both in zip(
            ours, (of_text.q, of_text.k, of_text.v), stock.calls[-1], strict=True
        ):
            torch.testing.assert_close(torch.cat([x, t], dim=2), both, rtol=0, atol=1e-6)


def test_prompts_of_a_batch_may_differ_in_length(pipe):
    batch = prompt(batch=2)
    same = generate(pipe, **batch)
    with svg2.enable(pipe, CONFIG.replace(top_p=1.0)):
        torch.testing.assert_close(generate(pipe, **batch), same, rtol=0, atol=1e-4)
    batch["prompt_attention_mask"][1, 3:] = 0
    stock = generate(pipe, **batch)
    assert not torch.equal(stock[1], same[1])
    with svg2.enable(pipe, CONFIG.replace(top_p=1.0)) as run:
        torch.testing.assert_close(generate(pipe, **batch), stock, rtol=0, atol=1e-4)
    assert run.stats.n_text == NUM_TEXT
    cache_sizes = []

    def observer(call):
        cache_sizes.append(len(handle._session.cache))

    with svg2.enable(pipe, CONFIG, observer=observer) as handle:
        assert generate(pipe, **batch).isfinite().all()
    assert max(cache_sizes) == 2 * NUM_LAYERS, "each sample keeps centroids of its own"
    assert torch.equal(generate(pipe, **batch), stock)


@pytest.fixture
def uneven():
    """Two prompts, of five tokens and of three."""
    batch = prompt(batch=2)
    batch["prompt_attention_mask"][1, 3:] = 0
    return batch


def samples_of(batch):
    return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(2)]


def test_samples_that_attend_one_by_one_are_one_call(pipe, uneven):
    """Numbers of the batch are means of those of its samples; what is seen is of the last."""
    config = CONFIG.replace(warmup_fraction=0.0, method="svg2-comp")
    latents = torch.randn(2, 4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = []
    with svg2.enable(pipe, config, observer=seen.append) as handle:
        generate(pipe, **uneven, latents=latents)
    both = handle.stats
    places = [[step, layer, 0] for step in range(NUM_STEPS) for layer in range(NUM_LAYERS)]
    assert both.call.tolist() == [[c.step, c.layer, c.branch] for c in seen] == places
    alone, calls = [], []
    for i, sample in enumerate(samples_of(uneven)):
        calls.clear()
        with svg2.enable(pipe, config, observer=calls.append) as handle:
            generate(pipe, **sample, latents=latents[i : i + 1])
        alone.append(handle.stats)
    # The first call: what comes later depends on rounding, which a batch may change.
    for name in ("call_density", "call_kept_mass"):
        first, second = (getattr(stats, name)[0] for stats in alone)
        assert abs(first - second).max() > 1e-4
        np.testing.assert_allclose(getattr(both, name)[0], (first + second) / 2, atol=1e-6)
        np.testing.assert_allclose(getattr(both, name)[0], getattr(seen[0], name[5:]), rtol=1e-6)
    assert torch.equal(seen[0].q_labels, calls[0].q_labels)
    assert seen[0].q.shape[0] == 1
    torch.testing.assert_close(seen[0].q, calls[0].q)
    assert both.density < both.compute_density < 1


def test_times_of_samples_that_attend_one_by_one_add_up(pipe, uneven, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * 1e-3)  # a look, a millisecond
    config = CONFIG.replace(warmup_fraction=0.0)
    for batch, num_samples in ((samples_of(uneven)[0], 1), (uneven, 2)):
        with svg2.enable(pipe, config) as handle:
            generate(pipe, **batch)
        calls = NUM_LAYERS * NUM_STEPS
        stage_ms = [num_samples * ms for ms in (1, 1, 1, 1, 2)]  # `other` has two parts
        np.testing.assert_allclose(handle.stats.call_stage_ms, [stage_ms] * calls, rtol=1e-5)
        with svg2.measure_dense(pipe) as handle:
            generate(pipe, **batch)
        stats = handle.stats
        assert stats.dense_calls == calls
        assert stats.attention_seconds == pytest.approx(num_samples * calls * 1e-3)


def test_a_batch_is_recorded_once_per_position(pipe, uneven):
    selection = Selection((1, 3), (0, 2), (1,), "")
    recorder = Recorder(selection, branches=(0,))
    with svg2.enable(pipe, CONFIG, observer=recorder):
        generate(pipe, **uneven)
    assert [record.position for record in recorder.records] == [
        (0, 1, 0, 0, 1),
        (0, 1, 2, 0, 1),
        (0, 3, 0, 0, 1),
        (0, 3, 2, 0, 1),
    ]


@pytest.fixture
def pipe15():
    """HunyuanVideo 1.5: two text encoders and an image's tokens, valid ones first."""
    torch.manual_seed(0)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=3,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(8, 12, 12),
    ).eval()
    return SimpleNamespace(
        transformer=transformer,
        scheduler=SimpleNamespace(step_index=None, timesteps=[0]),
        num_timesteps=1,
        maybe_free_model_hooks=lambda: None,
    )


@torch.no_grad()
def forward15(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(NUM_PADDED) < NUM_TEXT
    with pipe.transformer.cache_context("pred_cond"):
        return pipe.transformer(
            hidden_states=torch.randn(1, 4, 6, 4, 4, generator=generator),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, NUM_PADDED, 16, generator=generator),
            encoder_attention_mask=mask.long()[None],
            encoder_hidden_states_2=torch.randn(1, NUM_PADDED, 16, generator=generator),
            encoder_attention_mask_2=mask.flip(0).long()[None],
            image_embeds=torch.randn(1, 2, 16, generator=generator),
            return_dict=False,
        )[0]


def test_the_next_version_has_the_same_attention_under_another_mask(pipe15):
    stock = forward15(pipe15)
    with svg2.measure_dense(pipe15) as run, AttentionInputs() as seen:
        torch.testing.assert_close(forward15(pipe15), stock, rtol=0, atol=1e-4)
    n_text = 2 * NUM_TEXT + 2
    assert run.stats.n_text == n_text
    lengths = [q.shape[2] for q, _, _ in seen.calls]
    assert lengths.count(NUM_TOKENS + n_text) == NUM_LAYERS, "trimmed"
    with svg2.enable(pipe15, CONFIG.replace(top_p=1.0, warmup_fraction=0.0)) as run:
        torch.testing.assert_close(forward15(pipe15), stock, rtol=0, atol=1e-4)
    assert run.stats.sparse_calls == NUM_LAYERS
    with svg2.enable(pipe15, CONFIG.replace(warmup_fraction=0.0)) as run:
        sparse = forward15(pipe15)
    assert sparse.isfinite().all()
    assert 0 < run.stats.density < 1
    assert torch.equal(forward15(pipe15), stock)
