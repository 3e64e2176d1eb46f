"""Whole generations with SVG2 on: the gate, the state between steps, and leaving no trace."""

import copy
import time

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import svg2
from kernels import resolve_impl
from svg2.hooks.enable import check_kernels, check_runnable
from svg2.method.stages import STAGES

CONFIG = svg2.SVG2Config(
    top_p=0.5, num_q_clusters=8, num_k_clusters=16, warmup_fraction=0.25, kmeans_iters_init=3
)
NUM_LAYERS, NUM_STEPS, NUM_TOKENS = 3, 4, 192


def psnr_db(a, b):
    return -10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) + 1e-30)


def labels_by_call(pipe, generate, config=CONFIG, **changes):
    """Key labels of every sparse call by (step, layer, branch), and the frames."""
    seen = {}

    def observer(call):
        seen[call.step, call.layer, call.branch] = call.k_labels.clone()

    with svg2.enable(pipe, config, observer=observer):
        frames = generate(pipe, **changes)
    return seen, frames


def test_the_whole_budget_is_dense_to_60_db(tiny_pipeline, generate_tiny):
    dense = generate_tiny(tiny_pipeline)
    for num_videos in (1, 2):
        with svg2.enable(tiny_pipeline, CONFIG.replace(top_p=1.0, warmup_fraction=0.0)) as run:
            frames = generate_tiny(tiny_pipeline, num_videos_per_prompt=num_videos)
        assert psnr_db(frames[0], dense[0]) >= 60
        assert run.stats.density == run.stats.density_run == run.stats.compute_density == 1
        assert run.stats.dense_calls == 0


def test_disabled_it_leaves_no_trace(tiny_pipeline, generate_tiny):
    before = generate_tiny(tiny_pipeline)  # makes what diffusers makes on first use
    modules = [tiny_pipeline, *tiny_pipeline.transformer.modules()]
    attributes = [dict(vars(module)) for module in modules]
    handle = svg2.enable(tiny_pipeline, CONFIG)
    assert not np.array_equal(generate_tiny(tiny_pipeline), before)
    handle.disable()
    handle.disable()
    for module, expected in zip(modules, attributes, strict=True):
        now = vars(module)
        assert now.keys() == expected.keys()
        same = {name for name in now if now[name] is expected[name]}
        # What a generation itself writes on the pipeline.
        assert now.keys() - same <= {"_current_timestep", "_num_timesteps", "_guidance_scale"}
    assert np.array_equal(generate_tiny(tiny_pipeline), before)


def test_measuring_dense_changes_no_bit(tiny_pipeline, generate_tiny):
    before = generate_tiny(tiny_pipeline)
    with svg2.measure_dense(tiny_pipeline) as run:
        assert np.array_equal(generate_tiny(tiny_pipeline), before)
    stats = run.stats
    assert (stats.dense_calls, stats.sparse_calls) == (NUM_LAYERS * NUM_STEPS * 2, 0)
    assert 0 < stats.stage_seconds["dense_attention"] == stats.attention_seconds
    assert stats.density is stats.compute_density is stats.impl is None
    assert stats.density_run == 1
    assert (stats.density_table() == 1).all()
    assert np.array_equal(generate_tiny(tiny_pipeline), before)


class Elsewhere:
    """A processor whose attention nobody sees."""

    _parallel_config = None

    def __call__(self, attn, hidden_states, *others):
        return hidden_states


def test_a_dense_kernel_that_cannot_be_timed_reads_not_measured(tiny_pipeline, generate_tiny):
    with svg2.measure_dense(tiny_pipeline) as run:
        processor = tiny_pipeline.transformer.blocks[0].attn1.processor
        processor._original = Elsewhere()
        generate_tiny(tiny_pipeline, num_inference_steps=1)
    assert run.stats.stage_seconds["dense_attention"] is None
    assert run.stats.attention_seconds is None


@pytest.mark.parametrize(
    ("warmup", "dense_layers", "sparse"),
    [(0.0, 0, 24), (0.25, 0, 18), (0.3, 0, 12), (0.25, 1, 12), (0.0, 3, 0), (1.0, 0, 0)],
)
def test_the_gate(tiny_pipeline, generate_tiny, warmup, dense_layers, sparse):
    config = CONFIG.replace(warmup_fraction=warmup, dense_layers=dense_layers)
    dense = generate_tiny(tiny_pipeline)
    with svg2.enable(tiny_pipeline, config) as run:
        frames = generate_tiny(tiny_pipeline)
    stats = run.stats
    assert (stats.sparse_calls, stats.dense_calls) == (sparse, 24 - sparse)
    table = stats.density_table()
    assert table.shape == (NUM_LAYERS, NUM_STEPS)
    warm = config.warmup_steps(NUM_STEPS)
    assert (table[:, :warm] == 1).all()
    assert (table[:dense_layers] == 1).all()
    assert (table[dense_layers:, warm:] < 1).all()
    assert stats.density_run == pytest.approx(table.mean())
    assert run.step_density == pytest.approx(table.mean(axis=0))
    assert np.array_equal(frames, dense) == (sparse == 0)


def test_statistics_add_up(tiny_pipeline, generate_tiny):
    calls = []
    config = CONFIG.replace(method="svg2-comp")
    with svg2.enable(tiny_pipeline, config, observer=calls.append) as run:
        assert run.stats.density_run is None, "nothing ran yet"
        generate_tiny(tiny_pipeline)
    stats = run.stats
    assert stats.impl == "reference"
    assert (stats.num_steps, stats.num_layers, stats.n_tokens) == (NUM_STEPS, 3, NUM_TOKENS)
    assert stats.call.tolist() == [[c.step, c.layer, c.branch] for c in calls]
    assert stats.call.tolist() == [
        [step, layer, branch] for step in (1, 2, 3) for branch in (0, 1) for layer in range(3)
    ]
    for i, call in enumerate(calls):
        np.testing.assert_allclose(stats.call_density[i], call.density, rtol=1e-6)
        np.testing.assert_allclose(stats.call_kept_mass[i], call.kept_mass, rtol=1e-6)
        n_q, n_k = call.q_sizes.double(), call.k_sizes.double()
        pairs = torch.einsum("bhq,bhqk,bhk->h", n_q, call.kept.double(), n_k)
        np.testing.assert_allclose(call.density, pairs / NUM_TOKENS**2)
        assert call.q.shape == call.k.shape == call.v.shape == (1, 2, NUM_TOKENS, 64)
    assert stats.density == pytest.approx(stats.call_density.mean())
    assert stats.compute_density > stats.density
    np.testing.assert_allclose(
        stats.call_stage_ms.sum(0) / 1e3,
        [stats.stage_seconds[stage] for stage in STAGES],
        rtol=1e-4,
    )
    assert (stats.call_stage_ms > 0).all()
    assert stats.observer_seconds > 0
    # 3 layers, 2 branches, 2 heads of 64 in fp32
    assert stats.cache_bytes == 3 * 2 * (8 + 16) * 2 * 64 * 4


def test_densities_by_step_are_known_while_the_generation_runs(tiny_pipeline, generate_tiny):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(run.step_density)
        return tensors

    with svg2.enable(tiny_pipeline, CONFIG) as run:
        assert run.step_density == ()
        generate_tiny(tiny_pipeline, callback_on_step_end=callback)
        by_step = run.stats.density_table().mean(axis=0)
        assert by_step[0] == 1
        assert (by_step[1:] < 1).all()
        assert [len(densities) for densities in seen] == [1, 2, 3, 4]
        for densities in seen:
            assert densities == pytest.approx(by_step[: len(densities)])
        generate_tiny(tiny_pipeline, num_inference_steps=2)
        assert len(run.step_density) == 2, "a new generation starts afresh"


def test_time_in_the_observer_is_not_the_methods(tiny_pipeline, generate_tiny, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def observer(call):
        assert call.stage_ms["attention"] == 0, "reading it must not freeze it"
        now[0] += 5

    with svg2.enable(tiny_pipeline, CONFIG, observer=observer) as run:
        generate_tiny(tiny_pipeline)
    stats = run.stats
    assert stats.observer_seconds == 5 * stats.sparse_calls
    assert stats.call_stage_ms.sum() == 0


@pytest.mark.parametrize("method", svg2.METHODS)
def test_the_same_seed_gives_the_same_frames(tiny_pipeline, generate_tiny, method):
    config = CONFIG.replace(method=method)
    with svg2.enable(tiny_pipeline, config):
        first, second, other = (
            generate_tiny(tiny_pipeline, num_inference_steps=3, seed=seed) for seed in (0, 0, 1)
        )
    assert np.array_equal(first, second), "also says that no centroid came from the first"
    assert not np.array_equal(first, other)


def test_a_method_without_clusters_is_counted_and_not_observed(tiny_pipeline, generate_tiny):
    """Its kept pairs are of single tokens, which no record of clusters can hold."""
    seen = []
    config = CONFIG.replace(method="oracle", density=0.3)
    with svg2.enable(tiny_pipeline, config, observer=seen.append) as run:
        generate_tiny(tiny_pipeline)
    assert not seen
    assert 0.28 < run.stats.density <= 0.3
    assert run.stats.compute_density == run.stats.density
    assert run.stats.overhead_density == 0
    assert 0.3 < run.stats.kept_mass < 1


def test_compensation_is_nearer_to_dense(tiny_pipeline, generate_tiny):
    dense = generate_tiny(tiny_pipeline)
    psnr = {}
    for method in ("svg2", "svg2-comp"):
        with svg2.enable(tiny_pipeline, CONFIG.replace(method=method)):
            psnr[method] = psnr_db(generate_tiny(tiny_pipeline), dense)
    assert psnr["svg2-comp"] > psnr["svg2"]


def test_centroids_live_as_long_as_a_generation(tiny_pipeline, generate_tiny):
    held = []

    def observer(call):
        held.append(handle._session.cache.nbytes)

    with svg2.enable(tiny_pipeline, CONFIG, observer=observer) as handle:
        for _ in range(2):
            generate_tiny(tiny_pipeline)
            assert handle._session.cache.nbytes == 0
    assert held[0] > 0
    assert held[: len(held) // 2] == held[len(held) // 2 :]


def stop(at_step):
    """A callback that stops a generation the way in which diffusers documents it."""

    def callback(pipe, step, timestep, kwargs):
        pipe._interrupt = step == at_step
        return kwargs

    return callback


@pytest.mark.parametrize("at_step", [0, 2])
def test_after_a_stopped_generation_the_next_is_as_ever(tiny_pipeline, generate_tiny, at_step):
    labels, frames = labels_by_call(tiny_pipeline, generate_tiny)
    with svg2.enable(tiny_pipeline, CONFIG) as run:
        generate_tiny(tiny_pipeline, callback_on_step_end=stop(at_step))
        assert run.stats.sparse_calls + run.stats.dense_calls == (at_step + 1) * 6
        assert np.array_equal(generate_tiny(tiny_pipeline), frames)
        assert run.stats.sparse_calls == len(labels)


@pytest.mark.parametrize("num_good_steps", [0, 2])
def test_an_error_on_the_way_is_forgotten_by_the_next_generation(
    tiny_pipeline, generate_tiny, num_good_steps
):
    config = CONFIG.replace(warmup_fraction=0.0)
    _, frames = labels_by_call(tiny_pipeline, generate_tiny, config)
    broken = True

    def observer(call):
        if broken and (call.step, call.layer) == (num_good_steps, 1):
            raise OSError("disk full")

    with svg2.enable(tiny_pipeline, config, observer=observer):
        with pytest.raises(OSError, match="disk full"):
            generate_tiny(tiny_pipeline)
        broken = False
        assert np.array_equal(generate_tiny(tiny_pipeline), frames)


def test_an_error_inside_the_context_still_restores(tiny_pipeline, generate_tiny):
    before = generate_tiny(tiny_pipeline)
    processors = dict(tiny_pipeline.transformer.attn_processors)

    def observer(call):
        raise KeyError(call.step)

    with pytest.raises(KeyError), svg2.enable(tiny_pipeline, CONFIG, observer=observer):
        generate_tiny(tiny_pipeline)
    assert tiny_pipeline.transformer.attn_processors == processors
    assert np.array_equal(generate_tiny(tiny_pipeline), before)


def test_branches_are_kept_apart(tiny_pipeline, generate_tiny):
    prompt = "a blue cube"
    config = CONFIG.replace(warmup_fraction=0.0, kmeans_iters_init=2, kmeans_iters_step=1)
    # Guidance between equal branches changes nothing, unless one starts where the other ended.
    changes = {"prompt": prompt, "negative_prompt": prompt}
    labels, _ = labels_by_call(tiny_pipeline, generate_tiny, config, **changes)
    single, _ = labels_by_call(tiny_pipeline, generate_tiny, config, **changes, guidance_scale=1.0)
    assert {branch for *_, branch in labels} == {0, 1}
    assert {branch for *_, branch in single} == {0}
    for (step, layer, _), expected in single.items():
        assert torch.equal(labels[step, layer, 0], expected)
        assert torch.equal(labels[step, layer, 1], expected)


def test_without_a_cache_context_the_nth_forward_is_the_branch(tiny_pipeline, generate_tiny):
    with_context, frames = labels_by_call(tiny_pipeline, generate_tiny)
    transformer = tiny_pipeline.transformer
    original = transformer.cache_context
    with svg2.enable(tiny_pipeline, CONFIG) as run:
        transformer.cache_context = original  # as if the pipeline never told ours
        assert np.array_equal(generate_tiny(tiny_pipeline), frames)
    assert run.stats.call.tolist() == [list(place) for place in with_context]


def test_two_prompts_at_once_are_two_prompts_apart(tiny_pipeline, generate_tiny):
    latents = torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["a red ball", "a blue cube"]
    with svg2.enable(tiny_pipeline, CONFIG.replace(top_p=1.0)):
        both = generate_tiny(tiny_pipeline, prompt=prompts, negative_prompt="", latents=latents)
        for i, prompt in enumerate(prompts):
            alone = generate_tiny(tiny_pipeline, prompt=prompt, latents=latents[i : i + 1])
            assert psnr_db(both[i], alone[0]) >= 60


def test_two_experts_share_one_count_of_steps(tiny_pipeline, generate_tiny):
    from diffusers import WanPipeline

    experts = {**tiny_pipeline.components}
    experts["transformer_2"] = copy.deepcopy(experts["transformer"])
    pipe = WanPipeline(**experts, boundary_ratio=0.8)
    pipe.set_progress_bar_config(disable=True)
    keys = []

    def observer(call):
        cache = handle._session.cache
        keys.append((call.step, {key.transformer for key in cache._entries}))

    with svg2.enable(pipe, CONFIG, observer=observer) as handle:
        generate_tiny(pipe)
    stats = handle.stats
    assert stats.sparse_calls == 18, "the second expert does not warm up again"
    by_step = dict(keys)
    assert list(by_step.values()).count({0}) >= 1
    assert list(by_step.values())[-1] == {1}, "the first expert's centroids are freed"
    assert all(len(transformers) == 1 for transformers in by_step.values())


def test_a_pipeline_that_names_no_branch_and_enters_its_schedule_midway(tiny_pipeline):
    from diffusers import WanVideoToVideoPipeline

    components = dict(tiny_pipeline.components)
    del components["transformer_2"]
    pipe = WanVideoToVideoPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    # It derives these from the depth of the VAE, which says nothing of our patches of pixels.
    pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal = 8, 2
    frames = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with svg2.enable(pipe, CONFIG) as run:
        pipe(
            video=frames,
            prompt="a red ball",
            negative_prompt="",
            height=64,
            width=64,
            num_inference_steps=8,
            strength=0.5,
            guidance_scale=3.0,
            max_sequence_length=16,
        )
    stats = run.stats
    assert stats.num_steps == 4
    assert stats.call[:, [0, 2]].tolist() == [
        [step, branch] for step in (1, 2, 3) for branch in (0, 1) for _ in range(3)
    ]


def test_enabling_twice_is_refused_and_harms_nothing(tiny_pipeline, generate_tiny):
    from diffusers import WanPipeline

    shared = WanPipeline(**tiny_pipeline.components)
    before = generate_tiny(tiny_pipeline)
    with svg2.enable(tiny_pipeline, CONFIG):
        for switch in (svg2.enable, svg2.measure_dense):
            for pipe in (tiny_pipeline, shared):
                with pytest.raises(RuntimeError, match="already enabled"):
                    switch(pipe)
    with svg2.enable(shared, CONFIG):
        pass
    assert np.array_equal(generate_tiny(tiny_pipeline), before)


def test_what_it_cannot_run_on_is_refused(tiny_pipeline):
    with pytest.raises(TypeError, match=r"SVG2 does not support this pipeline: .* SimplePipe"):
        svg2.enable(type("SimplePipe", (), {})())
    attn = tiny_pipeline.transformer.blocks[1].attn1
    stock = attn.processor
    attn.set_processor(type("SageProcessor", (), {})())
    with pytest.raises(TypeError, match="SageProcessor"):
        svg2.enable(tiny_pipeline)
    attn.set_processor(stock)
    with pytest.raises(svg2.ConfigError, match="fused"):
        svg2.enable(tiny_pipeline, CONFIG.replace(impl="fused"))
    with svg2.enable(tiny_pipeline, CONFIG):
        pass


def test_more_clusters_than_tokens_stops_before_the_first_step(tiny_pipeline, generate_tiny):
    with svg2.enable(tiny_pipeline, CONFIG.replace(num_k_clusters=193)) as run:
        with pytest.raises(svg2.ConfigError, match="192 tokens"):
            generate_tiny(tiny_pipeline)
        assert run.stats.dense_calls == 0


class KeysPermuted(TorchFunctionMode):
    """The stock self-attention with its keys, and their values, in another order."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        is_attention = func is torch.nn.functional.scaled_dot_product_attention
        if is_attention and "key" in kwargs and kwargs["key"].shape[2] == NUM_TOKENS:
            order = torch.randperm(NUM_TOKENS, generator=torch.Generator().manual_seed(0))
            kwargs |= {name: kwargs[name][:, :, order] for name in ("key", "value")}
        return func(*args, **kwargs)


def test_in_bf16_the_whole_budget_is_as_near_as_another_order_of_the_keys(
    tiny_pipeline, generate_tiny
):
    tiny_pipeline.transformer.to(torch.bfloat16)
    ours = permuted = 0.0
    for seed in range(4):
        dense = generate_tiny(tiny_pipeline, seed=seed)
        with svg2.enable(tiny_pipeline, CONFIG.replace(top_p=1.0, warmup_fraction=0.0)):
            ours += np.mean((generate_tiny(tiny_pipeline, seed=seed) - dense) ** 2)
        with KeysPermuted():
            permuted += np.mean((generate_tiny(tiny_pipeline, seed=seed) - dense) ** 2)
    assert permuted > 0
    # PSNR at least that of the yardstick, less 1 dB
    assert ours <= permuted * 10**0.1, -10 * np.log10([ours / 4, permuted / 4])


def test_more_key_clusters_than_the_gpu_kernels_take_are_refused(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("kernels.resolve_impl", lambda impl, q, is_matmul: "fused")
    with pytest.raises(svg2.ConfigError, match="at most 2047"):
        svg2.enable(tiny_pipeline, svg2.SVG2Config(num_k_clusters=2048))
    svg2.enable(tiny_pipeline, svg2.SVG2Config(num_k_clusters=2047)).disable()


def test_where_the_reference_would_run_any_number_of_clusters_is_taken(tiny_pipeline, monkeypatch):
    """On a GPU machine too: the pipeline is on the CPU, and `auto` looks at its tensors."""
    monkeypatch.setattr("kernels.impl._faults_here", [None])
    assert resolve_impl("auto") == "fused"
    many = svg2.SVG2Config(num_k_clusters=4096)
    svg2.enable(tiny_pipeline, many).disable()
    check_runnable(tiny_pipeline, many)
    with pytest.raises(svg2.ConfigError, match="at most 2047"):
        svg2.enable(tiny_pipeline, many.replace(impl="fused"))


def test_fused_kernels_are_refused_before_a_run_and_not_before_a_move(tiny_pipeline, monkeypatch):
    fused = CONFIG.replace(impl="fused")
    with pytest.raises(svg2.ConfigError, match="fused"):
        check_kernels(fused)
    monkeypatch.setattr("kernels.impl._faults_here", [None])
    check_kernels(fused)
    svg2.enable(tiny_pipeline, fused).disable()  # it may move to the GPU before it runs
    with pytest.raises(svg2.ConfigError, match="need a CUDA tensor"):
        check_runnable(tiny_pipeline, fused)
    check_runnable(tiny_pipeline, CONFIG)
    with svg2.enable(tiny_pipeline, CONFIG), pytest.raises(RuntimeError, match="already enabled"):
        check_runnable(tiny_pipeline, CONFIG)
