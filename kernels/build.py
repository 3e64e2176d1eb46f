"""What the offline compiler must know of a kernel."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Build:
    """One variant of one kernel.

    Attributes:
        name: what the table of `kernels.compile` calls it.
        kernel: the jit function, of Triton or Gluon.
        dtype: of q, k and v, in Triton's spelling.
        constants: its constexpr arguments.
        absent: pointers that are None in this variant.
        num_warps, num_stages: launch options.
        max_registers: per thread, a bound for the compiler; None for its own choice.
        types: of arguments whose names do not tell it, such as descriptors; in Triton's spelling.
    """

    name: str
    kernel: Any
    dtype: str
    constants: dict[str, int | bool | str]
    absent: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None
    types: dict[str, str] = field(default_factory=dict)
