"""The attend kernels: which runs on which chip, and with which tiles."""

import importlib
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
BIAS_UNIT = 128


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
        max_registers: per thread, a bound for the compiler (NVIDIA's alone); None for its own
            choice.

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
    max_registers: int | None = None

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


@dataclass(frozen=True)
class AttendVariant:
    """One attend kernel, with the tiles that it takes on each chip it runs on.

    Attributes:
        rows: the first that fits a chip counts; where none fits, the variant does not run.
    """

    rows: tuple[Row, ...]

    def config_for(self, chip: str, head_dim: int) -> Config | None:
        """The configuration for a chip, or None where the variant does not run."""
        for row in self.rows:
            if chip.startswith(row.chip) and head_dim in row.head_dims:
                return row.config
        return None


PORTABLE = "portable"
"""The variant that runs on every chip."""

# Each row has the largest tiles that compile without register spills and fit the chip's shared
# memory; found by compiling, not by timing.
ATTEND_VARIANTS = {
    PORTABLE: AttendVariant(
        (
            Row(
                "sm_90",
                HEAD_DIMS,
                Config(Tiling(128, 128, 8, 2), Tiling(64, 64, 4, 2, programs=2)),
            ),
            Row("sm_10", HEAD_DIMS, Config(Tiling(128, 64, 8, 2))),
            Row("sm_12", HEAD_DIMS, Config(Tiling(64, 64, 8, 2))),
            Row("sm_", (128,), Config(Tiling(64, 64, 4, 2))),
            Row("sm_", (64,), Config(Tiling(128, 64, 8, 2))),
            Row("gfx", HEAD_DIMS, Config(Tiling(128, 64, 4, 1))),
            Row("interpreter", HEAD_DIMS, Config(Tiling(64, 64, 4, 1), Tiling(32, 64, 4, 1))),
        )
    ),
    # Several programs of one warpgroup each share a multiprocessor, and overlap by chance.
    "small": AttendVariant(
        (
            Row("sm_90", (128,), Config(Tiling(64, 32, 4, 3, programs=3))),
            Row("sm_90", (64,), Config(Tiling(64, 64, 4, 2, programs=4))),
            Row("interpreter", HEAD_DIMS, Config(Tiling(64, 32, 4, 1))),
        )
    ),
    # Full tiles by the tensor memory accelerator, after the chunks.
    "tma": AttendVariant(
        (
            Row(
                "sm_90",
                HEAD_DIMS,
                Config(Tiling(128, 64, 8, 3), Tiling(64, 64, 4, 2, programs=2), attend="tma"),
            ),
            Row(
                "interpreter",
                HEAD_DIMS,
                Config(Tiling(64, 64, 4, 1), Tiling(32, 64, 4, 1), attend="tma"),
            ),
        )
    ),
    # One program fills a multiprocessor: a warp that copies and two warpgroups of 64 queries.
    "gluon": AttendVariant(
        (
            Row(
                "sm_90",
                HEAD_DIMS,
                Config(Tiling(128, 128, 4, 2), Tiling(64, 64, 4, 2, programs=2), attend="gluon"),
            ),
        )
    ),
}
"""All attend kernels by name."""

RACED = {
    "portable, no tail": Config(Tiling(128, 128, 8, 2)),
    "portable, 128×64": Config(Tiling(128, 64, 8, 3)),
    "portable, 64×64": Config(Tiling(64, 64, 4, 2, programs=2, block_c=32)),
}
"""Other tiles of the portable kernel, which a race times beside the variants."""


def config_for(chip: str, head_dim: int, variant: str | None = None) -> Config:
    """The configuration for a chip, named "sm_90" or "gfx942": of a variant or of what won there.

    Where no race was run, the portable variant counts as the winner.

    Raises:
        ValueError: no such variant, or none that runs there.
    """
    configs = variants_for(chip, head_dim)
    if variant is None:
        won = winner(f"attend D{head_dim}", chip, lambda fields: _config_of(fields, configs))
        if won is not None:
            return won
        if PORTABLE in configs:
            return configs[PORTABLE]
        raise ValueError(f"no attend kernel for head dimension {head_dim} on {chip!r}")
    if variant not in configs:
        raise ValueError(
            f"the attend variant must be one of {', '.join(configs)} for head dimension "
            f"{head_dim} on {chip!r}, not {variant!r}"
        )
    return configs[variant]


def variants_for(chip: str, head_dim: int) -> dict[str, Config]:
    """The configurations of all variants that run on a chip, by the name of the variant."""
    found = {name: x.config_for(chip, head_dim) for name, x in ATTEND_VARIANTS.items()}
    return {name: config for name, config in found.items() if config is not None}


def _config_of(fields: dict[str, Any], configs: dict[str, Config]) -> Config:
    """What won a race: a variant by its name, or tiles of the portable one."""
    if "variant" in fields:
        if fields["variant"] not in configs:
            raise ValueError(f"there is no attend variant {fields['variant']!r}")
        return configs[fields["variant"]]
    tilings = {name: fields[name] and Tiling(**fields[name]) for name in ("main", "tail")}
    return Config(**tilings)


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
