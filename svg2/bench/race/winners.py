"""What won a race, written where the kernels read it."""

import json
from pathlib import Path
from typing import Any

from svg2.bench.harness import save_record
from svg2.bench.race.entries import choice_of, entries_of
from svg2.bench.race.plan import winner_of
from svg2.bench.race.record import Place, Record

_MEASURED_BY = ("hardware", "versions", "commit", "sources", "date", "dtype", "toy")


def decide(place: Place, record: Record) -> dict[str, dict[str, Any]]:
    """The winner of each op that was raced, as the file of winners holds it.

    The default is written down too where it won. A variant takes part if it was right and timed in
    every contest of its op.
    """
    won: dict[str, dict[str, Any]] = {}
    by_op: dict[str, list[dict[str, Any]]] = {}
    for contest in record.content["contests"]:
        by_op.setdefault(contest["op"], []).append(contest)
    for op, contests in by_op.items():
        times = [
            {
                row["name"]: row["ms"]
                for row in contest["rows"]
                if row["of"] == op and not record.is_dropped(op, row["name"])
            }
            for contest in contests
        ]
        scores = winner_of(times, contests[0]["default"])
        if not scores:
            continue
        name = next(iter(scores))
        over = [row["over_default"] for c in contests for row in c["rows"] if row["name"] == name]
        won[op] = {
            "choice": choice_of(op, name, entries_of(place, record.content["chip"], op)[name]),
            "name": name,
            "over_default": [round(ratio, 3) for ratio in over if ratio is not None],
            "measured": {key: record.content[key] for key in _MEASURED_BY},
        }
    return won


def write_winners(path: Path, chip: str, won: dict[str, dict[str, Any]]) -> None:
    """Put the winners of a chip into the file; those of other chips and ops stay.

    Raises:
        OSError, ValueError: the file can't be read or written, or is no JSON.
    """
    content = json.loads(path.read_text()) if path.is_file() else {}
    content.setdefault(chip, {}).update(won)
    save_record(path, content)
