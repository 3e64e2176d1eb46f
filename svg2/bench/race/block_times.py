"""The end of a race: whole transformers by a few of their blocks, in a process of its own.

python -m svg2.bench.race.block_times RECORD --out FOLDER
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from svg2.bench.race.record import sources_digest
from svg2.bench.race.supervise import add_place, place_of, stop_with_parent
from svg2.runs.provenance import hardware, versions

BLOCKS = 2
"""Blocks of each kind that are made."""


def measured_before(path: Path, place_hardware: str) -> list[dict[str, Any]]:
    """Rows of an earlier call of the same kernels on the same machine; none otherwise."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    same = {"hardware": place_hardware, "versions": versions()}
    if any(record.get(key) != value for key, value in same.items()):
        return []
    return [row for row in record["runs"] if row.get("sources") == sources_digest()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m svg2.bench.race.block_times")
    parser.add_argument("record", type=Path)
    add_place(parser)
    arguments = parser.parse_args(argv)
    stop_with_parent()
    from svg2.bench.e2e import run_e2e_suite

    place = place_of(arguments)
    path: Path = arguments.record
    run_e2e_suite(
        path,
        lambda text: print(text, file=sys.stderr, flush=True),
        toy=place.is_rehearsal,
        rounds=1 if place.is_rehearsal else 3,
        blocks=BLOCKS,
        measured=measured_before(path, hardware(place.device)),
        facts={"sources": sources_digest()},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
