"""The models that can be generated with: what each needs, its defaults, and how it is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svg2.config import ConfigError, SVG2Config
from svg2.request import RequestError

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline

BUILTIN_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "models" / "builtin"

MODELS = {
    "builtin": "our own small model of moving shapes, made for CPUs",
    "wan2.1-1.3b": "Wan 2.1 text to video, 1.3 billion parameters",
    "wan2.1-14b": "Wan 2.1 text to video, 14 billion parameters",
}
"""Model id to one line of what it is. The path of a WanPipeline's folder is a model too."""


class ModelUnavailable(RuntimeError):
    """The model is known but can't be loaded here; the message is one sentence."""


@dataclass(frozen=True)
class ModelSpec:
    """One model: where its weights are, what it needs, its defaults and limits.

    Attributes:
        source: folder or Hugging Face id that `WanPipeline.from_pretrained` takes.
        needs: what it takes to run it, in one sentence.
        config: SVG2 settings that suit it.
        fps: frames per second of its clips.
        size_multiple: height and width are multiples of this many pixels.
        frame_stride: frames are one more than a multiple of this.
        latent_stride: pixels per latent row and column; patch: latent frames, rows and columns per
            token.
        max_tokens: the longest video it takes, in tokens.
    """

    id: str
    title: str
    source: str
    needs: str
    is_local: bool
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int
    fps: float
    config: SVG2Config
    size_multiple: int = 16
    frame_stride: int = 4
    latent_stride: int = 8
    patch: tuple[int, int, int] = (1, 2, 2)
    max_tokens: int = 200_000

    def config_for(self, num_frames: int, height: int, width: int) -> SVG2Config:
        """The settings that suit the model at a size; a short video gets fewer clusters."""
        most = max(1, math.prod(self.grid(num_frames, height, width)) // 4)
        return self.config.replace(
            num_q_clusters=min(self.config.num_q_clusters, most),
            num_k_clusters=min(self.config.num_k_clusters, most),
        )

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of tokens (T, Y, X) of a video."""
        frames = (num_frames - 1) // self.frame_stride + 1
        rows, columns = height // self.latent_stride, width // self.latent_stride
        return frames // self.patch[0], rows // self.patch[1], columns // self.patch[2]


_WAN_1_3B = ModelSpec(
    id="wan2.1-1.3b",
    title="Wan 2.1 1.3B",
    source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    needs="It needs an NVIDIA GPU, and the network to download its weights.",
    is_local=False,
    height=480,
    width=832,
    num_frames=81,
    num_inference_steps=50,
    guidance_scale=5.0,
    max_sequence_length=512,
    fps=16,
    config=SVG2Config(num_q_clusters=200, num_k_clusters=1000),
)
_HUB_SPECS = {
    "wan2.1-1.3b": _WAN_1_3B,
    "wan2.1-14b": replace(
        _WAN_1_3B,
        id="wan2.1-14b",
        title="Wan 2.1 14B",
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        needs="It needs an NVIDIA GPU, and the network to download its weights.",
        height=720,
        width=1280,
        config=SVG2Config(num_q_clusters=300, num_k_clusters=1000, dense_layers=1),
    ),
}


def model_spec(model: str) -> ModelSpec:
    """The spec of a model id, or of a folder that holds a WanPipeline.

    Raises:
        RequestError: no such model, or the folder holds none.
    """
    if model in _HUB_SPECS:
        return _HUB_SPECS[model]
    if model == "builtin":
        if not (BUILTIN_FOLDER / "model_index.json").is_file():
            raise RequestError(f"The built-in model is missing from {BUILTIN_FOLDER}.")
        return _folder_spec("builtin", BUILTIN_FOLDER)
    folder = Path(model)
    if not _holds_pipeline(folder):
        raise RequestError(
            f"Unknown model {model[:100]!r}: choose one of {', '.join(MODELS)}, "
            "or the folder of a WanPipeline."
        )
    return _folder_spec(model, folder)


def availability(spec: ModelSpec) -> str | None:
    """None when the model can be loaded here, else one sentence that says what is missing."""
    if spec.is_local:
        return None
    import torch

    if not torch.cuda.is_available():
        return f"{spec.title} is not available here: no GPU was found. {spec.needs}"
    if not _is_cached(spec.source):
        return f"{spec.title} is not downloaded yet, which takes a network. {spec.needs}"
    return None


def resolve_device(device: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names.

    Raises:
        RequestError: there is no such GPU.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device)
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise RequestError(f"There is no device {device} here: {count} GPUs were found.")
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The precision of `auto`, `fp32`, `bf16` or `fp16` on a device.

    Auto is bf16 only where the hardware multiplies in it: GPUs from Ampere on and CPUs that
    have instructions for it. Others take hundreds of times longer in bf16 than in fp32.
    """
    import torch

    from kernels import bf16_is_native

    if dtype != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if bf16_is_native() else torch.float32


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto") -> WanPipeline:
    """A WanPipeline with its weights on the device; its VAE stays in fp32, as Wan's own advice is.

    Raises:
        RequestError: unknown model or device.
        ModelUnavailable: its weights can't be had here.
    """
    spec = model_spec(model)
    target = resolve_device(device)
    if not spec.is_local and target.type != "cuda" and device == "auto":
        raise ModelUnavailable(
            f"{spec.title} is not available here: no GPU was found. {spec.needs}"
        )
    precision = resolve_dtype(dtype, target)

    import torch
    from diffusers import WanPipeline
    from safetensors import SafetensorError

    try:
        with _no_bars() if spec.is_local else nullcontext():  # a download should be seen
            pipe = WanPipeline.from_pretrained(
                spec.source,
                dtype={"default": precision, "vae": torch.float32},
                local_files_only=spec.is_local,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelUnavailable(f"{spec.title} could not be loaded: {reason[0]}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(target)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars that diffusers and transformers draw on stderr for each part."""
    import diffusers.utils.logging
    import transformers.utils.logging

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    for logger in shown:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "model_index.json"), str)


def _holds_pipeline(folder: Path) -> bool:
    try:
        return (folder / "model_index.json").is_file()
    except OSError:  # no name that a file could have
        return False


def _folder_spec(model_id: str, folder: Path) -> ModelSpec:
    """Spec of a local WanPipeline, from its own configs and, where it has one, its `lab.json`."""
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != "WanPipeline":
        raise RequestError(
            f"{folder} holds a {index.get('_class_name')!r}, and only a WanPipeline will do."
        )
    vae = _read_json(folder / "vae" / "config.json")
    transformer = _read_json(folder / "transformer" / "config.json")
    lab_file = folder / "lab.json"
    lab = _read_json(lab_file) if lab_file.is_file() else {}
    is_builtin = model_id == "builtin"
    try:
        config = SVG2Config(**{name: lab[name] for name in SVG2Config().to_dict() if name in lab})
        fields: dict[str, Any] = {
            name: lab.get(name, getattr(_WAN_1_3B, name))
            for name in (
                *("height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
                *("max_sequence_length", "fps"),
            )
        }
        latent_stride = int(vae.get("scale_factor_spatial", 8))
        patch_t, patch_y, patch_x = (int(side) for side in transformer["patch_size"])
        return ModelSpec(
            id=model_id,
            title="the built-in model" if is_builtin else folder.name,
            source=str(folder),
            needs="It runs on two CPU cores." if is_builtin else "Its weights are on this disk.",
            is_local=True,
            config=config,
            # WanPipeline itself asks for 16, whatever its VAE
            size_multiple=math.lcm(16, latent_stride * patch_y, latent_stride * patch_x),
            frame_stride=int(vae.get("scale_factor_temporal", 4)),
            latent_stride=latent_stride,
            patch=(patch_t, patch_y, patch_x),
            max_tokens=int(lab.get("max_tokens", 32_768 if is_builtin else 200_000)),
            **fields,
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise RequestError(f"The configuration in {folder} can't be used: {error}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read as JSON.") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds no JSON object.")
    return content
