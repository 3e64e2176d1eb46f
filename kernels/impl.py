"""Which implementation of an op runs: chosen by name, never replaced silently."""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "fused"]

HEAD_DIMS = (64, 128)
"""Head dimensions that the fused k-means and attention are built for."""

# Triton reads the same variable when it decorates a kernel: later changes have no effect.
INTERPRETING = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}
"""Whether Triton kernels run in Triton's interpreter, on CPU tensors; for tests."""

_OLDEST_CAPABILITY = (8, 0)
# Of the fused kernels: one program holds a row of the map in registers, and more would spill.
MAX_K_CLUSTERS = 2048

_faults_here: list[str | None] = []


class ImplUnavailable(RuntimeError):
    """The implementation that was asked for cannot run here."""


def resolve_impl(
    impl: Impl, x: Tensor | None = None, *, is_matmul: bool = False
) -> Literal["reference", "fused"]:
    """The implementation that `impl` stands for; `auto` is `fused` on CUDA where that can run.

    `x` is the tensor that the op works on; with `is_matmul` the op multiplies matrices, and `x` is
    `[B, H, N, D]`. Without `x` the question is whether this process can run `fused` at all.

    Raises:
        ImplUnavailable: `fused` was asked for and cannot run.
        ValueError: `impl` is not one of the known names.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, not {impl!r}")
    if impl == "reference":
        return "reference"
    # Under the interpreter `auto` stays with the reference: only tests want the other.
    if impl == "auto" and (x is None or x.device.type != "cuda"):
        if x is not None or _why_not_here() is not None or INTERPRETING:
            return "reference"
        return "fused"
    fault = _why_not_here() if x is None else _why_not_on(x, is_matmul)
    if fault is None:
        return "fused"
    if impl == "auto":
        return "reference"
    raise ImplUnavailable(f"impl='fused' cannot run: {fault}")


def refuse_gradients(op: str, **inputs: Tensor | None) -> None:
    """Raise ValueError where autograd would have to follow an op: none has a backward pass."""
    if not torch.is_grad_enabled():
        return
    for name, x in inputs.items():
        if x is not None and x.requires_grad:
            raise ValueError(
                f"{op} has no backward pass, but {name} requires a gradient: detach it, or call "
                f"{op} under torch.no_grad()"
            )


def device_of(x: Tensor) -> AbstractContextManager:
    """Make the device of `x` the current one: Triton launches there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def dense_rows(x: Tensor) -> Tensor:
    """`x` with a contiguous last dimension; a copy only where it is not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def chip_of(device: torch.device) -> str:
    """The chip behind a GPU as tilings name it: "sm_90", or "gfx942" for all of AMD's.

    "interpreter" in Triton's interpreter.
    """
    if INTERPRETING:
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _why_not_on(x: Tensor, is_matmul: bool) -> str | None:
    """Why fused kernels cannot run on this tensor, or None."""
    if INTERPRETING:
        if x.device.type != "cpu":
            return "Triton's interpreter works on CPU tensors"
    elif x.device.type != "cuda":
        return f"Triton kernels need a CUDA tensor, not one on {x.device.type!r}"
    fault = _why_not_here()
    if fault is not None or not is_matmul:
        return fault
    dtypes = (torch.float16, torch.bfloat16, *((torch.float32,) if INTERPRETING else ()))
    if x.dtype not in dtypes:
        names = " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"the Triton kernels take {names}, not {str(x.dtype).removeprefix('torch.')}"
    if x.shape[-1] not in HEAD_DIMS:
        sizes = " and ".join(map(str, HEAD_DIMS))
        return f"the Triton kernels take head dimensions {sizes}, not {x.shape[-1]}"
    return None


def _why_not_here() -> str | None:
    """Why fused kernels cannot run in this process, or None."""
    # No functools.cache: torch.compile warns of one in every graph that has an op.
    if not _faults_here:
        _faults_here.append(_find_fault_here())
    return _faults_here[0]


def _find_fault_here() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if INTERPRETING:
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device here"
    if torch.version.hip is None and torch.cuda.get_device_capability() < _OLDEST_CAPABILITY:
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        return f"{name} has compute capability {capability}, below {_OLDEST_CAPABILITY}"
    return None
