"""Ray-cast clips of a `Scene`: analytic shapes, shaded, with shadows on a textured ground.

A pinhole camera; x points to the right, y up, z away from the viewer; the ground is y = 0.
"""

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from svg2.training.grammar import Scene

PALETTE = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.98, 0.48, 0.05),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.08, 0.62, 0.16),
    "blue": (0.10, 0.22, 0.88),
    "purple": (0.55, 0.12, 0.72),
    "white": (0.95, 0.95, 0.95),
}
_EYE = (0.0, 1.9, -4.1)
_PITCH = 0.27  # radians below the horizon
_FOCAL = 1.55  # in half image widths
_HALF_HEIGHT = {"ball": 1.0, "cube": 0.85, "cylinder": 0.95, "cone": 1.0}
_HORIZON = (0.80, 0.88, 0.96)


@dataclass(frozen=True)
class Placement:
    """What a prompt leaves open: where the object is at each frame, and the light."""

    radius: float
    x: tuple[float, ...]
    y: tuple[float, ...]
    z: float
    yaw: tuple[float, ...]
    light: tuple[float, float, float]
    ground_shift: tuple[float, float]


def place(scene: Scene, num_frames: int, rng: random.Random) -> Placement:
    """Draw a placement for `scene`; more frames sample the same motion more finely."""
    radius = rng.uniform(0.62, 0.8)
    z = rng.uniform(-0.2, 0.6)
    times = [i / max(num_frames - 1, 1) for i in range(num_frames)]
    x0, yaw0 = rng.uniform(-0.7, 0.7), rng.uniform(0, math.pi / 2)
    x, y, yaw = [x0] * num_frames, [0.0] * num_frames, [yaw0] * num_frames
    if scene.motion in ("right", "left"):
        sign = 1.0 if scene.motion == "right" else -1.0
        start, length = rng.uniform(-1.6, -1.1), rng.uniform(2.2, 3.0)
        x = [sign * (start + length * t) for t in times]
    elif scene.motion == "bounce":
        height, cycles = rng.uniform(0.8, 1.1), 1.5
        phase = rng.choice((0.0, 0.5))
        u = [(phase + cycles * t) % 1.0 for t in times]
        y = [4 * height * v * (1 - v) for v in u]
    elif scene.motion == "spin":
        turn = rng.choice((-1, 1)) * rng.uniform(0.8, 1.1) * math.pi
        yaw = [yaw0 + turn * t for t in times]
    light = torch.tensor([rng.uniform(-0.75, -0.45), 1.0, rng.uniform(-0.75, -0.45)])
    light = light / light.norm()
    return Placement(
        radius,
        tuple(x),
        tuple(y),
        z,
        tuple(yaw),
        tuple(light.tolist()),
        (rng.uniform(0, 2), rng.uniform(0, 2)),
    )


def render(
    scene: Scene,
    placement: Placement,
    height: int,
    width: int,
    supersample: int = 2,
    device: str = "cpu",
) -> UInt8[Tensor, "F height width 3"]:
    """Render one clip. Shapes: one frame per entry of `placement.x`."""
    h, w = height * supersample, width * supersample
    eye = torch.tensor(_EYE, device=device)
    rays = _rays(h, w, device)  # [P, 3]
    light = torch.tensor(placement.light, device=device)
    base = torch.tensor(PALETTE[scene.colour], device=device)
    sky, ground, ground_points, ground_pixels, haze = _background(
        scene.ground, placement.ground_shift, eye, rays, light
    )
    frames = []
    for x, y, yaw in zip(placement.x, placement.y, placement.yaw, strict=True):
        lift = _HALF_HEIGHT[scene.shape] * placement.radius
        centre = torch.tensor([x, y + lift, placement.z], device=device)
        image = sky.clone()
        shade = _shadow(scene.shape, ground_points, centre, placement.radius, yaw, light)
        lit = ground * (1 - 0.62 * shade[:, None])
        image[ground_pixels] = lit * (1 - haze) + torch.tensor(_HORIZON, device=device) * haze
        near = _near_pixels(rays, eye, centre, placement.radius)
        hit, _, normal = _intersect(
            scene.shape, eye.expand(len(near), 3), rays[near], centre, placement.radius, yaw
        )
        pixels, normals, view = near[hit], normal[hit], rays[near[hit]]
        image[pixels] = _shade(base, normals, view, light, scene.material == "shiny")
        frames.append(image)
    clip = torch.stack(frames).view(len(frames), height, supersample, width, supersample, 3)
    clip = clip.mean(dim=(2, 4)).clamp(0, 1)
    return (clip * 255).round().to(torch.uint8)


def _rays(h: int, w: int, device: str) -> Float[Tensor, "P 3"]:
    ys = -((torch.arange(h, device=device) + 0.5) / h * 2 - 1) * (h / w)
    xs = (torch.arange(w, device=device) + 0.5) / w * 2 - 1
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    d = torch.stack([x, y, torch.full_like(x, _FOCAL)], -1).view(-1, 3)
    c, s = math.cos(_PITCH), math.sin(_PITCH)
    turned = torch.stack([d[:, 0], c * d[:, 1] - s * d[:, 2], s * d[:, 1] + c * d[:, 2]], -1)
    return turned / turned.norm(dim=-1, keepdim=True)


def _background(name: str, shift: tuple[float, float], eye, rays, light):
    """Sky [P, 3]; lit ground colours, its points and pixel numbers; haze by distance."""
    up = (rays[:, 1:2] / 0.45).clamp(0, 1)
    horizon = torch.tensor(_HORIZON, device=rays.device)
    sky = horizon * (1 - up) + torch.tensor((0.42, 0.64, 0.92), device=rays.device) * up
    pixels = (rays[:, 1] < -1e-3).nonzero()[:, 0]
    t = -eye[1] / rays[pixels, 1]
    points = eye + rays[pixels] * t[:, None]
    u, v = points[:, 0] + shift[0], points[:, 2] + shift[1]
    colour = _ground_colour(name, u, v)
    haze = (1 - torch.exp(-((t / 9.0) ** 2)))[:, None]
    lit = colour * (0.35 + 0.65 * light[1])
    return sky, lit, points, pixels, haze


def _ground_colour(name: str, u: Tensor, v: Tensor) -> Float[Tensor, "P 3"]:
    if name == "checkered floor":
        odd = ((torch.floor(u / 1.2) + torch.floor(v / 1.2)) % 2)[:, None]
        return odd * u.new_tensor((0.88, 0.87, 0.84)) + (1 - odd) * u.new_tensor(
            (0.30, 0.31, 0.34)
        )
    if name == "wooden floor":
        plank = torch.floor(u / 0.6)
        tint = 0.82 + 0.18 * torch.sin(plank * 12.9898)
        grain = 0.04 * torch.sin(9 * v + 5 * torch.sin(plank * 7.1) + 3 * u)
        seam = ((u / 0.6 - plank) < 0.05).float() * 0.35
        return u.new_tensor((0.72, 0.47, 0.26)) * (tint + grain - seam)[:, None]
    if name == "grassy field":
        waves = torch.sin(2.3 * u + 1.1 * v) * torch.sin(1.7 * v - 0.6 * u)
        return u.new_tensor((0.42, 0.66, 0.26)) * (0.9 + 0.16 * waves)[:, None]
    return u.new_tensor((0.62, 0.62, 0.64)).expand(len(u), 3)


def _near_pixels(rays: Tensor, eye: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Pixels whose ray meets the bounding sphere: the only ones worth intersecting."""
    to = centre - eye
    along = rays @ to
    distance2 = (to * to).sum() - along**2
    return (distance2 < (1.45 * radius) ** 2).nonzero()[:, 0]


def _shadow(shape: str, points, centre, radius: float, yaw: float, light) -> Tensor:
    """Share of the light kept from each ground point, 0 or 1; anti-aliased by supersampling."""
    to = centre - points
    along = to @ light
    near = (((to * to).sum(-1) - along**2) < (1.45 * radius) ** 2).nonzero()[:, 0]
    shade = torch.zeros(len(points), device=points.device)
    hit, _, _ = _intersect(shape, points[near], light.expand(len(near), 3), centre, radius, yaw)
    shade[near] = hit.float()
    return shade


def _shade(base: Tensor, normal: Tensor, view: Tensor, light: Tensor, shiny: bool) -> Tensor:
    diffuse = (normal @ light).clamp(min=0)[:, None]
    bounce = (0.5 - 0.5 * normal[:, 1:2]) * 0.10
    colour = base * (0.38 + 0.66 * diffuse + bounce)
    if shiny:
        reflected = view - 2 * (view * normal).sum(-1, keepdim=True) * normal
        highlight = (reflected @ light).clamp(min=0)[:, None]
        colour = colour + 0.75 * highlight**24
    return colour


def _intersect(shape: str, origins, rays, centre, radius: float, yaw: float):
    """First hit of each ray: (hit bool [M], distance [M], outward normal [M, 3])."""
    c, s = math.cos(yaw), math.sin(yaw)
    turn = origins.new_tensor(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    o, d = (origins - centre) @ turn / radius, rays @ turn
    hit, t, normal = _SHAPES[shape](o, d)
    return hit & (t > 1e-4), t * radius, normal @ turn.T


def _ball(o, d):
    b = (o * d).sum(-1)
    disc = b * b - (o * o).sum(-1) + 1
    t = -b - disc.clamp(min=0).sqrt()
    return disc > 0, t, o + d * t[:, None]


def _cube(o, d):
    half = 0.85
    inverse = 1 / torch.where(d.abs() < 1e-6, torch.full_like(d, 1e-6), d)
    t0, t1 = (-half - o) * inverse, (half - o) * inverse
    enter, axis = torch.minimum(t0, t1).max(-1)
    leave = torch.maximum(t0, t1).min(-1).values
    normal = torch.nn.functional.one_hot(axis, 3) * -torch.sign(d)
    return enter < leave, enter, normal.to(o.dtype)


def _side_and_caps(o, d, side, caps):
    """Nearest of a curved side and flat caps; each a (valid, distance, normal)."""
    best_t = torch.full_like(o[:, 0], torch.inf)
    best_n = torch.zeros_like(o)
    for valid, t, n in (side, *caps):
        better = valid & (t > 1e-4) & (t < best_t)
        best_t = torch.where(better, t, best_t)
        best_n = torch.where(better[:, None], n, best_n)
    return torch.isfinite(best_t), best_t, best_n


def _cap(o, d, y: float, radius: float):
    t = (y - o[:, 1]) / torch.where(d[:, 1].abs() < 1e-6, torch.full_like(d[:, 1], 1e-6), d[:, 1])
    p = o + d * t[:, None]
    normal = o.new_tensor((0.0, math.copysign(1.0, y), 0.0)).expand_as(o)
    return (p[:, 0] ** 2 + p[:, 2] ** 2) < radius**2, t, normal


def _quadratic(a, b, c):
    disc = b * b - a * c
    a = torch.where(a.abs() < 1e-6, torch.full_like(a, 1e-6), a)
    root = disc.clamp(min=0).sqrt()
    t0, t1 = (-b - root) / a, (-b + root) / a
    return disc > 0, torch.minimum(t0, t1), torch.maximum(t0, t1)


def _cylinder(o, d):
    r, h = 0.72, 0.95
    ox, oz, dx, dz = o[:, 0], o[:, 2], d[:, 0], d[:, 2]
    ok, t, _ = _quadratic(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - r * r)
    p = o + d * t[:, None]
    normal = torch.stack([p[:, 0] / r, torch.zeros_like(t), p[:, 2] / r], -1)
    side = (ok & (p[:, 1].abs() < h), t, normal)
    return _side_and_caps(o, d, side, (_cap(o, d, h, r), _cap(o, d, -h, r)))


def _cone(o, d):
    h, r = 1.0, 0.9
    k2 = (r / (2 * h)) ** 2
    w, dy = h - o[:, 1], -d[:, 1]
    a = d[:, 0] ** 2 + d[:, 2] ** 2 - k2 * dy * dy
    b = o[:, 0] * d[:, 0] + o[:, 2] * d[:, 2] - k2 * w * dy
    c = o[:, 0] ** 2 + o[:, 2] ** 2 - k2 * w * w
    ok, t0, t1 = _quadratic(a, b, c)
    sides = []
    for t in (t0, t1):
        p = o + d * t[:, None]
        n = torch.stack([p[:, 0], k2 * (h - p[:, 1]), p[:, 2]], -1)
        n = n / n.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        sides.append((ok & (p[:, 1] < h) & (p[:, 1] > -h), t, n))
    return _side_and_caps(o, d, sides[0], (sides[1], _cap(o, d, -h, r)))


_SHAPES = {"ball": _ball, "cube": _cube, "cylinder": _cylinder, "cone": _cone}
