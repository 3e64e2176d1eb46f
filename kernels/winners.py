"""What won on a chip: choices of tiles that `python -m svg2.bench.race` measured and wrote down.

`winners.json` beside this file has, for each chip, the choice of each op, as the fields of the
op's configuration, and what measured it. An op that it does not name runs with its defaults, and
so does all where there is no such file.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PATH = Path(__file__).with_name("winners.json")

T = TypeVar("T")


def winner(op: str, chip: str, build: Callable[[dict[str, Any]], T]) -> T | None:
    """The choice of an op for a chip, made by `build` from its fields; None if none is recorded.

    A choice that this version cannot build, such as a tiling with unknown fields, is warned of
    and counts as none.

    Args:
        op: such as "attend D128".
        chip: its full name, "sm_90" or "gfx942".
    """
    try:
        row = json.loads(PATH.read_text()).get(chip, {}).get(op)
        return None if row is None else build(row["choice"])
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        warnings.warn(
            f"the winner of {op} on {chip} in {PATH} can't be used, so the default runs: "
            f"{error!r}; python -m svg2.bench.race finds another",
            stacklevel=2,
        )
        return None
