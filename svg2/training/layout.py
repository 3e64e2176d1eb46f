"""Where bodies are on the token grid of a clip: windows around them, and targets of the guide.

The guide predicts, from the tokens inside the denoiser, what the renderer knows: where a token is,
where the bodies are relative to it, and whether it shows one. REPA (arXiv 2410.06940) predicts the
features of another network in the same way.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from svg2.models.prompts import MAX_BODIES
from svg2.training.placement import Placement, project

Grid = tuple[int, int, int]  # latent frames, rows and columns of a clip
_FARTHEST = 3.0  # in radii: offsets are not longer than this
_NEAR = 1.3  # in radii: includes corners and the foot of a shadow
_USUAL = 4.0  # usual radius of a single body, in tokens
_JITTER = 3  # tokens by which a window may be off its body


@dataclass(frozen=True)
class Layout:
    """Bodies as discs on the token grids of clips. A radius of 0 means no body.

    Attributes:
        centres: (row, column) at each latent frame, in tokens.
        radii: in tokens.
    """

    centres: Float[ndarray, "n O T 2"]
    radii: Float[ndarray, "n O T"]
    grid: Grid

    def at(self, clip: int, is_mirrored: bool) -> tuple[ndarray, ndarray]:
        """Centres `[O, T, 2]` and radii `[O, T]` of a clip."""
        centres = self.centres[clip]
        if is_mirrored:
            centres = np.stack([centres[..., 0], self.grid[2] - 1 - centres[..., 1]], axis=-1)
        return centres, self.radii[clip]


def layout_of(placements: Sequence[Placement], grid: Grid) -> Layout:
    """The layout of rendered clips, averaged over the video frames of each latent frame."""
    t, y, x = grid
    centres = np.zeros((len(placements), MAX_BODIES, t, 2))
    radii = np.zeros((len(placements), MAX_BODIES, t))
    for i, placement in enumerate(placements):
        for body, size in enumerate(placement.sizes):
            middle = placement.centres[body]
            at = project(middle, placement)
            side = project(middle + np.array([size, 0.0, 0.0]), placement)
            rows_columns = np.stack([at[:, 1] * y, at[:, 0] * x], axis=-1) - 0.5
            centres[i, body] = _by_latent_frame(rows_columns, t)
            radii[i, body] = _by_latent_frame(np.linalg.norm(side - at, axis=-1) * x, t)
    return Layout(centres, radii, grid)


def _by_latent_frame(values: Float[ndarray, "F ..."], count: int) -> ndarray:
    """The first frame, then means over the video frames of each latent frame."""
    if count == 1:
        return values[:1]
    later = values[1:].reshape(count - 1, -1, *values.shape[1:]).mean(axis=1)
    return np.concatenate([values[:1], later])


def window(
    layout: Layout, clip: int, is_mirrored: bool, size: int, rng: random.Random
) -> Bool[ndarray, "T Y X"]:
    """A square of `size` tokens in each latent frame, around a random body of the clip."""
    centres, radii = layout.at(clip, is_mirrored)
    body = rng.choice(np.nonzero(radii[:, 0] > 0)[0].tolist())
    chosen = np.zeros(layout.grid, dtype=bool)
    miss = [rng.uniform(-_JITTER, _JITTER) for _ in range(2)]
    for frame, middle in zip(chosen, centres[body], strict=True):
        row, column = (
            min(max(round(float(m) + off - (size - 1) / 2), 0), total - size)
            for m, off, total in zip(middle, miss, frame.shape, strict=True)
        )
        frame[row : row + size, column : column + size] = True
    return chosen


@dataclass(frozen=True)
class Known:
    """What the guide must predict for each token.

    Attributes:
        place: latent frame, row and column of the token, each from -1 to 1.
        offsets: (row, column) from the token to each body, in radii and at most `_FARTHEST`.
        inside: whether the token lies on the body's disc.
        radii: of the body, in tokens, at the token's latent frame.
        exists: whether the clip has the body.
    """

    place: Float[Tensor, "B N 3"]
    offsets: Float[Tensor, "B N O 2"]
    inside: Float[Tensor, "B N O"]
    radii: Float[Tensor, "B N O"]
    exists: Float[Tensor, "B 1 O"]

    @property
    def near(self) -> Float[Tensor, "B N"]:
        """Weight of each token: about 1 on a body and right beside it, 0 elsewhere.

        Tokens of a small body weigh more, up to 2, so that bodies weigh about the same.
        """
        near = (self.offsets.norm(dim=-1) < _NEAR).float() * self.exists
        return (near * (_USUAL / self.radii.clamp(min=0.1)).square().clamp(0.5, 2)).amax(-1)


def known(layout: Layout, picks: Sequence[tuple[int, int]], index: Int[Tensor, "B N"]) -> Known:
    """Targets for the tokens `index` of picks (clip, is mirrored), on the device of `index`."""
    _, y, x = layout.grid
    device = index.device
    frame = index // (y * x)
    at = torch.stack([index // x % y, index % x], dim=-1)
    ends = torch.tensor([max(n - 1, 1) for n in layout.grid], device=device)
    place = torch.cat([frame[..., None], at], dim=-1) / ends * 2 - 1
    both = [layout.at(clip, bool(is_mirrored)) for clip, is_mirrored in picks]
    centres = torch.from_numpy(np.stack([c for c, _ in both])).float().to(device)  # BOT2
    radii = torch.from_numpy(np.stack([r for _, r in both])).float().to(device)  # BOT
    row = torch.arange(len(index), device=device)[:, None]
    centre, radius = centres.transpose(1, 2)[row, frame], radii.transpose(1, 2)[row, frame]
    offsets = (centre - at[:, :, None]) / radius.clamp(min=0.1)[..., None]
    far = offsets.norm(dim=-1, keepdim=True)
    offsets = offsets * (_FARTHEST / far.clamp(min=_FARTHEST))
    exists = (radii[:, None, :, 0] > 0).float()
    return Known(place, offsets, (far[..., 0] < 1).float() * exists, radius, exists)


class Guide(nn.Module):
    """Predicts `Known` from the tokens of a layer. Only the training uses it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 3 + 3 * MAX_BODIES),
        )

    def forward(self, tokens: Float[Tensor, "B N width"], wanted: Known) -> Tensor:
        """Loss of the prediction; about 1 without any information."""
        told = self.read(tokens.float()).float()
        place, offsets, inside = told.split([3, 2 * MAX_BODIES, MAX_BODIES], dim=-1)
        wrong = F.mse_loss(place, wanted.place)
        off = (offsets.unflatten(-1, (MAX_BODIES, 2)) - wanted.offsets).square().mean(-1)
        off = (off * wanted.exists).sum() / (wanted.exists.sum() * tokens.shape[1])
        unsure = F.binary_cross_entropy_with_logits(inside, wanted.inside)
        return (wrong + off / math.sqrt(_FARTHEST) + unsure) / 3
