"""Finding and loading models: defaults, presets, the hub's cache, and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels import bf16_is_native
from svg2.errors import ConfigError, ModelUnavailable, RequestError
from svg2.models.catalogue import MODELS
from svg2.models.finding import BUILTIN_FOLDER, _was_online, model_spec, snapshot
from svg2.models.loading import availability, load_pipeline, resolve_device, resolve_dtype
from svg2.models.request import Request
from tests.svg2.pipelines import LAB, make_model_folder

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tiny_pipeline_path, tmp_path_factory):
    return make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny")


def test_a_folder_is_a_model_with_its_own_defaults(folder):
    spec = model_spec(str(folder))
    assert {name: getattr(spec, name) for name in ("height", "width", "fps")} == {
        name: LAB[name] for name in ("height", "width", "fps")
    }
    assert spec.config.num_k_clusters == 12
    assert (spec.frame_stride, spec.latent_stride, spec.patch) == (2, 8, (1, 1, 1))
    assert spec.grid(5, 32, 64) == (3, 4, 8)
    assert availability(spec) is None


def test_short_videos_get_fewer_clusters_than_the_model_would_have(folder):
    spec = model_spec(str(folder))
    assert spec.config_for(5, 32, 64).num_k_clusters == 12
    assert spec.config_for(1, 16, 32).num_k_clusters == 2


@pytest.mark.parametrize("model", ["", "nope", "wan2.2", "/", "a\0b", "x" * 5000])
def test_unknown_models_are_refused(model):
    with pytest.raises(RequestError) as caught:
        model_spec(model)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model_index.json", "{"),
        ("model_index.json", "[]"),
        ("model_index.json", '{"_class_name": "FluxPipeline"}'),
        ("vae/config.json", "x"),
        ("transformer/config.json", "{}"),
        ("lab.json", '{"top_p": 7}'),
        ("lab.json", '{"max_tokens": "many"}'),
    ],
)
def test_a_folder_with_broken_files_is_refused(tiny_pipeline_path, tmp_path, name, text):
    broken = make_model_folder(tiny_pipeline_path, tmp_path / "broken")
    (broken / name).write_text(text)
    with pytest.raises(RequestError):
        model_spec(str(broken))


def test_loading_honours_dtype_and_keeps_the_vae_in_fp32(folder):
    pipe = load_pipeline(model_spec(str(folder)), "bf16", "cpu")
    assert pipe.transformer.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.float32
    assert load_pipeline(model_spec(str(folder)), "fp32", "cpu").transformer.dtype == torch.float32


def test_damaged_weights_are_one_sentence(tiny_pipeline_path, tmp_path):
    broken = make_model_folder(tiny_pipeline_path, tmp_path / "broken")
    weights = next((broken / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelUnavailable) as caught:
        load_pipeline(model_spec(str(broken)), "fp32", "cpu")
    assert "\n" not in str(caught.value)


def test_large_models_say_what_they_need():
    for model in MODELS:
        if model == "builtin":
            continue
        spec = model_spec(model)
        reason = availability(spec)
        if not torch.cuda.is_available():
            assert reason is not None
            assert "GPU" in reason
            with pytest.raises(ModelUnavailable):
                load_pipeline(spec)


def test_devices_and_precisions():
    cpu = resolve_device("cpu")
    assert resolve_dtype("bf16", cpu) == torch.bfloat16
    expected = torch.bfloat16 if bf16_is_native() else torch.float32
    assert resolve_dtype("auto", cpu) == expected
    with pytest.raises(RequestError):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        *(((6, 1), torch.float16), ((7, 0), torch.float16), ((7, 5), torch.float16)),
        *(((8, 0), torch.bfloat16), ((8, 9), torch.bfloat16), ((9, 0), torch.bfloat16)),
        ((12, 0), torch.bfloat16),
    ],
)
def test_bf16_is_chosen_on_gpus_that_have_it_and_not_where_it_is_emulated(
    capability, expected, monkeypatch
):
    chips = {None: (8, 0), 1: capability}  # the one in use is another
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: chips[device.index])
    assert resolve_dtype("auto", torch.device("cuda:1")) == expected
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("bf16", torch.device("cuda:1")) == torch.bfloat16, "asked for"


@pytest.mark.slow
def test_the_shipped_model_runs_without_our_code(tmp_path):
    script = f"""
import sys
from diffusers import WanPipeline
pipe = WanPipeline.from_pretrained({str(BUILTIN_FOLDER)!r}, local_files_only=True)
pipe.to("cpu", dtype=__import__("torch").float32)
frames = pipe("a red ball", height=32, width=32, num_frames=5, num_inference_steps=1,
              max_sequence_length=24).frames
assert frames.shape == (1, 5, 32, 32, 3) and (frames == frames).all()
assert not {{"svg2", "kernels", "viz"}} & set(sys.modules)
"""
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def hub_cache(folder, root, hub_id):
    """Make a cache in the hub client's layout: blobs, and a snapshot of links to them."""
    base = root / f"models--{hub_id.replace('/', '--')}"
    commit = "0" * 40
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(commit)
    for i, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob = base / "blobs" / f"{i:040x}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(path, blob)
        link = base / "snapshots" / commit / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return base


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _was_online.cache_clear()
    yield tmp_path / "hub"
    _was_online.cache_clear()


@pytest.mark.slow
def test_a_hub_id_is_loaded_from_the_cache_without_a_network(folder, offline_hub):
    hub_ids = ["someone/tiny-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
    script = f"""
from svg2.models.finding import model_spec, snapshot
from svg2.models.loading import load_pipeline
for hub_id in {hub_ids!r}:
    spec = model_spec(hub_id)
    assert snapshot(hub_id) is not None
    pipe = load_pipeline(spec, "fp32", "cpu")
    assert pipe.transformer.config.num_layers == 3
    assert spec.source == hub_id and not spec.is_local
"""
    for hub_id in hub_ids:
        hub_cache(folder, offline_hub, hub_id)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_CACHE": str(offline_hub), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_interrupted_download_is_not_a_snapshot(folder, offline_hub):
    base = hub_cache(folder, offline_hub, "someone/tiny")
    assert snapshot("someone/tiny") is not None
    next(base.rglob("transformer/*.safetensors")).unlink()
    assert snapshot("someone/tiny") is None


def test_a_download_without_its_small_files_is_refused_offline(folder, offline_hub):
    base = hub_cache(folder, offline_hub, "someone/tiny")
    assert model_spec("someone/tiny").source == "someone/tiny"
    next(base.rglob("vae/config.json")).unlink()
    with pytest.raises(RequestError, match="not downloaded and there is no network"):
        model_spec("someone/tiny")


@pytest.mark.parametrize("model", ["wan2.1-1.3b", "wan2.2-t2v-a14b", "hunyuanvideo"])
def test_without_network_and_weights_the_message_names_the_download_and_its_size(
    model, offline_hub
):
    spec = model_spec(model)
    with pytest.raises(ModelUnavailable) as caught:
        load_pipeline(spec, "fp32", "cpu")
    sentence = str(caught.value)
    assert spec.source in sentence
    assert f"{spec.published.download_gb:.0f} GB" in sentence
    assert "\n" not in sentence
    with pytest.raises(RequestError, match="someone/else is not downloaded"):
        model_spec("someone/else")


def test_a_gpu_with_too_little_memory_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: SimpleNamespace(total_memory=8 << 30),
    )
    reason = availability(model_spec("wan2.1-14b"))
    assert reason is not None
    assert "this GPU has 8 GiB" in reason
    assert "GPU memory" in reason


def test_the_text_encoder_must_fit_too():
    assert "about 11 GiB" in model_spec("wan2.1-1.3b").needs
    assert "about 34 GiB" in model_spec("wan2.1-14b").needs


def test_presets_differ_in_budget_and_warm_up():
    spec = model_spec("wan2.1-14b")
    fast, published, faithful = (
        spec.preset(name).config for name in ("fast", "published", "faithful")
    )
    assert published == spec.config
    assert (published.num_q_clusters, published.num_k_clusters) == (300, 1000)
    assert (published.warmup_fraction, published.dense_layers) == (0.2, 2)
    assert fast.top_p < published.top_p < faithful.top_p
    assert fast.warmup_fraction < published.warmup_fraction < faithful.warmup_fraction
    with pytest.raises(ConfigError, match="magic"):
        spec.preset("magic")


@pytest.mark.parametrize(
    ("model", "frames", "steps"), [("builtin", 17, 8), ("wan2.1-14b", 41, 30)]
)
def test_a_draft_is_shorter(model, frames, steps):
    spec = model_spec(model)
    draft = spec.preset("draft")
    assert (draft.num_frames, draft.num_inference_steps) == (frames, steps)
    assert frames < spec.num_frames
    assert steps <= spec.num_inference_steps
    assert draft.config == spec.config
    assert draft.resolve(Request("a red ball", model=model)).num_frames == frames


def test_no_message_gives_the_path_of_our_files(monkeypatch, tmp_path):
    monkeypatch.setattr("svg2.models.finding.BUILTIN_FOLDER", tmp_path / "gone")
    with pytest.raises(RequestError) as caught:
        model_spec("builtin")
    assert str(tmp_path) not in str(caught.value)
