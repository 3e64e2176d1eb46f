"""Shapes of bodies as signed distances, for sphere tracing.

Every function takes points in the axes of a body of size 1 and returns the distance to its
surface: negative inside, and at most the true distance outside.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

STRIPE = 0.62  # brightness of every other sector of a round body: it shows turning, not hue
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def normal_of(distance_to: Distance, x: Tensor, y: Tensor, z: Tensor) -> Float[Tensor, "M 3"]:
    """Unit normals of a surface: the gradient of its distance, from four points each."""
    e = 6e-3
    total = torch.zeros((len(x), 3), device=x.device)
    for a, b, c in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        gap = distance_to(x + e * a, y + e * b, z + e * c)
        total += gap[:, None] * total.new_tensor((a, b, c))
    return total / total.norm(dim=-1, keepdim=True).clamp(min=1e-9)


def pattern(shape: str, local: Tensor) -> Float[Tensor, " M"]:
    """Brightness of a body's paint. Round bodies have sectors, which show their turning."""
    x, y, z = local.unbind(-1)
    if shape in ("cube", "pyramid"):
        return torch.ones_like(x)
    angle = torch.atan2(y, x) if shape == "ring" else torch.atan2(z, x)
    edge = (torch.sin(3 * angle) * 9).clamp(-1, 1)
    return (1 + STRIPE) / 2 + (1 - STRIPE) / 2 * edge


def _ball(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt() - 1


def _cube(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    half, bevel = 0.85, 0.06
    qx, qy, qz = (a.abs() - (half - bevel) for a in (x, y, z))
    px, py, pz = (q.clamp(min=0) for q in (qx, qy, qz))
    outside = (px * px + py * py + pz * pz).sqrt()
    return outside + torch.maximum(qx, torch.maximum(qy, qz)).clamp(max=0) - bevel


def _cylinder(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    bevel = 0.04
    return _turned((x * x + z * z).sqrt() - (0.72 - bevel), y.abs() - (0.95 - bevel)) - bevel


def _turned(side: Tensor, cap: Tensor) -> Tensor:
    a, b = side.clamp(min=0), cap.clamp(min=0)
    return (a * a + b * b).sqrt() + torch.maximum(side, cap).clamp(max=0)


def _cone(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Apex at y = 0.95, base of radius 0.92 at y = -0.95."""
    radius, height, bevel = 0.92, 1.9, 0.03
    return _to_slope((x * x + z * z).sqrt(), y + 0.95, radius, height, bevel)


def _to_slope(r: Tensor, up: Tensor, radius: float, height: float, bevel: float) -> Tensor:
    """Distance in a half plane to the triangle of axis, base and slope, rounded by `bevel`."""
    slant = math.hypot(radius, height)
    # Shrink the triangle by the bevel on all sides.
    base = bevel
    tip = height - bevel * slant / radius
    wide = radius * (tip - base) / height
    # nearest point of the base, then of the slope
    bx = r - r.clamp(max=wide)
    by = up - base
    dx, dy = -wide, tip - base
    share = (((r - wide) * dx + (up - base) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    sx, sy = r - wide - dx * share, up - base - dy * share
    outside = (torch.minimum(bx * bx + by * by, sx * sx + sy * sy)).clamp(min=1e-12).sqrt()
    inside = (up > base) & ((r - wide) * dy - (up - base) * dx < 0)
    return torch.where(inside, -outside, outside) - bevel


def _pyramid(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A square base of half side 0.95 at y = -0.85, apex at y = 0.85. Outside, a lower bound."""
    half, height = 0.95, 1.7
    bevel = 0.03
    slant = math.hypot(half, height)
    up = y + 0.85
    side = torch.maximum(x.abs(), z.abs())
    face = (side * height + (up - height) * half) / slant
    base = -up
    corner = (x.abs() * height + (up - height) * half) / slant
    other = (z.abs() * height + (up - height) * half) / slant
    planes = torch.maximum(face, base) + bevel
    round_ = (
        (corner + bevel).clamp(min=0).square()
        + (other + bevel).clamp(min=0).square()
        + (base + bevel).clamp(min=0).square()
    ).sqrt()
    # Near an edge, the norm of the planes' distances is too large.
    return torch.where(planes > 0, torch.maximum(planes, 0.72 * round_), planes) - bevel


def _ring(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """An upright torus around the z axis."""
    r = (x * x + y * y).sqrt() - 0.69
    return (r * r + z * z).sqrt() - 0.31


DISTANCES: Mapping[str, Distance] = {
    "ball": _ball,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "pyramid": _pyramid,
    "ring": _ring,
}
