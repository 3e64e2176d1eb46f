"""What stages leave on disk: rendered clips and latents, in files that grow, and checkpoints."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from svg2.training.grammar import Scene, training_scene
from svg2.training.placement import place
from svg2.training.render import render

AT_ONCE = {"cpu": 1, "cuda": 24}  # clips rendered in one batch


class TrainingError(ValueError):
    """A stage can't go on from what is there; the message is one sentence."""


@dataclass(frozen=True)
class Store:
    """Equal arrays, one a scene, in `folder`: `rows.bin`, `scenes.jsonl` and `about.json`.

    What a broken-off `append` left is ignored, and overwritten by the next.
    """

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """`shape` and `dtype` of a row, and what its maker noted.

        Raises:
            FileNotFoundError: nothing was stored yet.
        """
        return json.loads((self.folder / "about.json").read_text())

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return tuple(Scene.from_json(line) for line in self._lines())

    def __len__(self) -> int:
        return len(self._lines())

    def rows(self) -> np.ndarray:
        """All rows [n, *shape], memory-mapped."""
        about = self.about
        shape = (len(self), *about["shape"])
        return np.memmap(self.folder / "rows.bin", dtype=about["dtype"], mode="r", shape=shape)

    def append(self, rows: np.ndarray, scenes: Sequence[Scene], **about: Any) -> None:
        """Add one row a scene; the first call fixes the rows' shape and `about`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").exists():
            about = {"shape": rows.shape[1:], "dtype": str(rows.dtype)} | about
            (self.folder / "about.json").write_text(json.dumps(about))
        offset = len(self) * rows[0].nbytes
        path = self.folder / "rows.bin"
        with path.open("r+b" if path.exists() else "wb") as out:
            out.seek(offset)
            out.write(np.ascontiguousarray(rows).tobytes())
        with (self.folder / "scenes.jsonl").open("a") as out:
            out.writelines(scene.to_json() + "\n" for scene in scenes)

    def _lines(self) -> list[str]:
        path = self.folder / "scenes.jsonl"
        return path.read_text().splitlines() if path.exists() else []


def save_checkpoint(path: Path, record: dict, **states: dict[str, Tensor]) -> None:
    """Weights under their names and the `record` of their training, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({**states, "record": json.dumps(record)}, part)
    part.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """The states and the record of `save_checkpoint`."""
    states = torch.load(path, map_location="cpu", weights_only=True)
    return states, json.loads(states.pop("record"))


def checkpoint_record(path: Path) -> dict | None:
    """What a checkpoint says of its training; None where there is none."""
    return load_checkpoint(path)[1] if path.exists() else None


def render_training(
    start: int, count: int, num_frames: int, size: int, seed: int, device: str
) -> tuple[list[Scene], UInt8[Tensor, "count F size size 3"]]:
    """Training clips `start` to `start + count` of a seed, none of a held-out combination."""
    drawn = [training_scene(f"{seed}/{i}") for i in range(start, start + count)]
    placements = [place(scene, num_frames, rng) for scene, rng in drawn]
    scenes = [scene for scene, _ in drawn]
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
    """Render training clips until `store` holds `count`, or the time is over; resumes."""
    at_once = AT_ONCE[torch.device(device).type]
    until = within(minutes)
    while (done := len(store)) < count and until():
        some = min(at_once, count - done)
        scenes, frames = render_training(done, some, num_frames, size, seed, device)
        store.append(frames.cpu().numpy(), scenes, seed=seed)


def within(minutes: float) -> Callable[[], bool]:
    """A clock: true until `minutes` have passed, and always the first time."""
    end, first = time.monotonic() + 60 * minutes, [True]

    def check() -> bool:
        return bool(first and first.pop()) or time.monotonic() < end

    return check
