"""Files of the stages: stores of rendered clips and of latents, and checkpoints."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor

from svg2.models.prompts import Scene, training_scene
from svg2.runs.distributed import processes
from svg2.trace.atomic import write_atomic
from svg2.training.placement import Placement, place
from svg2.training.ranks import shared_clock
from svg2.training.render import render
from svg2.training.scenery import TILE
from svg2.training.solids import STRIPE

AT_ONCE = {"cpu": 1, "cuda": 24}  # clips rendered in one batch
_ROUND = 4  # batches per rank before all ranks wait for one another
_STAGED = 8  # clips whose placements are hashed


class TrainingError(ValueError):
    """A stage can't continue from the files of earlier stages; the message is one sentence."""


@dataclass(frozen=True)
class Store:
    """Arrays of one shape, one per scene, in `rows.bin`, `scenes.jsonl` and `about.json`.

    The remains of an interrupted `append` are ignored, and the next `append` overwrites them.
    """

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """`shape` and `dtype` of a row, and the notes of the first `append`.

        Raises:
            FileNotFoundError: the store is empty.
        """
        return json.loads((self.folder / "about.json").read_text())

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The scenes of all rows."""
        return tuple(Scene.from_json(line) for line in self._lines())

    def __len__(self) -> int:
        return len(self._lines())

    def rows(self) -> np.ndarray:
        """All rows `[n, *shape]`, memory-mapped."""
        about = self.about
        shape = (len(self), *about["shape"])
        return np.memmap(self.folder / "rows.bin", dtype=about["dtype"], mode="r", shape=shape)

    def append(self, rows: np.ndarray, scenes: Sequence[Scene], **about: Any) -> None:
        """Add one row per scene. The first call fixes the shape of the rows, and `about`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = self._lines()
        if not lines:
            about = {"shape": rows.shape[1:], "dtype": str(rows.dtype)} | about
            write_atomic(self.folder / "about.json", json.dumps(about).encode())
        _write_at(
            self.folder / "rows.bin",
            len(lines) * rows[0].nbytes,
            np.ascontiguousarray(rows).tobytes(),
        )
        whole = sum(len(line.encode()) + 1 for line in lines)
        added = "".join(scene.to_json() + "\n" for scene in scenes)
        _write_at(self.folder / "scenes.jsonl", whole, added.encode())

    def _lines(self) -> list[str]:
        """One line per row, without an unfinished last line."""
        path = self.folder / "scenes.jsonl"
        return path.read_text().split("\n")[:-1] if path.exists() else []


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at `offset`, and end the file after it."""
    with path.open("r+b" if path.exists() else "wb") as out:
        out.seek(offset)
        out.truncate()
        out.write(data)


def save_checkpoint(path: Path, record: dict, **states: dict[str, Tensor]) -> None:
    """Write states by name and the `record` of their training, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({**states, "record": json.dumps(record)}, part)
    part.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Read the states and the record that `save_checkpoint` wrote."""
    states = torch.load(path, map_location="cpu", weights_only=True)
    return states, json.loads(states.pop("record"))


def checkpoint_record(path: Path) -> dict | None:
    """The record of a checkpoint; None without one."""
    return load_checkpoint(path)[1] if path.exists() else None


def staging_of(num_frames: int, seed: int) -> str:
    """Hash of how the clips of a seed are staged: patterns, and the bodies of the first clips."""
    digest = hashlib.sha256(str((TILE, STRIPE)).encode())
    for _, placement in place_training(0, _STAGED, num_frames, seed):
        digest.update(placement.centres.round(6).tobytes())
        digest.update(placement.turns.round(6).tobytes())
    return digest.hexdigest()[:16]


def check_staging(store: Store, num_frames: int, seed: int) -> None:
    """Check that a store holds the clips that would be rendered today.

    Raises:
        TrainingError: its clips have another seed or staging.
    """
    if not len(store):
        return
    about = store.about
    if (about.get("seed"), about.get("staging")) != (seed, staging_of(num_frames, seed)):
        raise TrainingError(
            f"{store.folder} holds clips of another seed, grammar or staging: remove it first."
        )


def place_training(
    start: int, count: int, num_frames: int, seed: int
) -> list[tuple[Scene, Placement]]:
    """Training scenes `start` to `start + count` of a seed; no held-out combinations."""
    drawn = [training_scene(f"{seed}/{i}") for i in range(start, start + count)]
    return [(scene, place(scene, num_frames, rng)) for scene, rng in drawn]


def render_training(
    start: int, count: int, num_frames: int, size: int, seed: int, device: str
) -> tuple[list[Scene], UInt8[Tensor, "count F size size 3"]]:
    """The scenes of `place_training` and their clips."""
    placed = place_training(start, count, num_frames, seed)
    scenes, placements = [scene for scene, _ in placed], [placement for _, placement in placed]
    return scenes, render(scenes, placements, size, size, device=device).frames


def render_clips(
    store: Store,
    count: int,
    num_frames: int,
    size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    minutes: float = float("inf"),
) -> None:
    """Render training clips until `store` holds `count` or the time is over; resumes.

    Raises:
        TrainingError: the store holds clips of another seed or staging.
    """
    check_staging(store, num_frames, seed)
    about = {"seed": seed, "staging": staging_of(num_frames, seed)}

    def make(start: int, some: int) -> tuple[Sequence[Scene], np.ndarray]:
        scenes, frames = render_training(start, some, num_frames, size, seed, device)
        return scenes, frames.cpu().numpy()

    grow(store, count, make, lambda _: about, minutes=minutes, device=device)


def grow(
    store: Store,
    count: int,
    make: Callable[[int, int], tuple[Sequence[Scene], np.ndarray]],
    about: Callable[[np.ndarray], dict[str, Any]],
    *,
    least: int = 1,
    minutes: float = float("inf"),
    device: str = "cpu",
) -> None:
    """Append to `store` until it holds `count` or the time is over; all ranks share the work.

    Args:
        make: takes a first index and a count, and returns that many scenes and rows.
        about: takes the rows of the first round and returns the notes of the store.
        least: the fewest rows of the first round.
    """
    share, at_once = processes(), AT_ONCE[torch.device(device).type]
    group = dist.new_group(backend="gloo") if share.world > 1 else None
    done, started, is_over = len(store), time.monotonic(), False
    while done < count and not is_over:
        each = at_once * (_ROUND if group else 1)
        each = max(each, 0 if done else -(-least // share.world))
        starts = [min(count, done + rank * each) for rank in range(share.world + 1)]
        begin, end = starts[share.rank], starts[share.rank + 1]
        made = [make(i, min(at_once, end - i)) for i in range(begin, end, at_once)]
        if group is None:
            parts = made
        else:
            by_rank: list[Any] = [None] * share.world
            dist.gather_object(made, by_rank if share.is_first else None, group=group)
            parts = [part for some in by_rank if some for part in some]
        if share.is_first:
            rows = np.concatenate([some for _, some in parts])
            scenes = [scene for some, _ in parts for scene in some]
            store.append(rows, scenes, **({} if done else about(rows)))
        done = starts[-1]
        if share.is_first:
            print(f"{store.folder}: {done} of {count} clips", file=sys.stderr, flush=True)
        is_over = shared_clock(time.monotonic() - started, device) >= 60 * minutes
