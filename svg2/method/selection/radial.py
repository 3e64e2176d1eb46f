"""Radial attention: the window within a frame halves as the distance in time doubles."""

import torch
from jaxtyping import Bool
from torch import Tensor

from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection.tiles import keep_nearest, offsets
from svg2.method.selection.top_p import asked_density

SINK=1.0
ZERO=1.0

def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    to = offsets(tokens, config)
    frames = to.frames.round().clamp(min=1)
    octave = frames.log2().floor()
    _, exponent = torch.frexp(frames)
    whole = frames.long()
    step = (whole & -whole).to(to.place.dtype)  # the largest power of 2 that divides it
    radius = torch.maximum(to.place, to.side / step) * octave.exp2()
    radius = torch.where(to.frames < 0.5, to.place*ZERO, radius)
    if SINK is not None:
        radius = torch.where(to.to_first < 0.5, torch.minimum(radius, to.place * SINK), radius)
    return keep_nearest(radius, tokens, asked_density(tokens, routed, config))
