"""Radial attention: the window within a frame halves as the distance in time doubles."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection.tiles import Offsets, keep_nearest, offsets
from svg2.method.selection.top_p import asked_density

_OWN_FRAME = 0.25  # measured; from 0.5 on quality falls


def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    """The tiles within a radius, the same for all heads; the budget sets the radius.

    Source: Radial Attention, arXiv 2506.19852. There the own frame and its neighbours are seen
    whole; here the budget limits them too, and windows are discs, not runs of tokens.
    """
    radius = radii(offsets(tokens, config))
    return keep_nearest(radius, tokens, asked_density(tokens, routed, config))


def radii(to: Offsets) -> Float[Tensor, "Q K"]:
    """The radius from which on each query tile sees each key tile.

    A radius of r gives a window of `r / 2^i` to frames at distances from `2^i` on. Where that is
    less than a tile by a factor of `2^j`, only distances that `2^j` divides are seen, at their own
    place alone. The first frame is seen like a neighbouring one.
    """
    frames = to.frames.round().long().clamp(min=1)
    octave = frames.double().log2().floor()
    divisor = frames & -frames  # the largest power of 2
    radius = torch.maximum(to.place, to.side / divisor) * octave.exp2()
    radius = torch.where(to.frames < 0.5, to.place * _OWN_FRAME, radius)
    return torch.where(to.to_first < 0.5, torch.minimum(radius, to.place), radius).float()
