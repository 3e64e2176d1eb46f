"""Which attend kernel runs on which chip, and with which tiles."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from kernels.build import Build
from kernels.cluster_attention.fused.problem import Lists, Problem
from kernels.impl import HEAD_DIMS
from kernels.winners import winner

# A chunk is one int32: where it starts, and in the low bits its length.
LENGTH_BITS = 6
# The length of a row of biases is a multiple of this: tiles of virtual keys need no mask.
BIAS_UNIT = 64


@dataclass(frozen=True)
class Tiling:
    """Block sizes and launch options of one launch of an attend kernel.

    Attributes:
        block_m: queries of a tile.
        block_n: keys of a tile.
        num_warps, num_stages: Triton's; stages are tiles of keys and values in flight.
        programs: programs of the persistent grid per multiprocessor.
        chunk: keys of a chunk at most.
        block_c: virtual keys of a tile.

    Raises:
        ValueError: `chunk` does not fit its code or a tile, or `block_c` a row of biases.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    programs: int = 1
    chunk: int = 16
    block_c: int = 64

    def __post_init__(self) -> None:
        longest = (1 << LENGTH_BITS) - 1
        if not 1 <= self.chunk <= longest:
            raise ValueError(
                f"chunk must be from 1 to the {longest} keys that {LENGTH_BITS} bits of a chunk's "
                f"code can count, not {self.chunk}"
            )
        if self.block_n % self.chunk:
            raise ValueError(f"chunk must divide block_n = {self.block_n}, not be {self.chunk}")
        if self.block_c < 1 or BIAS_UNIT % self.block_c:
            raise ValueError(f"block_c must divide {BIAS_UNIT}, not be {self.block_c}")


@dataclass(frozen=True)
class Config:
    """How cluster attention runs on one kind of chip.

    Attributes:
        main: tiles of all queries, or of those that the tail leaves.
        tail: smaller tiles for the last queries of a cluster where they fit, or None.
        attend: the attend kernel, by the name of its module in this package.

    Raises:
        ValueError: the tail cannot read the lists that are cut for the main tiles.
    """

    main: Tiling
    tail: Tiling | None = None
    attend: str = "attend"

    def __post_init__(self) -> None:
        main, tail = self.main, self.tail
        if tail is None:
            return
        if main.block_n % tail.block_n or main.chunk != tail.chunk or main.block_m <= tail.block_m:
            raise ValueError(
                "the tail must have fewer queries per tile than the main tiling, a block_n that "
                f"divides its block_n, and the same chunk: {main} and {tail} do not fit"
            )

    @property
    def tilings(self) -> dict[str, Tiling]:
        """The tilings by what they are for; one launch each."""
        return {"main": self.main} | ({"tail": self.tail} if self.tail else {})


@dataclass(frozen=True)
class Row:
    """What runs on a chip.

    Attributes:
        chip: its name, or what several names begin with: "sm_90", "sm_", "gfx942".
        head_dims: of these head dimensions.
        config: the attend kernel and its tiles.
    """

    chip: str
    head_dims: tuple[int, ...]
    config: Config


# The first row that fits counts. Each has the largest tiles that compile without register spills
# and fit the chip's shared memory; found by compiling, not by timing.
TABLE = (
    Row("sm_90", HEAD_DIMS, Config(Tiling(128, 128, 8, 2), Tiling(64, 64, 4, 2, programs=2))),
    Row("sm_10", HEAD_DIMS, Config(Tiling(128, 64, 8, 2))),
    Row("sm_12", HEAD_DIMS, Config(Tiling(64, 64, 8, 2))),
    Row("sm_", (128,), Config(Tiling(64, 64, 4, 2))),
    Row("sm_", (64,), Config(Tiling(128, 64, 8, 2))),
    Row("gfx", HEAD_DIMS, Config(Tiling(128, 64, 4, 1))),
    Row("interpreter", HEAD_DIMS, Config(Tiling(64, 64, 4, 1), Tiling(32, 64, 4, 1))),
)


def config_for(chip: str, head_dim: int) -> Config:
    """The configuration for a chip, named "sm_90" or "gfx942": what won there, or the default.

    Raises:
        ValueError: the table has none.
    """
    return winner(f"attend D{head_dim}", chip, config_of) or default_config(chip, head_dim)


def config_of(fields: dict[str, Any]) -> Config:
    """A configuration from its fields as plain values, as `winners.json` holds them.

    Raises:
        TypeError, ValueError: unknown fields, or values that do not fit each other.
    """
    tilings = {name: fields[name] and Tiling(**fields[name]) for name in ("main", "tail")}
    config = Config(**{**fields, **tilings})
    if importlib.util.find_spec(f"{__package__}.{config.attend}") is None:
        raise ValueError(f"there is no attend kernel {config.attend!r}")
    return config


def default_config(chip: str, head_dim: int) -> Config:
    """The configuration where no race was run.

    Raises:
        ValueError: the table has none.
    """
    for row in TABLE:
        if chip.startswith(row.chip) and head_dim in row.head_dims:
            return row.config
    raise ValueError(f"no attend kernel for head dimension {head_dim} on {chip!r}")


class AttendKernel(Protocol):
    """What the module of an attend kernel offers."""

    def launch(self, problem: Problem, lists: Lists, config: Config, processors: int) -> None:
        """Attend into `problem.out`; `processors` are the multiprocessors of the device."""
        ...

    def builds(self, config: Config, head_dim: int, dtype: str) -> Iterator[Build]:
        """The kernel in all variants that `launch` can ask for, for offline compilation."""
        ...


def attend_kernel(name: str) -> AttendKernel:
    """The module of an attend kernel, imported when it first runs.

    Raises:
        ModuleNotFoundError: this package has no such module.
    """
    return cast(AttendKernel, importlib.import_module(f"{__package__}.{name}"))
