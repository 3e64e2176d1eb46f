"""Loading a model: its device, its precision, and whether it is available on this machine."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svg2.errors import ModelUnavailable, RequestError
from svg2.git_lfs import ADVICE, first_pointer
from svg2.models.finding import is_online, least_bytes, snapshot, unreachable
from svg2.models.memory_estimate import GIB
from svg2.models.pipelines import PipelineKind
from svg2.models.spec import ModelSpec, capitalised

if TYPE_CHECKING:
    import torch

_AMPERE = 8  # compute capability of the first GPUs with bf16


def availability(spec: ModelSpec) -> str | None:
    """None if the model can be loaded here, else a sentence that says what is missing."""
    if spec.is_local:
        return _pointer_in(spec)
    import torch

    if not torch.cuda.is_available():
        return _without_gpu(spec)
    total = torch.cuda.get_device_properties(0).total_memory
    least = least_bytes(spec)
    if least is not None and least > total:
        return (
            f"{spec.title} is not available here: it needs about {least / GIB:.0f} GiB of GPU "
            f"memory, and this GPU has {total / GIB:.0f} GiB."
        )
    return _missing_download(spec)


def resolve_device(device: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names.

    Raises:
        RequestError: a GPU that this machine does not have.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device)
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise RequestError(f"Device {device} does not exist: this machine has {count} GPUs.")
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that `auto`, `fp32`, `bf16` or `fp16` stands for on a device.

    `auto` is bf16 on GPUs from Ampere on and on CPUs with bf16 instructions. Other CPUs take
    hundreds of times longer in bf16 than in fp32, so there it is fp32. On older GPUs it is fp16.
    """
    import torch

    from kernels import bf16_is_native

    if dtype != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    if device.type == "cuda":
        # torch's own answer counts emulation, and is of the current GPU
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= _AMPERE else torch.float16
    return torch.bfloat16 if bf16_is_native() else torch.float32


def load_pipeline(spec: ModelSpec, dtype: str = "auto", device: str = "auto") -> Any:
    """Load a model's pipeline onto a device.

    A model of the catalogue that does not fit into GPU memory as a whole is offloaded: its
    networks are moved there one at a time. The VAE and the image encoder of Wan stay in fp32, as
    in the Wan examples of diffusers.

    Args:
        dtype, device: as in `svg2.models.request.Request`.

    Raises:
        RequestError: a GPU that this machine does not have.
        ModelUnavailable: no GPU, no network for a download, or weights that can't be read or
            are pointers of Git LFS.
    """
    target = resolve_device(device)
    if not spec.is_local and target.type != "cuda" and device == "auto":
        raise ModelUnavailable(_without_gpu(spec))
    missing = _pointer_in(spec) if spec.is_local else _missing_download(spec)
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
        with _no_bars() if is_here else nullcontext():  # a download shows its progress
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
    """The same weights in another pipeline class; `pipe` itself if it has that class."""
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


def _without_gpu(spec: ModelSpec) -> str:
    return f"{spec.title} is not available here: no GPU was found. {spec.needs}"


def _pointer_in(spec: ModelSpec) -> str | None:
    """A sentence on the first file of a folder that Git LFS has not brought; else None."""
    folder = Path(spec.source)
    found = first_pointer(folder)
    if found is None:
        return None
    return f"{capitalised(spec.title)} is not whole: {found.relative_to(folder)} {ADVICE}."


def _missing_download(spec: ModelSpec) -> str | None:
    if snapshot(spec.source) is not None or is_online():
        return None
    size = ""
    if spec.published is not None:
        size = f" (about {spec.published.download_gb:.0f} GB in bf16)"
    return (
        f"{spec.title} is not downloaded and {unreachable()} download {spec.source}{size} first."
    )


def _must_offload(spec: ModelSpec, device: torch.device) -> bool:
    import torch

    need = spec.memory(spec.num_frames, spec.height, spec.width)
    if need is None or spec.published is None:
        return False
    rest = 2 * (spec.published.parameters - spec.published.shape.parameters)
    return (
        need.dense_peak + need.added + rest > torch.cuda.get_device_properties(device).total_memory
    )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars that diffusers and transformers print while they load."""
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
