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
_CONTROLS = (WRONG, CRASHES, CRASHES_LATE, HANGS)


def attend_op(head_dim: int) -> str:
    """The name of cluster attention in the file of winners."""
    return f"attend D{head_dim}"


def _attend_entries(place: Place, chip: str, head_dim: int) -> dict[str, Any]:
    """Configurations of cluster attention by name, the portable one first."""
    from kernels.cluster_attention.fused.tiling import PORTABLE, RACED, variants_for

    variants = variants_for(chip, head_dim)
    found = {PORTABLE: variants[PORTABLE], **variants, **RACED}
    if place.is_rehearsal:  # one more: the interpreter is slow
        found = {PORTABLE: found[PORTABLE], _REHEARSED: RACED[_REHEARSED]}
        if place.has_controls:
            found |= dict.fromkeys(_CONTROLS, found[PORTABLE])
    return found


def entries_of(place: Place, chip: str, op: str) -> dict[str, Any]:
    """The variants of an op by name, the default first. Each is what the op takes as its tiling.

    Args:
        op: as the file of winners names it.
    """
    kind, _, head_dim = op.partition(" D")
    if kind == "attend":
        return _attend_entries(place, chip, int(head_dim))
    if kind == "assign":
        from kernels.kmeans import fused as of_op

        toy = (of_op.Tiling(64, 32, 4, 1, per_tile=True),)
    elif kind == "sort":
        from kernels.permutation import fused as of_op

        toy = (of_op.Tiling(64, 64, 4),)
    else:
        from kernels.routing import fused as of_op

        toy = (of_op.Tiling(32, 16, 4, 1),)
    default = of_op.default_tiling(chip)
    raced = toy if place.is_rehearsal else of_op.RACED
    return {_DEFAULT: default} | {_title(x): x for x in raced if x != default}


def _title(tiling: Any) -> str:
    """A tiling in words, such as "128×64, 8 warps, 2 stages, per tile"."""
    fields = asdict(tiling)
    parts = ["×".join(str(fields.pop(name)) for name in list(fields) if name.startswith("block_"))]
    for name, value in fields.items():
        words = name.removeprefix("num_").replace("_", " ")
        if value is True:
            parts.append(words)
        elif value is not False:
            parts.append(f"{value} {words}")
    return ", ".join(parts)


def choice_of(op: str, name: str, entry: Any) -> dict[str, Any]:
    """A variant as the file of winners holds it."""
    if not op.startswith("attend"):
        return asdict(entry)
    from kernels.cluster_attention.fused.tiling import ATTEND_VARIANTS

    if name in ATTEND_VARIANTS:
        return {"variant": name}
    return {part: value for part, value in asdict(entry).items() if part != "attend"}


def behave(name: str, run: Callable[[], Tensor], *, is_timed: bool) -> Tensor:
    """The result of a variant; one that fails on purpose does so here."""
    if name == HANGS:
        time.sleep(1e6)
    if name == CRASHES or (name == CRASHES_LATE and is_timed):
        os.abort()
    return 1.05 * run() if name == WRONG else run()
