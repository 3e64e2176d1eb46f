"""Clips of a `Scene` by sphere tracing: shaded bodies, soft shadows, textured ground, sky.

Clips are rendered in batches: all rays of a batch that pass near bodies of one shape are traced
together. It runs on a CPU or a GPU.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from svg2.models.prompts import GROUNDS, MAX_BODIES, SHAPES, Scene
from svg2.training.placement import BOUND, FOCAL, PITCH, Placement, place
from svg2.training.scenery import ALBEDOS, GROUND_SHIFT, LIGHTS, sky_detail
from svg2.training.solids import DISTANCES, normal_of, pattern

PALETTE = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.98, 0.48, 0.05),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.08, 0.62, 0.16),
    "cyan": (0.05, 0.76, 0.80),
    "blue": (0.10, 0.22, 0.88),
    "purple": (0.50, 0.12, 0.74),
    "pink": (1.00, 0.42, 0.70),
    "white": (0.95, 0.95, 0.95),
}


_MARCH_STEPS = (7, 9, 16, 40)
_SHADOW_STEPS = 12
_XYZ = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Rendered:
    """Rendered clips, and the pixels of each body.

    Attributes:
        frames: one clip per scene.
        masks: per body, the pixels of which at least half show it.
    """

    frames: UInt8[Tensor, "N F H W 3"]
    masks: Bool[Tensor, "N O F H W"]


def render(
    scenes: Sequence[Scene],
    placements: Sequence[Placement],
    height: int,
    width: int,
    *,
    supersample: int = 2,
    device: str = "cpu",
) -> Rendered:
    """Render one clip per scene. All clips have the same number of frames.

    A CPU renders clip by clip, which fits its caches, and a GPU all clips together.

    Args:
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        supersample: rays per pixel and axis.
    """
    at_once = 1 if torch.device(device).type == "cpu" else len(scenes)
    groups: dict[bool, list[int]] = {}
    for i, placement in enumerate(placements):
        groups.setdefault(placement.camera_moves, []).append(i)
    done: dict[int, tuple[Tensor, Tensor]] = {}
    for indices in groups.values():
        for start in range(0, len(indices), at_once):
            some = indices[start : start + at_once]
            batch = _Batch(
                [scenes[i] for i in some],
                [placements[i] for i in some],
                (height * supersample, width * supersample),
                torch.device(device),
            )
            frames, masks = batch.render(supersample)
            done.update({i: (frames[k], masks[k]) for k, i in enumerate(some)})
    order = range(len(scenes))
    return Rendered(
        torch.stack([done[i][0] for i in order]), torch.stack([done[i][1] for i in order])
    )


def render_one(
    scene: Scene, num_frames: int, size: int, rng: random.Random, supersample: int = 2
) -> Rendered:
    """Render one square clip of `scene`; `rng` draws the placement."""
    placement = place(scene, num_frames, rng)
    return render([scene], [placement], size, size, supersample=supersample)


class _Batch:
    """Clips that are rendered together; their cameras all move or all rest.

    Suffixes: N clips, C camera poses (one if cameras rest, else one per frame), F frames, P rays
    of a frame, O bodies.
    """

    def __init__(
        self,
        scenes: list[Scene],
        placements: list[Placement],
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.scenes, self.shape, self.device = scenes, shape, device
        self.num_frames = len(placements[0].eye)
        poses = self.num_frames if placements[0].camera_moves else 1
        self.light = self._tensor([p.light for p in placements])
        self.eye = self._tensor([p.eye[:poses] for p in placements])
        self.yaw = self._tensor([p.yaw[:poses] for p in placements])
        slots = [_slots(p) for p in placements]
        self.size = self._tensor([s for s, _, _ in slots])  # NO
        self.centre = self._tensor([c for _, c, _ in slots])  # NOF3
        self.turn = self._tensor([t for _, _, t in slots])  # NOF33
        lights = [LIGHTS[s.sky] for s in scenes]
        self.horizon, self.zenith, self.sun, self.ambient = (
            self._tensor([getattr(light, name) for light in lights])
            for name in ("horizon", "zenith", "sun", "ambient")
        )
        self.blur = self._tensor([light.blur for light in lights])
        self.chunk = 1 << 15 if device.type == "cpu" else 1 << 24
        self.pixel = 2 / (shape[1] * FOCAL)  # angle between neighbouring rays

    def _tensor(self, values: list) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(self.device)

    def render(self, supersample: int) -> tuple[Tensor, Tensor]:
        """Frames uint8 `[N, F, H, W, 3]` and masks `[N, O, F, H, W]`."""
        ray = self._rays()
        base, over, point, is_ground = self._background(ray)
        n, frames, p = len(self.scenes), self.num_frames, base.shape[2]
        most = max(len(scene.bodies) for scene in self.scenes)
        depth = torch.full((n, most, frames, p), torch.inf, device=self.device)
        colour = torch.empty((n, most, frames, p, 3), device=self.device)
        factor = self._ground_light(point, is_ground, n, frames, p)
        image = base * factor + over
        for shape in SHAPES:
            self._trace(shape, ray, depth, colour)
        nearest, which = depth.min(dim=1)
        seen = torch.isfinite(nearest)
        at = seen.nonzero(as_tuple=True)
        image[at] = colour[at[0], which[at], at[1], at[2]]
        pixels = image.view(n * frames, *self.shape, 3).permute(0, 3, 1, 2)
        clip = F.avg_pool2d(pixels, supersample).permute(0, 2, 3, 1).unflatten(0, (n, frames))
        masks = []
        for body in range(MAX_BODIES):
            covered = (seen & (which == body)).view(n * frames, *self.shape).float()
            share = F.avg_pool2d(covered, supersample)
            masks.append(share.unflatten(0, (n, frames)) >= 0.5)
        return (clip.clamp_(0, 1) * 255).round_().to(torch.uint8), torch.stack(masks, dim=1)

    def _rays(self) -> Float[Tensor, "N C P 3"]:
        h, w = self.shape
        ys = -((torch.arange(h, device=self.device) + 0.5) / h * 2 - 1) * (h / w)
        xs = (torch.arange(w, device=self.device) + 0.5) / w * 2 - 1
        y, x = (axis.flatten() for axis in torch.meshgrid(ys, xs, indexing="ij"))
        c, s = math.cos(PITCH), math.sin(PITCH)
        level = torch.stack([x, c * y - s * FOCAL, s * y + c * FOCAL], dim=-1)
        level = level / level.norm(dim=-1, keepdim=True)
        c, s = self.yaw.cos()[..., None], self.yaw.sin()[..., None]
        x, y, z = level.unbind(-1)
        return torch.stack([c * x + s * z, y.expand_as(c * x), c * z - s * x], dim=-1)

    def _background(self, ray: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Light `[N, C, P, 3]` that shadows darken, and light that they do not darken.

        Also the point on the ground that each ray meets, and whether it meets the ground.
        """
        x, y, z = ray.unbind(-1)
        is_ground = y < -2e-3
        distance = torch.where(is_ground, -self.eye[..., 1:2] / y.clamp(max=-2e-3), 0)
        point = self.eye[:, :, None] + ray * distance[..., None]
        per_clip = [c[:, None, None, None] for c in (self.horizon, self.zenith)]
        horizon, zenith = (c[:, :, 0] for c in per_clip)
        up = ((y.clamp(min=0) / 0.42).clamp(max=1) ** 0.8)[..., None]
        sky = horizon * (1 - up) + zenith * up
        side = torch.sign(self.light[:, 0])
        sky = sky + torch.stack(
            [sky_detail(s.sky, ray[i], side[i]) for i, s in enumerate(self.scenes)]
        )
        haze = torch.where(is_ground, 1 - torch.exp(-((distance / 10.0) ** 2)), 1.0)[..., None]
        albedo = torch.zeros_like(ray)
        # A ray's footprint on the ground: across the view, and along it, where it is longer.
        across = distance * self.pixel
        along = across / y.abs().clamp(min=2e-3)
        level = (x * x + z * z).clamp(min=1e-9).sqrt()
        wide_u = across + along * (x / level).abs()
        wide_v = across + along * (z / level).abs()
        for ground in GROUNDS:
            clips = [i for i, s in enumerate(self.scenes) if s.ground == ground]
            if clips:
                at = torch.tensor(clips, device=self.device)
                u, v = (point[at, ..., axis] + GROUND_SHIFT for axis in (0, 2))
                albedo[at] = ALBEDOS[ground](u, v, wide_u[at], wide_v[at])
        full = (self.ambient + self.sun * self.light[:, 1:2])[:, None, None]
        return albedo * full * (1 - haze), sky * haze, point, is_ground

    def _ground_light(
        self, point: Tensor, is_ground: Tensor, n: int, frames: int, p: int
    ) -> Tensor:
        """Share `[N, F, P, 3]` of the full light that reaches each ray's point on the ground."""
        lit = torch.ones((n, frames, p), device=self.device)
        open_ = torch.ones((n, frames, p), device=self.device)
        for shape in SHAPES:
            for body in range(MAX_BODIES):
                at = self._clips_with(shape, body)
                if at is None:
                    continue
                centre, size = self.centre[at, body], self.size[at, body]  # MF3, M
                squared = _squared_gaps(point[at], centre)  # MFP
                beneath = squared < (2.6 * size[:, None, None]) ** 2
                light = self.light[at][:, :, None]
                along = (centre @ light) - (point[at] @ light[:, None])[..., 0]
                reach = (BOUND[shape] * size)[:, None, None] + along * self.blur[at, None, None]
                shaded = (squared < along.square() + reach.square()) & (along > 0)
                for index, where in self._points(shaded & is_ground[at], at, point):
                    toward = self.light[index[0]]
                    lit[index] *= self._unshadowed(shape, body, index, where, toward)
                for index, where in self._points(beneath & is_ground[at], at, point):
                    open_[index] *= self._openness(body, index, where, None)
        full = (self.ambient + self.sun * self.light[:, 1:2])[:, None, None]
        sun = (self.sun * self.light[:, 1:2])[:, None, None] / full
        ambient = self.ambient[:, None, None] / full
        return ambient * open_[..., None] + sun * lit[..., None]

    def _points(
        self, chosen: Bool[Tensor, "M F P"], clips: Tensor, values: Tensor
    ) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], Tensor]]:
        """Clip, frame and ray of the chosen points, and their `values [N, C, P, 3]`, in chunks."""
        near, frame, p = chosen.nonzero(as_tuple=True)
        clip = clips[near]
        pose = frame if values.shape[1] > 1 else torch.zeros_like(frame)
        for start in range(0, len(clip), self.chunk):
            part = slice(start, start + self.chunk)
            index = (clip[part], frame[part], p[part])
            yield index, values[index[0], pose[part], index[2]]

    def _clips_with(self, shape: str, body: int) -> Tensor | None:
        clips = [
            i
            for i, scene in enumerate(self.scenes)
            if body < len(scene.bodies) and scene.bodies[body].shape == shape
        ]
        return torch.tensor(clips, device=self.device) if clips else None

    def _local(
        self, body: int, index: tuple[Tensor, ...], origin: Tensor, ray: Tensor
    ) -> tuple[_XYZ, _XYZ]:
        """Origin and direction in the axes of a body, scaled to size 1."""
        clip, frame = index[0], index[1]
        turn = self.turn[clip, body, frame]
        o = (origin - self.centre[clip, body, frame])[:, None] @ turn
        o = o[:, 0] / self.size[clip, body][:, None]
        d = (ray[:, None] @ turn)[:, 0]
        return (o[:, 0], o[:, 1], o[:, 2]), (d[:, 0], d[:, 1], d[:, 2])

    def _unshadowed(
        self, shape: str, body: int, index: tuple[Tensor, ...], origin: Tensor, light: Tensor
    ) -> Tensor:
        """Share of the sun that a body does not hide from points `[M, 3]`; shadows are soft.

        From the smallest ratio of the distance to the body to the distance travelled.
        """
        o, d = self._local(body, index, origin, light)
        blur = self.blur[index[0]]
        middle = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2])
        t = (middle - BOUND[shape] * 1.3).clamp(min=0.02)
        end = middle + BOUND[shape] * 1.3
        least = torch.ones_like(t)
        for _ in range(_SHADOW_STEPS):
            gap = DISTANCES[shape](o[0] + d[0] * t, o[1] + d[1] * t, o[2] + d[2] * t)
            least = torch.minimum(least, gap / (blur * t.clamp(min=0.05)))
            t = torch.minimum(t + gap.abs().clamp(min=0.09), end)
        least = least.clamp(-1, 1)
        return 0.25 * (1 + least).square() * (2 - least)

    def _openness(
        self, body: int, index: tuple[Tensor, ...], point: Tensor, normal: Tensor | None
    ) -> Tensor:
        """Share of the sky that a body, as a ball, leaves to points; no normal: on the ground."""
        clip, frame = index[0], index[1]
        gap = self.centre[clip, body, frame] - point
        squared = gap.square().sum(-1)
        above = gap[:, 1] if normal is None else (gap * normal).sum(-1)
        size = 0.85 * self.size[clip, body]
        cover = above.clamp(min=0) * size.square() / squared.clamp(min=1e-4) ** 1.5
        return 1 - 0.75 * ((cover - 0.03).clamp(min=0) / 0.97).clamp(max=1)

    def _trace(self, shape: str, ray: Tensor, depth: Tensor, colour: Tensor) -> None:
        """Write distance and colour of every ray that hits a body of `shape`."""
        for body in range(MAX_BODIES):
            at = self._clips_with(shape, body)
            if at is None:
                continue
            to = self.centre[at, body] - self.eye[at]  # MF3
            along = _dots(ray[at], to)  # MFP
            off = to.square().sum(-1)[..., None] - along.square()
            bound = (BOUND[shape] * self.size[at, body])[:, None, None]
            near = (off < bound**2) & (along > 0)
            for index, rays in self._points(near, at, ray):
                hit, distance, point, normal = self._march(shape, body, index, rays)
                index = (index[0][hit], index[1][hit], index[2][hit])
                shaded = self._shade(shape, body, index, point, normal, rays[hit])
                depth[index[0], body, index[1], index[2]] = distance
                colour[index[0], body, index[1], index[2]] = shaded

    def _march(
        self, shape: str, body: int, index: tuple[Tensor, ...], ray: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
        """Indices of the rays that hit, with distances, points (world, local) and normals."""
        eye = self.eye[index[0], index[1] if self.eye.shape[1] > 1 else 0]
        (ox, oy, oz), (dx, dy, dz) = self._local(body, index, eye, ray)
        distance_to = DISTANCES[shape]
        bound = BOUND[shape]
        middle = -(ox * dx + oy * dy + oz * dz)
        t = (middle - bound).clamp(min=0)
        size = self.size[index[0], body]
        tolerance = 0.3 * self.pixel * t + 1e-3
        # Most rays arrive in a few steps. Rays that graze a face take many.
        going = torch.arange(len(t), device=self.device)
        for steps in _MARCH_STEPS:
            px, py, pz, qx, qy, qz, at = (a[going] for a in (ox, oy, oz, dx, dy, dz, t))
            for _ in range(steps):
                gap = distance_to(px + qx * at, py + qy * at, pz + qz * at)
                at = at + gap
            t[going] = at
            going = going[(gap > tolerance[going]) & (at < (middle + bound)[going])]
            if len(going) == 0:
                break
        missed = torch.zeros_like(t, dtype=torch.bool)
        missed[going] = True
        hit = (~missed & (t < middle + bound)).nonzero()[:, 0]
        x, y, z = ox + dx * t, oy + dy * t, oz + dz * t
        x, y, z, t = x[hit], y[hit], z[hit], (t * size)[hit]
        point = eye[hit] + ray[hit] * t[:, None]
        turn = self.turn[index[0][hit], body, index[1][hit]]
        normal = (turn @ normal_of(distance_to, x, y, z)[..., None])[..., 0]
        return hit, t, (point, torch.stack([x, y, z], dim=-1)), normal

    def _shade(
        self,
        shape: str,
        body: int,
        index: tuple[Tensor, ...],
        point: tuple[Tensor, Tensor],
        normal: Tensor,
        ray: Tensor,
    ) -> Tensor:
        clip = index[0]
        world, local = point
        light = self.light[clip]
        paint = self._tensor([PALETTE[s.bodies[body % len(s.bodies)].colour] for s in self.scenes])
        is_shiny = torch.tensor(
            [s.bodies[body % len(s.bodies)].material == "shiny" for s in self.scenes],
            device=self.device,
        )
        albedo = paint[clip] * pattern(shape, local)[:, None]
        lit = torch.ones_like(clip, dtype=torch.float32)
        open_ = torch.ones_like(lit)
        start = world + 0.03 * normal
        for other in range(MAX_BODIES):
            for caster in SHAPES:
                # Only a ring casts a shadow on itself.
                if other == body and caster != "ring":
                    continue
                at = self._clips_with(caster, other)
                if at is None or (other == body and caster != shape):
                    continue
                mine = torch.isin(clip, at).nonzero()[:, 0]
                some = (clip[mine], index[1][mine])
                lit[mine] *= self._unshadowed(caster, other, some, start[mine], light[mine])
                if other != body:
                    open_[mine] *= self._openness(other, some, world[mine], normal[mine])
        # Sunlight on bodies is nearly white, so that their colours keep their hue.
        sun = self.sun[clip].mean(-1, keepdim=True) * 0.85 + self.sun[clip] * 0.15
        ambient = self.ambient[clip].mean(-1, keepdim=True)
        facing = (normal * light).sum(-1).clamp(min=0)
        up = 0.5 + 0.5 * normal[:, 1]
        low = (world[:, 1] / self.size[clip, body]).clamp(0, 1)  # the ground hides half the sky
        sky = ambient * (0.80 + 0.46 * up * (0.6 + 0.4 * low))[:, None] * open_[:, None]
        colour = albedo * (sky + sun * 1.05 * (facing * lit)[:, None])
        mirror = ray - 2 * (ray * normal).sum(-1, keepdim=True) * normal
        gloss = (mirror * light).sum(-1).clamp(min=0)
        fresnel = (1 + (ray * normal).sum(-1)).clamp(0, 1) ** 3
        rise = (mirror[:, 1:2] / 0.6).clamp(-1, 1)
        seen = torch.where(
            rise > 0,
            self.horizon[clip] + (self.zenith[clip] - self.horizon[clip]) * rise,
            0.42 * self.horizon[clip],
        )
        share = (0.07 + 0.38 * fresnel)[:, None] * (0.4 + 0.6 * lit[:, None])
        shiny = colour * (1 - share) + seen * share
        glint = 0.3 if shape in ("cube", "pyramid") else 1.25  # a flat face glints all at once
        shiny = shiny + (self.sun[clip] * glint) * ((gloss**40) * lit)[:, None]
        matte = colour + 0.05 * (gloss**6 * lit)[:, None]
        return torch.where(is_shiny[clip][:, None], shiny, matte)


def _slots(placement: Placement) -> tuple:
    """Sizes, centres and turns, with the last body repeated up to `MAX_BODIES`."""
    index = [min(i, len(placement.sizes) - 1) for i in range(MAX_BODIES)]
    return placement.sizes[index], placement.centres[index], placement.turns[index]


def _dots(a: Float[Tensor, "M C P 3"], b: Float[Tensor, "M F 3"]) -> Float[Tensor, "M F P"]:
    """Dot products of `a` with `b`; `a` has one pose for all frames, or one per frame."""
    if a.shape[1] == 1:
        return b @ a[:, 0].mT
    return (a @ b[..., None])[..., 0]


def _squared_gaps(point: Float[Tensor, "M C P 3"], centre: Float[Tensor, "M F 3"]) -> Tensor:
    """Squared distances `[M, F, P]`."""
    cross = _dots(point, centre)
    return point.square().sum(-1) - 2 * cross + centre.square().sum(-1)[..., None]
