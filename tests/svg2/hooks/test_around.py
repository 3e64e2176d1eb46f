"""What people put around a pipeline: adapters, offloading, compilation, caches, callbacks."""

import copy
import pickle

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from peft import LoraConfig, get_peft_model_state_dict
from torch._dynamo.testing import CompileCounter

import svg2
from svg2.hooks import session
from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from tests.svg2.tiny_families import PROMPT, TINY, save

pytestmark = pytest.mark.slow  # half a minute in all

WHOLE = {"top_p": 1.0, "warmup_fraction": 0.0}
NAMES = ("wan2.1-t2v", "hunyuanvideo")

# What does not depend on the family of a model is tried on one; `nightly` tries both.
on_one_family = pytest.mark.parametrize(
    "model", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.nightly)], indirect=True
)


def pairs_of(values):
    """Each model with one of the values; `nightly` has the other pairs."""
    return [
        pytest.param(name, value, marks=() if i == j else pytest.mark.nightly)
        for i, name in enumerate(NAMES)
        for j, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(TINY[name], tmp_path_factory.mktemp(name) / "model") for name in NAMES}


@pytest.fixture(scope="module")
def loaded(folders):
    return {str(x): load_pipeline(model_spec(str(x)), "fp32", "cpu") for x in folders.values()}


@pytest.fixture(params=NAMES)
def model(request, folders):
    return str(folders[request.param])


@pytest.fixture
def pipe(model, loaded):
    return copy.deepcopy(loaded[model])


@pytest.fixture
def config(model):
    return model_spec(model).config


def generate(pipe, model, **changes) -> np.ndarray:
    """Latents of one generation; decoding them would take most of the time."""
    spec = model_spec(model)
    arguments = {
        "prompt": PROMPT,
        "height": spec.height,
        "width": spec.width,
        "num_frames": spec.num_frames,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "max_sequence_length": spec.max_sequence_length,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return torch.as_tensor(pipe(**(arguments | changes)).frames).float().numpy()


def near(a, b, db=60):
    """PSNR, with the range of `b` for its peak."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return error == 0 or 10 * np.log10(np.ptp(b) ** 2 / error) >= db


def both(pipe, model, config, **changes):
    """Whole budget against the pipeline's own, and less than that; restored afterwards."""
    dense = generate(pipe, model, **changes)
    with svg2.enable(pipe, config.replace(**WHOLE)) as run:
        assert near(generate(pipe, model, **changes), dense)
        assert run.stats.dense_calls == 0
    with svg2.enable(pipe, config) as run:
        sparse = generate(pipe, model, **changes)
    assert 0 < run.stats.density < 1
    assert not np.array_equal(sparse, dense)
    assert np.array_equal(generate(pipe, model, **changes), dense)
    return run.stats


def test_a_loaded_lora_counts(pipe, model, config, tmp_path):
    plain = generate(pipe, model)
    trained = copy.deepcopy(pipe.transformer)
    torch.manual_seed(0)
    trained.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(tmp_path, get_peft_model_state_dict(trained))
    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    assert not np.array_equal(generate(pipe, model), plain)
    both(pipe, model, config)


def test_a_model_moved_to_its_device_for_each_forward(pipe, model, config):
    """The hook that `enable_model_cpu_offload` sets, which itself wants a GPU."""
    cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))
    both(pipe, model, config)


def test_groups_of_layers_kept_off_the_device(pipe, model, config):
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    both(pipe, model, config)


@on_one_family
def test_tiles_and_slices_of_the_vae(pipe, model, config):
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    both(pipe, model, config, output_type="np")


@pytest.mark.parametrize(
    ("model", "dtype"), pairs_of([torch.bfloat16, torch.float16]), indirect=["model"]
)
def test_low_precisions(pipe, model, config, dtype):
    pipe.transformer.to(dtype)
    dense = generate(pipe, model)
    with svg2.enable(pipe, config.replace(**WHOLE)):
        assert near(generate(pipe, model), dense, 35)
    with svg2.enable(pipe, config) as run:
        generate(pipe, model)
    assert 0 < run.stats.density < 1
    assert np.array_equal(generate(pipe, model), dense)


def test_compiled_blocks_are_whole_and_few(pipe, model, config):
    dense = generate(pipe, model)
    torch._dynamo.reset()
    graphs = CompileCounter()
    pipe.transformer.compile_repeated_blocks(backend=graphs, fullgraph=True)
    classes = len(pipe.transformer._repeated_blocks)
    with svg2.enable(pipe, config.replace(**WHOLE)):
        assert near(generate(pipe, model), dense)
    assert 0 < graphs.frame_count <= 2 * classes
    with svg2.enable(pipe, config) as run:  # steps of both kinds
        generate(pipe, model)
    assert run.stats.dense_calls > 0
    assert run.stats.sparse_calls > 0
    assert run.stats.density < 1
    # `enable` again puts other processors in place, and still none of them needs a graph.
    assert graphs.frame_count <= 2 * classes
    assert near(generate(pipe, model), dense)


@on_one_family
def test_a_compiled_transformer_is_the_one_inside_the_wrapper(pipe, model, config):
    inner = pipe.transformer
    torch._dynamo.reset()
    pipe.transformer = wrapped = torch.compile(inner, backend="eager")
    dense = generate(pipe, model, num_inference_steps=2)
    before = [dict(vars(module)) for module in inner.modules()]
    with svg2.enable(pipe, config.replace(**WHOLE)) as run:
        assert near(generate(pipe, model, num_inference_steps=2), dense)
    assert run.stats.sparse_calls == 2 * 3 * (2 if "wan" in model else 1)
    assert run.stats.density == 1
    assert run.stats.dense_calls == 0
    assert pipe.transformer is wrapped
    assert wrapped._orig_mod is inner
    for module, attributes in zip(inner.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
    assert near(generate(pipe, model, num_inference_steps=2), dense)


BY_PLACE = {"method": "radial", "num_q_clusters": 8, "num_k_clusters": 16}


@pytest.fixture
def grids(monkeypatch):
    """The grid of each sparse call."""
    seen, original = [], session.sparse_call

    def sparse_call(*args, grid, **kwargs):
        seen.append(grid)
        return original(*args, grid=grid, **kwargs)

    monkeypatch.setattr(session, "sparse_call", sparse_call)
    return seen


def expected_grid(pipe, model, **changes):
    """Frames, rows and columns of latents by the VAE, and of tokens by the transformer."""
    spec, tokens = model_spec(model), pipe.transformer.config
    size = {"num_frames": spec.num_frames, "height": spec.height, "width": spec.width} | changes
    if "wan" in model:
        patch = tokens.patch_size
        frames, pixels = pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial
    else:
        patch = (tokens.patch_size_t, tokens.patch_size, tokens.patch_size)
        frames, pixels = pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial
    latents = (
        (size["num_frames"] - 1) // frames + 1,
        size["height"] // pixels,
        size["width"] // pixels,
    )
    return tuple(n // p for n, p in zip(latents, patch, strict=True))


def test_the_grid_of_tokens_is_known_for_each_size(pipe, model, config, grids):
    cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))
    with svg2.enable(pipe, config.replace(**BY_PLACE)) as run:
        generate(pipe, model)
        assert set(grids) == {expected_grid(pipe, model)}
        assert 0 < run.stats.density < 1
        grids.clear()
        # Offloading puts a forward of its own in place, after each generation anew.
        remove_hook_from_module(pipe.transformer)
        cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))
        wide = {"width": 2 * model_spec(model).width}
        generate(pipe, model, **wide)
        assert set(grids) == {expected_grid(pipe, model, **wide)}


def test_the_grid_is_known_in_compiled_blocks(pipe, model, config, grids):
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    with svg2.enable(pipe, config.replace(**BY_PLACE)):
        generate(pipe, model)
    assert set(grids) == {expected_grid(pipe, model)}


@on_one_family
def test_the_grid_is_known_in_a_compiled_transformer(pipe, model, config, grids):
    torch._dynamo.reset()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    generate(pipe, model, num_inference_steps=1)
    with svg2.enable(pipe, config.replace(**BY_PLACE, warmup_fraction=0.0)):
        generate(pipe, model, num_inference_steps=2)
    assert set(grids) == {expected_grid(pipe, model)}


@on_one_family
def test_a_copy_made_meanwhile_is_a_stock_one(pipe, model, config):
    earlier = copy.deepcopy(pipe)
    stock = {name: type(p) for name, p in earlier.transformer.attn_processors.items()}
    dense = generate(earlier, model)
    with svg2.enable(pipe, config) as run:
        sparse = generate(pipe, model)
        ours, stats = dict(pipe.transformer.attn_processors), run.stats
        whole = copy.deepcopy(pipe)
        parts = (copy.deepcopy(pipe.transformer), pickle.loads(pickle.dumps(pipe.transformer)))
        for copied in (whole.transformer, *parts):
            assert {name: type(p) for name, p in copied.attn_processors.items()} == stock
            whole.transformer = copied
            assert np.array_equal(generate(whole, model), dense)
        # It has its own hooks: nothing that it did reached the session of the original.
        assert run.stats.call.tolist() == stats.call.tolist()
        assert dict(pipe.transformer.attn_processors) == ours
        with svg2.enable(whole, config):
            assert np.array_equal(generate(whole, model), sparse)
        assert np.array_equal(generate(pipe, model), sparse)
    assert np.array_equal(generate(whole, model), dense)


@on_one_family
def test_a_copy_does_not_end_the_generation_of_the_original(pipe, model, config):
    copies, cleared = [], []

    def observer(call):
        if not copies:
            copies.append(copy.deepcopy(pipe))
            with copies[0].transformer.cache_context("uncond"):
                assert run._session.tracker._context != "uncond"
            copies[0].maybe_free_model_hooks()
            cleared.append(run._session.cache.nbytes)

    with svg2.enable(pipe, config, observer=observer) as run:
        generate(pipe, model)
    assert cleared[0] > 0


@pytest.mark.parametrize(
    ("model", "cache"),
    pairs_of(
        [
            FirstBlockCacheConfig(threshold=0.5),
            TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
        ]
    ),
    indirect=["model"],
)
def test_caches_of_diffusers_on_top(pipe, model, config, cache):
    without = generate(pipe, model)
    pipe.transformer.enable_cache(cache)
    dense = generate(pipe, model)
    with svg2.enable(pipe, config.replace(**WHOLE)) as run:
        assert near(generate(pipe, model), dense, 50)
    calls = run.stats.sparse_calls
    with svg2.enable(pipe, config) as run:
        first, again = generate(pipe, model), generate(pipe, model)
    assert np.array_equal(first, again)
    assert 0 < run.stats.density < 1
    pipe.transformer.disable_cache()
    with svg2.enable(pipe, config.replace(**WHOLE)) as run:
        assert near(generate(pipe, model), without)
    if isinstance(cache, FirstBlockCacheConfig):  # the other finds no attention in Wan's blocks
        assert calls < run.stats.sparse_calls, "the cache spared some"


@on_one_family
def test_callbacks_of_the_users_own_see_every_step_and_may_stop(pipe, model, config):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        assert tensors["latents"].isfinite().all()
        pipe._interrupt = len(steps) == 6
        return {"latents": tensors["latents"]}

    with svg2.enable(pipe, config) as run:
        whole = generate(pipe, model, callback_on_step_end=callback)
        assert steps == [0, 1, 2, 3]
        assert run.stats.sparse_calls > 0
        generate(pipe, model, callback_on_step_end=callback)
        assert steps == [0, 1, 2, 3, 0, 1], "stopped"
        assert np.array_equal(generate(pipe, model), whole)


def test_several_videos_at_once(pipe, model, config):
    stats = both(pipe, model, config, num_videos_per_prompt=2)
    assert stats.sparse_calls == 9 * (2 if "wan" in model else 1)


def test_guidance_in_one_batch(folders, loaded):
    """As pipelines do that ask once for both branches: prompts then differ in length."""
    model = str(folders["hunyuanvideo"])
    pipe, spec = copy.deepcopy(loaded[model]), model_spec(model)
    transformer = pipe.transformer
    inputs = {}

    def keep(module, args, kwargs):
        inputs.update(kwargs)

    handle = transformer.register_forward_pre_hook(keep, with_kwargs=True)
    generate(pipe, model, num_inference_steps=1)
    handle.remove()
    tensors = {
        name: torch.cat([value, value]) if torch.is_tensor(value) else value
        for name, value in inputs.items()
    }
    tensors["encoder_attention_mask"][1, 7:] = 0
    pipe.scheduler.set_timesteps(2)

    @torch.no_grad()
    def forward():
        with transformer.cache_context("cond_uncond"):
            return transformer(**tensors)[0]

    dense = forward()
    with svg2.enable(pipe, spec.config.replace(**WHOLE)) as run:
        torch.testing.assert_close(forward(), dense, rtol=0, atol=1e-4)
    assert set(run.stats.call[:, 2]) == {2}
