"""Which implementation of an op runs: asked for by name, never swapped silently."""

from typing import Literal, get_args

Impl = Literal["auto", "reference", "fused"]


class ImplUnavailable(RuntimeError):
    """An implementation was asked for by name and cannot run here."""


def resolve_impl(impl: Impl) -> Literal["reference", "fused"]:
    """The implementation that `impl` stands for; `auto` is the best one that can run.

    Raises:
        ImplUnavailable: `fused` was asked for and cannot run.
        ValueError: `impl` is not one of the known names.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, not {impl!r}")
    if impl == "fused":
        raise ImplUnavailable("impl='fused' cannot run: this version has no Triton kernels")
    return "reference"
