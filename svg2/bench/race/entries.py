"""What takes part in a race: the variants of each op, by name, the default first."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from svg2.bench.race.record import Place

_DEFAULT = "default"
_REHEARSED = "portable, no tail"

# Variants that a rehearsal makes fail, so that it shows what a failure does.
WRONG, CRASHES, HANGS, CRASHES_LATE = (
    f"{what} on purpose" for what in ("wrong", "crashes", "hangs", "crashes when timed")
)
_CONTROLS = (WRONG, CRASHES, HANGS, CRASHES_LATE)


def attend_op(head_dim: int) -> str:
    """The name of cluster attention in the file of winners."""
    return f"attend D{head_dim}"


def attend_entries(place: Place, chip: str, head_dim: int) -> dict[str, Any]:
    """Configurations of cluster attention by name, the portable one first."""
    from kernels.cluster_attention.fused.tiling import PORTABLE, RACED, variants_for

    variants = variants_for(chip, head_dim)
    found = {PORTABLE: variants[PORTABLE], **variants, **RACED}
    if place.is_rehearsal:  # one more: the interpreter is slow
        found = {PORTABLE: found[PORTABLE], _REHEARSED: RACED[_REHEARSED]}
        if place.has_controls:
            found |= dict.fromkeys(_CONTROLS, found[PORTABLE])
    return found


def choice_of(op: str, name: str, entry: Any) -> dict[str, Any]:
    """A variant as the file of winners holds it."""
    if not op.startswith("attend"):
        return asdict(entry)
    from kernels.cluster_attention.fused.tiling import ATTEND_VARIANTS

    if name in ATTEND_VARIANTS:
        return {"variant": name}
    return {part: value for part, value in asdict(entry).items() if part != "attend"}


def named(tilings: tuple[Any, ...], default: Any) -> dict[str, Any]:
    """Tilings by names made of their fields, after the default."""
    return {_DEFAULT: default} | {
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
