"""The record of a race: saved whole after every case, read again by a second call."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svg2.bench.harness import save_record
from svg2.runs.provenance import provenance

ROOT = Path(__file__).resolve().parents[3]
WINNERS = ROOT / "kernels" / "winners.json"


@dataclass(frozen=True)
class Place:
    """Where a race runs and writes.

    Attributes:
        folder: of the records.
        is_rehearsal: toy sizes in Triton's interpreter, on the CPU.
        has_controls: race variants too that are wrong, crash or hang on purpose.
    """

    folder: Path
    is_rehearsal: bool = False
    has_controls: bool = False

    @property
    def device(self) -> torch.device:
        """The GPU; the CPU of a rehearsal."""
        return torch.device("cpu" if self.is_rehearsal else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of q, k and v. Triton's interpreter is wrong in bf16."""
        return torch.float32 if self.is_rehearsal else torch.bfloat16

    @property
    def winners(self) -> Path:
        """The file that gets what won; a rehearsal leaves the kernels' own alone."""
        return self.folder / "winners.json" if self.is_rehearsal else WINNERS

    @property
    def arguments(self) -> list[str]:
        """The place as the processes of a race are told it."""
        flags = ["--rehearse"] * self.is_rehearsal + ["--controls"] * self.has_controls
        return ["--out", str(self.folder), *flags]


class Record:
    """The content of a race's file, and what is under way.

    One process writes at a time: the one that supervises a race, or the one that times.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @classmethod
    def begin(cls, place: Place, *, fresh: bool) -> "Record":
        """The record of this machine: gone on with, or started anew.

        It starts anew with `fresh`, and where kernels or versions have changed since.

        Raises:
            OSError: the file can't be read or written.
        """
        header = {
            "suite": "race",
            "toy": place.is_rehearsal,
            **provenance(place.device),
            "chip": _chip(place),
            "dtype": str(place.dtype).removeprefix("torch."),
            "sources": sources_digest(),
        }
        path = place.folder / f"race-{_slug(header['hardware'])}.json"
        if not fresh and path.is_file():
            record = cls.read(path)
            same = ("toy", "hardware", "versions", "sources")
            if all(record.content.get(key) == header[key] for key in same):
                return record
        empty = {"tried": {}, "dropped": [], "absent": {}, "contests": [], "left_out": []}
        record = cls(path, {**header, **empty})
        record.save()
        return record

    @classmethod
    def read(cls, path: Path) -> "Record":
        """A record that was saved.

        Raises:
            OSError, ValueError: the file can't be read, or is no record.
        """
        return cls(path, json.loads(path.read_text()))

    def save(self) -> None:
        """Write the file, whole or not at all."""
        save_record(self.path, self.content)

    @property
    def now(self) -> Path:
        """The file that says what runs at the moment."""
        return self.path.with_name(f".{self.path.stem}.now")

    def start(self, op: str, name: str, what: str) -> None:
        """Say what runs next, so that a crash or a hang has a name; costs microseconds."""
        self.now.write_text(json.dumps([op, name, what]))

    def under_way(self) -> tuple[str, str, str] | None:
        """What ran last in a process that is gone: op, name, and what it did."""
        try:
            op, name, what = json.loads(self.now.read_text())
        except (OSError, ValueError):
            return None
        return op, name, what

    def drop(self, op: str, name: str, why: str, **more: Any) -> None:
        """A variant is out of the race, everywhere."""
        self.content["dropped"].append({"op": op, "name": name, "why": why, **more})
        self.save()

    def is_dropped(self, op: str, name: str) -> bool:
        """Whether a variant is out of the race."""
        return any(d["op"] == op and d["name"] == name for d in self.content["dropped"])

    def contest(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The contest under a key, if it is over."""
        return next((c for c in self.content["contests"] if key.items() <= c.items()), None)


def sources_digest() -> str:
    """Identifies the kernels and what times them, also outside a git checkout."""
    digest = hashlib.sha256()
    for folder in (ROOT / "kernels", ROOT / "svg2/bench", ROOT / "svg2/method"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _chip(place: Place) -> str:
    if place.is_rehearsal:
        return "interpreter"
    from kernels.impl import chip_of

    return chip_of(place.device)


def _slug(hardware: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", hardware.split(",")[0].lower()).strip("-")
