"""Rendered clips on disk: one memory-mapped array of frames and one file of their scenes."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from svg2.training.grammar import Scene, held_out, random_scene
from svg2.training.render import place, render


@dataclass(frozen=True)
class ClipSet:
    """Clips `frames` uint8 [n, F, H, W, 3] of `scenes`; the first `ready` of them are rendered."""

    frames: np.memmap
    scenes: tuple[Scene, ...]

    @property
    def ready(self) -> int:
        return len(self.scenes)


def render_clips(
    folder: Path, count: int, num_frames: int, size: int, seed: int = 0, on_progress=None
) -> None:
    """Render `count` training clips (none of the held-out combinations) into `folder`; resumes."""
    folder.mkdir(parents=True, exist_ok=True)
    path, scenes_path = folder / "frames.npy", folder / "scenes.jsonl"
    shape = (count, num_frames, size, size, 3)
    mode = "r+" if path.exists() else "w+"
    frames = np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=shape)
    done = len(scenes_path.read_text().splitlines()) if scenes_path.exists() else 0
    with scenes_path.open("a") as out:
        for i in range(done, count):
            rng = random.Random(f"{seed}/{i}")
            scene = random_scene(rng)
            while held_out(scene):
                scene = random_scene(rng)
            clip = render(scene, place(scene, num_frames, rng), size, size)
            frames[i] = clip.numpy()
            out.write(json.dumps(asdict(scene)) + "\n")
            out.flush()
            if on_progress:
                on_progress(i + 1, count)


def open_clips(folder: Path) -> ClipSet:
    """Open what `render_clips` has written so far.

    Raises:
        FileNotFoundError: nothing was rendered into `folder`.
    """
    lines = (folder / "scenes.jsonl").read_text().splitlines()
    frames = np.load(folder / "frames.npy", mmap_mode="r")
    return ClipSet(frames, tuple(Scene(**json.loads(line)) for line in lines))
