import subprocess
import sys

import pytest
import torch

from kernels import bf16_is_native
from svg2.models import (
    BUILTIN_FOLDER,
    MODELS,
    ModelUnavailable,
    availability,
    load_pipeline,
    model_spec,
    resolve_device,
    resolve_dtype,
)
from svg2.request import RequestError
from tests.svg2.pipelines import LAB, make_model_folder


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
    pipe = load_pipeline(str(folder), "bf16", "cpu")
    assert pipe.transformer.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.float32
    assert load_pipeline(str(folder), "fp32", "cpu").transformer.dtype == torch.float32


def test_damaged_weights_are_one_sentence(tiny_pipeline_path, tmp_path):
    broken = make_model_folder(tiny_pipeline_path, tmp_path / "broken")
    weights = next((broken / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelUnavailable) as caught:
        load_pipeline(str(broken), "fp32", "cpu")
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
                load_pipeline(model)


def test_devices_and_precisions():
    cpu = resolve_device("cpu")
    assert resolve_dtype("bf16", cpu) == torch.bfloat16
    expected = torch.bfloat16 if bf16_is_native() else torch.float32
    assert resolve_dtype("auto", cpu) == expected
    with pytest.raises(RequestError):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_the_shipped_model_needs_nothing_of_ours(tmp_path):
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
