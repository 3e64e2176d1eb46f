"""The models that can be generated with: what each needs, its defaults, and how it is loaded."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svg2.config import ConfigError, SVG2Config, ceil_fraction
from svg2.inputs import check_image, check_video
from svg2.memory import GIB, MemoryNeed, memory_need
from svg2.menu import PUBLISHED, Published
from svg2.pipelines import PIPELINES, PipelineKind
from svg2.request import Request, RequestError

if TYPE_CHECKING:
    import torch

BUILTIN_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "models" / "builtin"

MODELS: Mapping[str, str] = {
    "builtin": "our own small model of moving shapes, made for CPUs",
    **{
        name: f"{row.title}, {row.parameters / 1e9:.1f} billion parameters with its text encoder"
        for name, row in PUBLISHED.items()
    },
}
"""Model id to one line of what it is. A pipeline's folder and its hub id are models too."""

PRESETS: Mapping[str, str] = {
    "published": "the settings that were published for the model",
    "fast": "a smaller budget and half the dense warm-up",
    "faithful": "a larger budget and a dense warm-up of 30 % of the steps",
    "draft": "fewer frames and steps, for the impatient",
}

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_CONFIG_FILES = ("model_index.json", "vae/config.json", "transformer/config.json")
_DENSE_LAYERS_SHARE = 0.03
_NUM_K_CLUSTERS = 1000
_DRAFT = ("num_frames", "num_inference_steps")


class ModelUnavailable(RuntimeError):
    """The model is known but can't be loaded here; the message is one sentence."""


@dataclass(frozen=True)
class ModelSpec:
    """One model: where its weights are, what it needs, its defaults and limits.

    Attributes:
        source: folder or Hugging Face id that `from_pretrained` takes.
        kind: the pipeline that runs it.
        needs: what it takes to run it, in one sentence.
        config: SVG2 settings that suit it.
        fps: frames per second of its clips.
        size_multiple: height and width are multiples of this many pixels.
        frame_stride: frames are one more than a multiple of this.
        latent_stride: pixels per latent row and column; patch: latent frames, rows and columns per
            token.
        max_tokens: the longest video it takes, in tokens.
        draft: frames and steps of a draft, where the model has its own.
        expand_timesteps: it was trained for one time a token, so that it takes an image as well.
        published: its row of the menu, if it has one.
    """

    title: str
    source: str
    kind: PipelineKind
    needs: str
    is_local: bool
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int | None
    fps: float
    config: SVG2Config
    guidance_scale_2: float | None = None
    size_multiple: int = 16
    frame_stride: int = 4
    latent_stride: int = 8
    patch: tuple[int, int, int] = (1, 2, 2)
    max_tokens: int = 200_000
    draft: Mapping[str, int] = field(default_factory=dict)
    expand_timesteps: bool = False
    published: Published | None = field(default=None, repr=False)

    def config_for(self, num_frames: int, height: int, width: int) -> SVG2Config:
        """The settings that suit the model at a size; a short video gets fewer clusters."""
        most = max(1, math.prod(self.grid(num_frames, height, width)) // 4)
        return self.config.replace(
            num_q_clusters=min(self.config.num_q_clusters, most),
            num_k_clusters=min(self.config.num_k_clusters, most),
        )

    def preset(self, name: str) -> ModelSpec:
        """This model with the settings of a preset.

        Raises:
            ConfigError: there is no such preset.
        """
        config = self.config
        if name == "fast":
            config = config.replace(top_p=0.8, warmup_fraction=config.warmup_fraction / 2)
        elif name == "faithful":
            warmup = max(0.3, config.warmup_fraction)
            config = config.replace(top_p=0.95, warmup_fraction=warmup)
        elif name == "draft":
            half = (self.num_frames - 1) // 2
            usual = {
                "num_frames": half - half % self.frame_stride + 1,
                "num_inference_steps": ceil_fraction(0.6, self.num_inference_steps),
            }
            return replace(self, **{**usual, **self.draft})
        elif name not in PRESETS:
            raise ConfigError(f"Unknown preset {name!r}: choose one of {', '.join(PRESETS)}.")
        return replace(self, config=config)

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of tokens (T, Y, X) of a video."""
        frames = (num_frames - 1) // self.frame_stride + 1
        rows, columns = height // self.latent_stride, width // self.latent_stride
        return frames // self.patch[0], rows // self.patch[1], columns // self.patch[2]

    def kind_for(self, request: Request) -> PipelineKind:
        """The pipeline that a request takes: another where it starts from an image or video."""
        if request.image is not None and self.kind.takes != "image" and self.expand_timesteps:
            return PIPELINES["WanImageToVideoPipeline"]
        is_plain = not self.expand_timesteps and self.guidance_scale_2 is None
        has_other = self.kind.with_video is not None and is_plain
        if request.video is not None and self.kind.takes != "video" and has_other:
            return PIPELINES[str(self.kind.with_video)]
        return self.kind

    def check_given(self, request: Request) -> None:
        """Check the image or video of a request, and how it is guided.

        Raises:
            RequestError: it is missing, not wanted or no such file.
        """
        kind = self.kind_for(request)
        for name, check in (("image", check_image), ("video", check_video)):
            path = getattr(request, name)
            if path is None and kind.takes == name and kind.needs_input:
                raise RequestError(f"{_upper(self.title)} starts from {_a(name)}: name its file.")
            if path is None:
                continue
            if kind.takes != name:
                raise RequestError(f"{_upper(self.title)} takes no {name}.")
            check(path)
        if kind.guidance != "embedded":
            if request.true_cfg_scale != 1:
                raise RequestError(
                    f"{_upper(self.title)} has no true_cfg_scale: its guidance_scale weighs the "
                    "negative prompt."
                )
        elif request.negative_prompt and request.true_cfg_scale <= 1:
            raise RequestError(
                f"{_upper(self.title)} reads a negative prompt only with a true_cfg_scale above 1."
            )
        if request.guidance_scale_2 is not None and self.guidance_scale_2 is None:
            raise RequestError(
                f"{_upper(self.title)} has one transformer and no guidance_scale_2."
            )

    def memory(self, num_frames: int, height: int, width: int) -> MemoryNeed | None:
        """What a step at this size holds; None for a model that is not on the menu."""
        if self.published is None:
            return None
        tokens = math.prod(self.grid(num_frames, height, width))
        size = (num_frames, height, width)
        return memory_need(self.published.shape, tokens, self.config_for(*size))


def model_spec(model: str) -> ModelSpec:
    """The spec of a model id, of a hub id, or of a folder that holds a pipeline.

    Raises:
        RequestError: no such model, the folder holds none, or a hub id's is none of ours.
    """
    if model in PUBLISHED:
        return _published_spec(model, PUBLISHED[model])
    if model == "builtin":
        if not (BUILTIN_FOLDER / "model_index.json").is_file():
            raise RequestError("The built-in model is missing from assets/models/builtin.")
        return _folder_spec("builtin", BUILTIN_FOLDER, "the built-in model")
    if _is_folder(model):
        return _folder_spec(model, Path(model), Path(model).name)
    for name, row in PUBLISHED.items():
        if row.hub_id == model:
            return _published_spec(name, row)
    if _HUB_ID.fullmatch(model):
        return _hub_spec(model)
    raise RequestError(
        f"Unknown model {model[:100]!r}: name one that `python -m svg2 models` lists, the folder "
        "of a pipeline, or a hub id."
    )


def availability(spec: ModelSpec) -> str | None:
    """None when the model can be loaded here, else one sentence that says what is missing."""
    if spec.is_local:
        return None
    import torch

    if not torch.cuda.is_available():
        return _without_gpu(spec)
    total = torch.cuda.get_device_properties(0).total_memory
    least = _least_bytes(spec)
    if least is not None and least > total:
        return (
            f"{spec.title} is not available here: it takes about {least / GIB:.0f} GiB of GPU "
            f"memory, and this GPU has {total / GIB:.0f}."
        )
    return _missing_download(spec)


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


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto") -> Any:
    """A model's pipeline with its weights on the device, or kept off it where they are too large.

    VAE and image encoder stay in fp32, as Wan's own advice is.

    Raises:
        RequestError: unknown model or device.
        ModelUnavailable: its weights can't be had here.
    """
    spec = model_spec(model)
    target = resolve_device(device)
    if not spec.is_local and target.type != "cuda" and device == "auto":
        raise ModelUnavailable(_without_gpu(spec))
    missing = None if spec.is_local else _missing_download(spec)
    if missing is not None:
        raise ModelUnavailable(missing)

    import diffusers
    import torch
    from safetensors import SafetensorError

    default = resolve_dtype(dtype, target)
    precision = {"default": default, "vae": torch.float32}
    if spec.kind.takes == "image" and not spec.kind.joint_text:
        precision["image_encoder"] = torch.float32
    is_here = spec.is_local or snapshot(spec.source) is not None
    try:
        with _no_bars() if is_here else nullcontext():  # a download should be seen
            pipe = getattr(diffusers, spec.kind.name).from_pretrained(
                spec.source, dtype=precision, local_files_only=is_here
            )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelUnavailable(f"{spec.title} could not be loaded: {reason[0]}") from error
    pipe.set_progress_bar_config(disable=True)
    if spec.published is not None and spec.published.flow_shift is not None:
        scheduler = pipe.scheduler
        pipe.scheduler = type(scheduler).from_config(
            scheduler.config, flow_shift=spec.published.flow_shift
        )
    if target.type == "cuda" and _must_offload(spec, target):
        pipe.enable_model_cpu_offload(device=target)
        return pipe
    return pipe.to(target)


def as_kind(pipe: Any, kind: PipelineKind) -> Any:
    """The same weights under another pipeline class; the pipeline itself where it is that."""
    if type(pipe).__name__ == kind.name:
        return pipe
    import diffusers

    kind_class = getattr(diffusers, kind.name)
    wanted = inspect.signature(kind_class.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in wanted}
    settings = {name: value for name, value in pipe.config.items() if name in wanted}
    other = kind_class(**{**settings, **parts})
    other.set_progress_bar_config(disable=True)
    return other


def snapshot(hub_id: str) -> Path | None:
    """The folder of a hub id in this machine's cache, if all of its files are there."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, "model_index.json")
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    return folder if all(_is_whole(folder / name) for name in _parts(folder)) else None


def is_online() -> bool:
    """Whether the hub can be reached, as far as a quick look at most a minute ago tells."""
    return _was_online(int(time.monotonic() / 60))


@functools.lru_cache(maxsize=1)
def _was_online(minute: int) -> bool:
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlparse(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=3):
            return True
    except OSError:
        return False


def _without_gpu(spec: ModelSpec) -> str:
    return f"{spec.title} is not available here: no GPU was found. {spec.needs}"


def _missing_download(spec: ModelSpec) -> str | None:
    if snapshot(spec.source) is not None or is_online():
        return None
    size = ""
    if spec.published is not None:
        size = f" (about {spec.published.download_gb:.0f} GB in bf16)"
    return (
        f"{spec.title} is not downloaded and there is no network: download {spec.source}{size} "
        "with a network first."
    )


def _least_bytes(spec: ModelSpec) -> int | None:
    """GPU memory without which it can't run, its networks taking turns there."""
    need = spec.memory(spec.num_frames, spec.height, spec.width)
    if need is None or spec.published is None:
        return None
    # A small transformer's turn takes less than its text encoder's.
    return max(need.dense_peak + need.added, 2 * spec.published.others)


def _must_offload(spec: ModelSpec, device: torch.device) -> bool:
    import torch

    need = spec.memory(spec.num_frames, spec.height, spec.width)
    if need is None or spec.published is None:
        return False
    rest = 2 * (spec.published.parameters - spec.published.shape.parameters)
    return (
        need.dense_peak + need.added + rest > torch.cuda.get_device_properties(device).total_memory
    )


def _parts(folder: Path) -> list[str]:
    """The networks of a pipeline, by name of their folder."""
    index = _read_json(folder, "model_index.json")
    return [
        name
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
    ]


def _is_whole(folder: Path) -> bool:
    """Whether a part of a pipeline has all of the files that its own index names."""
    if not folder.is_dir():
        return False
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        shards = set(_read_json(folder, indexes[0].name).get("weight_map", {}).values())
        return all((folder / name).is_file() for name in shards)
    is_network = (folder / "config.json").is_file()
    weights = (*folder.glob("*.safetensors"), *folder.glob("*.bin"))
    return bool(weights) or not is_network


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


def _is_folder(model: str) -> bool:
    try:
        return (Path(model) / "model_index.json").is_file()
    except (OSError, ValueError):  # no name that a file could have
        return False


def _published_config(kind: PipelineKind, height: int, layers: int) -> SVG2Config:
    """The method's published settings for a family, at a model's usual height and depth."""
    return SVG2Config(
        num_q_clusters=kind.num_q_clusters(height),
        num_k_clusters=_NUM_K_CLUSTERS,
        warmup_fraction=kind.warmup_fraction,
        dense_layers=ceil_fraction(_DENSE_LAYERS_SHARE, layers),
    )


def _published_spec(name: str, row: Published) -> ModelSpec:
    kind = PIPELINES[row.pipeline]
    config = _published_config(kind, row.height, row.shape.layers)
    spec = ModelSpec(
        title=row.title,
        source=row.hub_id,
        kind=kind,
        needs="",
        is_local=False,
        height=row.height,
        width=row.width,
        num_frames=row.num_frames,
        num_inference_steps=row.num_inference_steps,
        guidance_scale=row.guidance_scale,
        guidance_scale_2=row.guidance_scale_2,
        max_sequence_length=kind.max_sequence_length,
        fps=row.fps,
        config=config,
        size_multiple=math.lcm(16, 2 * row.latent_stride),
        latent_stride=row.latent_stride,
        expand_timesteps=row.expand_timesteps,
        published=row,
    )
    least = _least_bytes(spec) or 0
    needs = (
        f"It needs an NVIDIA GPU with about {least / GIB:.0f} GiB of memory, and a download of "
        f"about {row.download_gb:.0f} GB."
    )
    return replace(spec, needs=needs)


def _hub_spec(hub_id: str) -> ModelSpec:
    """Spec of any hub id: from the cache, or from its small files alone."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(hub_id, name) for name in _CONFIG_FILES]
    if isinstance(cached[0], str) and all(isinstance(path, str) for path in cached):
        folder = Path(cached[0]).parent
    elif not is_online():
        raise RequestError(
            f"The model {hub_id} is not downloaded and there is no network: download it with a "
            "network first."
        )
    else:
        try:
            files = [hf_hub_download(hub_id, name) for name in _CONFIG_FILES]
        except (OSError, ValueError) as error:
            raise RequestError(
                f"The hub has no pipeline {hub_id} that can be read without an account."
            ) from error
        folder = Path(files[0]).parent
    spec = _folder_spec(hub_id, folder, hub_id)
    return replace(spec, source=hub_id, is_local=False, needs="It needs an NVIDIA GPU.")


def _folder_spec(model_id: str, folder: Path, title: str) -> ModelSpec:
    """Spec of a pipeline on this disk, from its own configs and its `lab.json`, if it has one."""
    index = _read_json(folder, "model_index.json")
    kind = PIPELINES.get(str(index.get("_class_name")))
    if kind is None:
        raise RequestError(
            f"{_upper(title)} is a {index.get('_class_name')!r}, and only these will do: "
            f"{', '.join(PIPELINES)}."
        )
    vae = _read_json(folder, "vae/config.json")
    transformer = _read_json(folder, "transformer/config.json")
    lab = _read_json(folder, "lab.json") if (folder / "lab.json").is_file() else {}
    is_builtin = model_id == "builtin"
    try:
        fields: dict[str, Any] = {
            name: lab.get(name, getattr(kind, name))
            for name in (
                *("height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
                *("max_sequence_length", "fps"),
            )
        }
        published = _published_config(kind, fields["height"], _num_layers(transformer))
        config = published.replace(
            **{name: lab[name] for name in published.to_dict() if name in lab}
        )
        latent_stride = _stride(vae, "spatial", 8)
        patch = _patch(transformer)
        two_experts = index.get("boundary_ratio") is not None
        return ModelSpec(
            title=title,
            source=str(folder),
            kind=kind,
            needs="It runs on two CPU cores." if is_builtin else "Its weights are on this disk.",
            is_local=True,
            config=config,
            guidance_scale_2=fields["guidance_scale"] if two_experts else None,
            # WanPipeline itself asks for 16, whatever its VAE
            size_multiple=math.lcm(16, latent_stride * patch[1], latent_stride * patch[2]),
            frame_stride=_stride(vae, "temporal", 4),
            latent_stride=latent_stride,
            patch=patch,
            max_tokens=int(lab.get("max_tokens", 32_768 if is_builtin else 200_000)),
            draft={k: int(v) for k, v in dict(lab.get("draft", {})).items() if k in _DRAFT},
            expand_timesteps=bool(index.get("expand_timesteps")),
            **fields,
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise RequestError(f"The configuration of {title} can't be used: {error}.") from error


def _num_layers(transformer: Mapping[str, Any]) -> int:
    return int(transformer["num_layers"]) + int(transformer.get("num_single_layers") or 0)


def _stride(vae: Mapping[str, Any], axis: str, default: int) -> int:
    """Pixels or frames per latent, which VAEs name in two ways."""
    for name in (f"scale_factor_{axis}", f"{axis}_compression_ratio"):
        if name in vae:
            return int(vae[name])
    return default


def _patch(transformer: Mapping[str, Any]) -> tuple[int, int, int]:
    """Latent frames, rows and columns per token, which transformers name in two ways."""
    patch = transformer["patch_size"]
    if isinstance(patch, int):
        return int(transformer.get("patch_size_t", 1)), patch, patch
    patch_t, patch_y, patch_x = (int(side) for side in patch)
    return patch_t, patch_y, patch_x


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """A file of a model. Messages name it within the model, and not where that is."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"The model's {name} can't be read as JSON.") from error
    if not isinstance(content, dict):
        raise RequestError(f"The model's {name} holds no JSON object.")
    return content


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
