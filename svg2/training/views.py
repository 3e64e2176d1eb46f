"""Curriculum of the denoiser: which tokens of a clip a training step reads.

Any subset of a clip's tokens, at their own positions, is a fair sample. Training starts on every
third row and column and on all tokens around a body: that is many clips per minute, and enough to
learn what is where. It ends on all tokens. Positions are always those of sampling.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from svg2.training.layout import Grid, Layout, window


@dataclass(frozen=True)
class View:
    """Which tokens of a clip a step reads.

    Attributes:
        weight: relative frequency among the views of its lesson.
        num_frames: number of latent frames, of the shortest clips that have as many.
        stride: of rows and columns.
        clips: number of clips per step and process.
        window: side of a square around a body in which all tokens are read, in addition to those
            of `stride`; a multiple of `stride`, or 0 for no square.
    """

    weight: float
    num_frames: int
    stride: int
    clips: int
    window: int = 0


@dataclass(frozen=True)
class Lesson:
    """One part of the training.

    Attributes:
        until: share of the time at which it ends.
        views: of which each step draws one.
        rate: share of the largest learning rate.
    """

    until: float
    views: tuple[View, ...]
    rate: float = 1.0


# By stage and device. A CPU has time for few clips and reads most of them in part. A GPU reads
# many, mostly whole. Clips of 33 frames have 17 latent frames, and those of 17 have 9.
_FIRST = {
    "cpu": (
        Lesson(0.3, (View(0.6, 9, 3, 8), View(0.4, 9, 3, 3, window=12)), 0.5),
        Lesson(0.55, (View(0.3, 9, 3, 8), View(0.7, 9, 3, 3, window=12)), 0.5),
        Lesson(0.85, (View(0.5, 9, 2, 3, window=12), View(0.5, 9, 1, 1)), 0.4),
        Lesson(1.0, (View(0.2, 9, 2, 3, window=12), View(0.8, 9, 1, 1)), 0.4),
    ),
    "cuda": (
        Lesson(0.1, (View(0.5, 9, 3, 96), View(0.5, 9, 2, 64)), 0.6),
        Lesson(0.3, (View(0.4, 9, 2, 64), View(0.3, 4, 1, 32), View(0.3, 9, 1, 16)), 0.6),
        Lesson(1.0, (View(0.1, 9, 2, 64), View(0.9, 9, 1, 16)), 0.6),
    ),
}
_LONG = {
    "cpu": (
        Lesson(
            0.3, (View(0.5, 17, 3, 6), View(0.3, 17, 3, 2, window=12), View(0.2, 9, 2, 6)), 0.3
        ),
        Lesson(0.85, (View(0.7, 17, 2, 3), View(0.1, 17, 1, 1), View(0.2, 9, 2, 6)), 0.3),
        Lesson(1.0, (View(0.2, 17, 2, 3), View(0.6, 17, 1, 1), View(0.2, 9, 1, 2)), 0.3),
    ),
    "cuda": (
        Lesson(0.2, (View(0.6, 17, 2, 32), View(0.2, 17, 1, 8), View(0.2, 9, 1, 16)), 0.4),
        Lesson(1.0, (View(0.1, 17, 2, 32), View(0.7, 17, 1, 8), View(0.2, 9, 1, 16)), 0.4),
    ),
}
# A teacher's velocity has little noise, so that fewer clips a step suffice.
_DISTIL = {
    "cpu": (
        Lesson(0.5, (View(0.85, 17, 2, 2), View(0.15, 9, 2, 4)), 0.3),
        Lesson(1.0, (View(0.6, 17, 2, 2), View(0.25, 17, 1, 1), View(0.15, 9, 1, 2)), 0.3),
    ),
    "cuda": (
        Lesson(0.15, (View(0.8, 17, 2, 16), View(0.2, 9, 1, 8)), 0.3),
        Lesson(1.0, (View(0.1, 17, 2, 16), View(0.7, 17, 1, 4), View(0.2, 9, 1, 8)), 0.3),
    ),
}
CURRICULA = {"dit": _FIRST, "long": _LONG, "distil": _DISTIL}


@dataclass(frozen=True)
class Places:
    """Chosen tokens of clips, in (frame, row, column) order of the grid. `index` is on the CPU."""

    index: Int[Tensor, "B N"]
    grid: Grid

    def of(self, latents: Float[Tensor, "B C T Y X"]) -> Float[Tensor, "B C 1 1 N"]:
        """These tokens of `latents` as one row, a shape that the transformer accepts."""
        flat = latents.flatten(2)
        index = self.index.to(latents.device)[:, None].expand(-1, flat.shape[1], -1)
        return flat.gather(2, index)[:, :, None, None]


def all_places(batch: int, grid: Grid) -> Places:
    """All tokens of `batch` clips."""
    return Places(torch.arange(math.prod(grid)).expand(batch, -1), grid)


def pick_places(
    layout: Layout, picks: Sequence[tuple[int, int]], view: View, rng: random.Random
) -> Places:
    """Places of a view: random frames, a grid with a random start, and a window in each clip.

    The first frame is always included. It alone holds a single video frame, and rotary positions
    contain only the distance between frames.
    """
    t, *sides = layout.grid
    frames = [0, *sorted(rng.sample(range(1, t), min(view.num_frames, t) - 1))]
    start = [rng.randrange(min(view.stride, side)) for side in sides]
    coarse = np.zeros(sides, dtype=bool)
    coarse[start[0] :: view.stride, start[1] :: view.stride] = True
    index = []
    for clip, is_mirrored in picks:
        chosen = np.broadcast_to(coarse, layout.grid)
        if view.window:
            chosen = chosen | window(layout, clip, bool(is_mirrored), view.window, rng)
        of_frames = np.zeros(layout.grid, dtype=bool)
        of_frames[frames] = chosen[frames]
        index.append(torch.from_numpy(np.flatnonzero(of_frames)))
    return Places(torch.stack(index), layout.grid)
