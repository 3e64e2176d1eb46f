"""Grounds and skies: their patterns, and the colours of the light.

The pattern of a ground is averaged over the width that a ray covers, so that it does not flicker
far away.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

GROUND_SHIFT = 0.6  # of the patterns, in x and z
# Side of a tile. A smaller one disappears in a token a few rows away. The middle of a tile is at
# x = 0, so a mirror image has the same tiles.
TILE = 1.8


@dataclass(frozen=True)
class Light:
    """Colours of a sky and its light; `blur` is the tangent of the sun's half angle."""

    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    blur: float


LIGHTS: Mapping[str, Light] = {
    "clear": Light(
        *((0.84, 0.90, 0.96), (0.44, 0.64, 0.90), (0.66, 0.65, 0.62), (0.37, 0.39, 0.42), 0.10)
    ),
    "sunset": Light(
        *((0.98, 0.76, 0.56), (0.44, 0.46, 0.68), (0.78, 0.66, 0.50), (0.36, 0.33, 0.36), 0.16)
    ),
    "cloudy": Light(
        *((0.86, 0.87, 0.88), (0.66, 0.69, 0.73), (0.26, 0.26, 0.26), (0.66, 0.67, 0.68), 0.55)
    ),
}


def sky_detail(
    sky: str, ray: Float[Tensor, "C P 3"], side: Float[Tensor, ""]
) -> Float[Tensor, "C P 3"]:
    """What a sky has beside its gradient: soft clouds, or at sunset a glow on the sun's side.

    Args:
        ray: directions of rays, of unit length.
        side: sign of x towards the sun.
    """
    x, y, z = ray.unbind(-1)
    above = y.clamp(min=0)
    if sky == "cloudy":
        u, v = x / (above + 0.25), z / (above + 0.25)
        wave = torch.sin(2.1 * u + 1.3 * torch.sin(1.7 * v + u)) * torch.sin(2.9 * v + 0.9 * u)
        return (0.05 * wave * (above * 8).clamp(max=1))[..., None].expand_as(ray)
    if sky == "sunset":
        glow = (x * side * 0.9 + 0.45).clamp(0, 1) * torch.exp(-5 * above)
        return glow[..., None] * ray.new_tensor((0.10, 0.05, -0.06))
    return torch.zeros_like(ray)


def _wave(x: Tensor, wide: Tensor, frequency: float) -> Tensor:
    """A sine that fades as the width covered by a ray nears its period."""
    return torch.sin(frequency * x) * torch.exp(-0.12 * (frequency * wide).square())


def _square_wave(x: Tensor, wide: Tensor) -> Tensor:
    """A square wave of period 2 between -1 and 1, averaged over a width."""
    half = (0.5 * wide).clamp(min=5e-3)

    def area(at: Tensor) -> Tensor:
        return (torch.remainder(at, 2) - 1).abs()

    return (area(x - half) - area(x + half)) / (2 * half)


def _mix(share: Tensor, a: tuple, b: tuple) -> Float[Tensor, "... 3"]:
    return share[..., None] * share.new_tensor(a) + (1 - share[..., None]) * share.new_tensor(b)


def _checkered(u: Tensor, v: Tensor, wide_u: Tensor, wide_v: Tensor) -> Tensor:
    u, v = (at - GROUND_SHIFT + TILE / 2 for at in (u, v))
    odd = _square_wave(u / TILE, wide_u / TILE) * _square_wave(v / TILE, wide_v / TILE)
    return _mix(0.5 + 0.5 * odd, (0.90, 0.89, 0.86), (0.28, 0.29, 0.33))


def _wooden(u: Tensor, v: Tensor, wide_u: Tensor, wide_v: Tensor) -> Tensor:
    width = 0.6
    plank = torch.floor(u / width)
    tint = 0.12 * torch.sin(plank * 12.9898) * torch.exp(-((wide_u / width) ** 2))
    along = 1.3 * v + 3.1 * torch.sin(plank * 7.1)
    grain = 0.045 * _wave(along + 0.35 * torch.sin(9 * u), wide_u + wide_v, 4.2)
    edge = (u / width - plank - 0.5).abs() * 2  # 0 in the middle of a plank, 1 at its seam
    seam_width = (0.05 + wide_u / width).clamp(max=1)
    seam = ((edge - (1 - seam_width)) / seam_width).clamp(0, 1) * 0.05 / seam_width
    bright = 0.94 + tint + grain - 0.42 * seam
    return bright[..., None] * u.new_tensor((0.70, 0.51, 0.34))


def _grassy(u: Tensor, v: Tensor, wide_u: Tensor, wide_v: Tensor) -> Tensor:
    wide = wide_u + wide_v
    big = _wave(1.1 * u + 0.8 * torch.sin(0.9 * v), wide, 1.0) * _wave(v - 0.4 * u, wide, 1.2)
    small = _wave(u + 0.3 * torch.sin(2 * v), wide, 5.1) * _wave(v + 0.2 * u, wide, 4.3)
    bright = 0.92 + 0.13 * big + 0.09 * small
    return bright[..., None] * u.new_tensor((0.44, 0.64, 0.28))


def _gray(u: Tensor, v: Tensor, wide_u: Tensor, wide_v: Tensor) -> Tensor:
    return u.new_tensor((0.64, 0.64, 0.66)).expand(*u.shape, 3)


def _sandy(u: Tensor, v: Tensor, wide_u: Tensor, wide_v: Tensor) -> Tensor:
    wide = wide_u + wide_v
    ripple = _wave(v + 0.28 * torch.sin(1.1 * u) + 0.12 * torch.sin(2.3 * u + v), wide, 5.2)
    dune = _wave(u + 0.5 * v, wide, 0.8)
    bright = 0.95 + 0.065 * ripple + 0.05 * dune
    return bright[..., None] * u.new_tensor((0.88, 0.77, 0.56))


ALBEDOS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "checkered floor": _checkered,
    "wooden floor": _wooden,
    "grassy field": _grassy,
    "gray floor": _gray,
    "sandy beach": _sandy,
}
