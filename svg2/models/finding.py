"""Finding a model by its id: in the catalogue, in a folder, in the hub's cache or on the hub."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from svg2.config import ROUTED_METHOD, SVG2Config, ceil_fraction
from svg2.errors import ConfigError, RequestError
from svg2.git_lfs import ADVICE, is_pointer_file
from svg2.models.catalogue import PUBLISHED, Published
from svg2.models.memory_estimate import GIB
from svg2.models.pipelines import PIPELINES, PipelineKind
from svg2.models.request import MODEL_DEFAULTS
from svg2.models.spec import DRAFT_SETTINGS, ModelSpec

BUILTIN_FOLDER = Path(__file__).resolve().parent.parent.parent / "assets" / "models" / "builtin"

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_OF_A_PROXY = (407, 502, 503, 504)  # status codes where it has not reached the hub
_CONFIG_FILES = ("model_index.json", "vae/config.json", "transformer/config.json")
_DENSE_LAYERS_SHARE = 0.03
_NUM_K_CLUSTERS = 1000


def model_spec(model: str) -> ModelSpec:
    """The spec of a model.

    Args:
        model: an id of `svg2.models.catalogue.MODELS`, the folder of a pipeline, or a hub id.

    Raises:
        RequestError: an unknown or missing model; an unsupported pipeline class; or a
            configuration that can't be read.
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
        f"Unknown model {model[:100]!r}: choose one that `python -m svg2 models` lists, the "
        "folder of a pipeline, or a hub id."
    )


def snapshot(hub_id: str) -> Path | None:
    """The folder of a hub id in this machine's cache; None if the download is not complete."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, "model_index.json")
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    return folder if all(_is_whole(folder / name) for name in _parts(folder)) else None


def is_online() -> bool:
    """Whether the hub can be reached; the answer is up to a minute old."""
    return _was_online(int(time.monotonic() / 60))


@functools.lru_cache(maxsize=1)
def _was_online(minute: int) -> bool:  # the argument is the key of the cache
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:  # as a download does it, through the proxies of the environment
        status = get_session().head(constants.ENDPOINT, timeout=3).status_code
    except Exception:  # whatever the network, a proxy or the client's library raises
        return False
    return status not in _OF_A_PROXY


def unreachable() -> str:
    """Why the hub can't be reached, as a clause with what to do."""
    from huggingface_hub import constants

    names = ("https_proxy", "http_proxy", "all_proxy")
    proxies = " or ".join(name for name in os.environ if name.lower() in names)
    if not proxies or constants.HF_HUB_OFFLINE:
        return "there is no network: connect to one and"
    return f"the hub can't be reached through the proxy that {proxies} names: mend that and"


def least_bytes(spec: ModelSpec) -> int | None:
    """GPU memory in bytes that a model needs if one of its networks is on the GPU at a time.

    None for a model that is not in the catalogue.
    """
    need = spec.memory(spec.num_frames, spec.height, spec.width)
    if need is None or spec.published is None:
        return None
    # The text encoder of a small model needs more than its transformer.
    return max(need.dense_peak + need.added, 2 * spec.published.others)


def _parts(folder: Path) -> list[str]:
    """Folder names of the parts of a pipeline."""
    index = _read_json(folder, "model_index.json")
    return [
        name
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
    ]


def _is_whole(folder: Path) -> bool:
    """Whether a part of a pipeline has its weights: all files of its index, if it has one."""
    if not folder.is_dir():
        return False
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        shards = set(_read_json(folder, indexes[0].name).get("weight_map", {}).values())
        return all((folder / name).is_file() for name in shards)
    is_network = (folder / "config.json").is_file()
    weights = (*folder.glob("*.safetensors"), *folder.glob("*.bin"))
    return bool(weights) or not is_network


def _is_folder(model: str) -> bool:
    try:
        return (Path(model) / "model_index.json").is_file()
    except (OSError, ValueError):  # not a valid path
        return False


# Stand-ins for each pair of clusters take gigabytes in a large model.
_METHOD_SETTINGS = {ROUTED_METHOD: {"stand_ins": "means", "min_keep_ratio": 0.0}}


def _published_config(kind: PipelineKind, height: int, layers: int) -> SVG2Config:
    """Settings that the method's authors published, by family, default height in px and layers."""
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
        method_settings=_METHOD_SETTINGS,
        size_multiple=math.lcm(16, 2 * row.latent_stride),
        latent_stride=row.latent_stride,
        expand_timesteps=row.expand_timesteps,
        published=row,
    )
    least = least_bytes(spec) or 0
    needs = (
        f"It needs an NVIDIA GPU with about {least / GIB:.0f} GiB of memory, and a download of "
        f"about {row.download_gb:.0f} GB."
    )
    return replace(spec, needs=needs)


def _hub_spec(hub_id: str) -> ModelSpec:
    """Spec of a hub id, from its small configuration files in the cache or on the hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(hub_id, name) for name in _CONFIG_FILES]
    if isinstance(cached[0], str) and all(isinstance(path, str) for path in cached):
        folder = Path(cached[0]).parent
    elif not is_online():
        raise RequestError(
            f"The model {hub_id} is not downloaded and {unreachable()} download it first."
        )
    else:
        try:
            files = [hf_hub_download(hub_id, name) for name in _CONFIG_FILES]
        except (OSError, ValueError) as error:
            raise RequestError(
                f"The hub has no readable pipeline {hub_id}: check the id, and log in to the hub "
                "if the model needs an account."
            ) from error
        folder = Path(files[0]).parent
    spec = _folder_spec(hub_id, folder, hub_id)
    return replace(spec, source=hub_id, is_local=False, needs="It needs an NVIDIA GPU.")


def _folder_spec(model_id: str, folder: Path, title: str) -> ModelSpec:
    """Spec of a pipeline in a folder, from its configuration files.

    A file `lab.json` in the folder overrides the default request and settings.
    """
    index = _read_json(folder, "model_index.json")
    kind = PIPELINES.get(str(index.get("_class_name")))
    if kind is None:
        raise RequestError(
            f"The pipeline class {index.get('_class_name')!r} of {title} is not supported: use "
            f"one of {', '.join(PIPELINES)}."
        )
    vae = _read_json(folder, "vae/config.json")
    transformer = _read_json(folder, "transformer/config.json")
    lab = _read_json(folder, "lab.json") if (folder / "lab.json").is_file() else {}
    is_builtin = model_id == "builtin"
    try:
        fields: dict[str, Any] = {
            name: lab.get(name, getattr(kind, name))
            for name in (*MODEL_DEFAULTS, "max_sequence_length", "fps")
        }
        published = _published_config(kind, fields["height"], _num_layers(transformer))
        config = published.replace(
            **{name: lab[name] for name in published.to_dict() if name in lab}
        )
        method_settings = dict(lab.get("methods", _METHOD_SETTINGS))
        for method, settings in method_settings.items():
            config.replace(method=method, **settings)  # checks them
        latent_stride = _stride(vae, "spatial", 8)
        patch = _patch(transformer)
        two_experts = index.get("boundary_ratio") is not None
        return ModelSpec(
            title=title,
            source=str(folder),
            kind=kind,
            needs="It runs on two CPU cores." if is_builtin else "Its weights are on disk here.",
            is_local=True,
            config=config,
            method_settings=method_settings,
            guidance_scale_2=fields["guidance_scale"] if two_experts else None,
            # WanPipeline requires a multiple of 16 with every VAE
            size_multiple=math.lcm(16, latent_stride * patch[1], latent_stride * patch[2]),
            frame_stride=_stride(vae, "temporal", 4),
            latent_stride=latent_stride,
            patch=patch,
            max_tokens=int(lab.get("max_tokens", 32_768 if is_builtin else 200_000)),
            draft={
                k: int(v) for k, v in dict(lab.get("draft", {})).items() if k in DRAFT_SETTINGS
            },
            expand_timesteps=bool(index.get("expand_timesteps")),
            **fields,
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise RequestError(f"The configuration of {title} is not valid: {reason}.") from error


def _num_layers(transformer: Mapping[str, Any]) -> int:
    return int(transformer["num_layers"]) + int(transformer.get("num_single_layers") or 0)


def _stride(vae: Mapping[str, Any], axis: str, default: int) -> int:
    """Pixels or frames per latent; VAE configurations name it in two ways."""
    for name in (f"scale_factor_{axis}", f"{axis}_compression_ratio"):
        if name in vae:
            return int(vae[name])
    return default


def _patch(transformer: Mapping[str, Any]) -> tuple[int, int, int]:
    """Latent frames, rows and columns per token; transformers name it in two ways."""
    patch = transformer["patch_size"]
    if isinstance(patch, int):
        return int(transformer.get("patch_size_t", 1)), patch, patch
    patch_t, patch_y, patch_x = (int(side) for side in patch)
    return patch_t, patch_y, patch_x


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a model. Messages give its name without the path on this machine."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if is_pointer_file(folder / name):
            raise RequestError(f"The model's {name} {ADVICE}.") from error
        raise RequestError(f"The model's {name} can't be read as JSON.") from error
    if not isinstance(content, dict):
        raise RequestError(f"The model's {name} must hold a JSON object.")
    return content
