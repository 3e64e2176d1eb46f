"""What takes part in a race: the variants of each op, by name, the default first."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from svg2.bench.race.record import Place

DEFAULT = "default"
"""The name of the variant that runs where no race was run."""

# Variants that a rehearsal makes fail, so that it shows what a failure does.
WRONG, CRASHES, HANGS, CRASHES_LATE = (
    f"{what} on purpose" for what in ("wrong", "crashes", "hangs", "crashes when timed")
)
_CONTROLS = (WRONG, CRASHES, HANGS, CRASHES_LATE)


def attend_op(head_dim: int) -> str:
    """The name of cluster attention in the file of winners."""
    return f"attend D{head_dim}"


def attend_entries(place: Place, chip: str, head_dim: int) -> dict[str, Any]:
    """Configurations of cluster attention."""
    from kernels.cluster_attention.fused import tiling as attend

    found = {DEFAULT: attend.default_config(chip, head_dim)}
    if place.is_rehearsal:
        found["128×128"] = attend.Config(attend.Tiling(128, 128, 4, 1))
        return found | dict.fromkeys(_CONTROLS if place.has_controls else (), found[DEFAULT])
    raise NotImplementedError


def named(tilings: tuple[Any, ...], default: Any) -> dict[str, Any]:
    """Tilings by names made of their fields, after the default."""
    return {DEFAULT: default} | {
        ", ".join(f"{field} {value}" for field, value in asdict(tiling).items()): tiling
        for tiling in tilings
        if tiling != default
    }


def behave(name: str, run: Callable[[], Tensor], *, is_timed: bool) -> Tensor:
    """The result of a variant; one that fails on purpose does so here."""
    if name == HANGS:
        time.sleep(1e6)
    if name == CRASHES or (name == CRASHES_LATE and is_timed):
        os.abort()
    return 1.05 * run() if name == WRONG else run()
