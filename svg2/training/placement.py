"""Positions of bodies, camera and sun at each frame of a `Scene`, random if not in the prompt.

Little is random, because a small model has to learn it. Objects stand straight or at three
quarters, and grounds are still. The first of two objects stands in front, unless one orbits the
other or moves towards or away from the viewer. Clips of up to 17 frames show one second, and
longer clips two, in which bodies go further.

A pinhole camera; x points to the right, y up, z away from the viewer; the ground is y = 0.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from svg2.models.prompts import Body, Scene

EYE = (0.0, 1.9, -4.1)
PITCH = 0.27  # radians below the horizon
FOCAL = 1.55  # in half image widths
# Half height of a standing shape of size 1, and below it the radius on which a shape rolls.
HALF_HEIGHT = {
    **{"ball": 1.0, "cube": 0.85, "cylinder": 0.95},
    **{"cone": 0.95, "pyramid": 0.85, "ring": 1.0},
}
_ROLL_RADIUS = {"ball": 1.0, "cylinder": 0.72, "ring": 1.0}
# Radius of a ball that contains a shape of size 1.
BOUND = {"ball": 1.02, "cube": 1.45, "cylinder": 1.22, "cone": 1.36, "pyramid": 1.5, "ring": 1.02}
_PAN = 0.2  # radians, first frame to last
_ZOOM = 0.95  # of the way forward, first frame to last
_TRIES = 40
# Direction towards the sun before normalising: x and z, and below it their random spread.
_SUNS = {"clear": (-0.6, -0.6), "sunset": (-1.35, -0.55), "cloudy": (-0.25, -0.3)}
_SUN_SPREAD = 0.06
_LANES = (-0.7, 0.95)  # z of two objects, the first in front
_ASIDE = 0.95  # x of two objects, on either side
# Face on, a cube's outline is a cylinder's and a pyramid's is a cone's: two faces tell them apart.
_EDGED = ("cube", "pyramid")
_THREE_QUARTERS = (0.45, 0.75)  # radians about y, to either side


@dataclass(frozen=True)
class _Pace:
    """How far bodies go from the first frame of a clip to the last; pairs are random ranges.

    Attributes:
        sideways_from: where a roll or slide begins, left or right of the middle.
        sideways: length of a roll or slide.
        in_depth: length of a roll or slide towards or away from the viewer; inside an orbit, it is
            that of one second.
        bounces: number of bounces.
        spin: angle of a spin, in half turns.
        orbit_alone: angle of the orbit of a single body, in half turns.
        orbit_around: angle of a wide orbit around another body, in half turns.
        orbit_open: the same where the other body moves towards or away: it ends where the orbit
            would close.
    """

    sideways_from: tuple[float, float]
    sideways: tuple[float, float]
    in_depth: tuple[float, float]
    bounces: float
    spin: tuple[float, float]
    orbit_alone: float
    orbit_around: float
    orbit_open: float


_SHORT_FRAMES = 17  # the longest clip that shows one second
# In one second a wide orbit stays open: closing it would take far larger steps.
_ONE_SECOND = _Pace((1.2, 1.4), (2.4, 2.7), (2.4, 2.7), 1.5, (0.9, 1.0), 1.9, 1.5, 1.5)
# Spins and bounces are as fast as in one second, so the clip reader sees them alike.
_TWO_SECONDS = _Pace((1.8, 2.0), (3.7, 4.0), (3.6, 4.0), 3.0, (1.8, 2.0), 2.1, 2.1, 1.5)


@dataclass(frozen=True)
class Placement:
    """Geometry of one clip.

    Attributes:
        sizes: radius of each body.
        centres: of each body at each frame.
        turns: rotations from the axes of each body to those of the world, at each frame.
        light: unit vector towards the sun.
        eye: position of the camera at each frame.
        yaw: of the camera at each frame, in radians; positive looks to the right.
    """

    sizes: Float[ndarray, " O"]
    centres: Float[ndarray, "O F 3"]
    turns: Float[ndarray, "O F 3 3"]
    light: Float[ndarray, "3"]
    eye: Float[ndarray, "F 3"]
    yaw: Float[ndarray, " F"]

    @property
    def camera_moves(self) -> bool:
        """Whether the camera moves during the clip."""
        return bool(np.ptp(self.yaw) > 0 or np.ptp(self.eye, axis=0).max() > 0)


def place(scene: Scene, num_frames: int, rng: random.Random) -> Placement:
    """Draw a placement for `scene`: one second in up to 17 frames, or two seconds in more.

    More frames of the same time sample the same motion more finely.
    """
    pace = _ONE_SECOND if num_frames <= _SHORT_FRAMES else _TWO_SECONDS
    times = np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1)
    eye, yaw = _camera(scene.camera, times)
    best, most_room = None, -math.inf
    for _ in range(_TRIES):
        side = rng.choice((-1, 1))
        drawn = [_place_body(i, side, scene, times, pace, rng) for i in range(len(scene.bodies))]
        room = min(_gap(drawn), _view_gap(drawn))
        if room > most_room:
            best, most_room = drawn, room
        if room > 0:
            break
    assert best is not None
    x, z = (at + rng.uniform(-_SUN_SPREAD, _SUN_SPREAD) for at in _SUNS[scene.sky])
    light = np.array([x, 1.0, z])
    light[0] *= rng.choice((-1, 1))
    return Placement(
        sizes=np.array([size for size, _, _ in best]),
        centres=np.stack([centres for _, centres, _ in best]),
        turns=np.stack([turns for _, _, turns in best]),
        light=light / np.linalg.norm(light),
        eye=eye,
        yaw=yaw,
    )


def project(points: Float[ndarray, "F 3"], placement: Placement) -> Float[ndarray, "F 2"]:
    """Image positions (x, y) of world points, one per frame, as shares of the image's width."""
    away = points - placement.eye
    c, s = np.cos(placement.yaw), np.sin(placement.yaw)
    x, z = c * away[:, 0] - s * away[:, 2], s * away[:, 0] + c * away[:, 2]
    c, s = math.cos(PITCH), math.sin(PITCH)
    up, depth = c * away[:, 1] + s * z, c * z - s * away[:, 1]
    return np.stack([0.5 + FOCAL * x / depth / 2, 0.5 - FOCAL * up / depth / 2], axis=-1)


def camera_effect(camera: str) -> tuple[float, float]:
    """How a camera's movement shifts a still body in x, in image widths, and enlarges it."""
    times = np.array([0.0, 1.0])
    eye, yaw = _camera(camera, times)
    zeros = np.zeros((1, 2, 3))
    turns = np.zeros((1, 2, 3, 3))
    placement = Placement(np.ones(1), zeros, turns, zeros[0, 0], eye, yaw)
    rest = np.array([[0.0, 0.7, 0.3]] * 2)
    x = project(rest, placement)[:, 0]
    wide = project(rest + np.array([0.1, 0, 0]), placement)[:, 0] - x
    return float(x[1] - x[0]), float(wide[1] / wide[0])


def _camera(camera: str, times: ndarray) -> tuple[ndarray, ndarray]:
    eye = np.tile(np.array(EYE), (len(times), 1))
    yaw = np.zeros(len(times))
    if camera.startswith("pan"):
        sign = 1 if camera == "pan right" else -1
        yaw = sign * _PAN * (times - 0.5)
    elif camera == "zoom in":
        ahead = np.array([0.0, -math.sin(PITCH), math.cos(PITCH)])
        eye = eye + _ZOOM * times[:, None] * ahead
    return eye, yaw


def _place_body(
    index: int, side: int, scene: Scene, times: ndarray, pace: _Pace, rng: random.Random
) -> tuple[float, ndarray, ndarray]:
    """Size, centres `[F, 3]` and turns `[F, 3, 3]` of a body; the first is on side `side`."""
    body, alone = scene.bodies[index], len(scene.bodies) == 1
    one_circles = any(b.motion == "orbit" for b in scene.bodies)
    others = scene.bodies[:index] + scene.bodies[index + 1 :]
    size = rng.uniform(0.86, 0.94)
    if not alone:  # an orbit needs room
        size = rng.uniform(0.7, 0.76) if one_circles else rng.uniform(0.78, 0.84)
    frames = len(times)
    if alone:
        x0, z0 = rng.uniform(-0.3, 0.3), rng.uniform(0.0, 0.3)
    elif one_circles:
        x0, z0 = rng.uniform(-0.15, 0.15), rng.uniform(0.25, 0.45)  # the other goes around it
    else:
        x0 = (side, -side)[index] * (_ASIDE + rng.uniform(-0.15, 0.15))
        z0 = _LANES[0 if _crosses(body, others) else index] + rng.uniform(-0.1, 0.1)
    x, y, z = np.full(frames, x0), np.zeros(frames), np.full(frames, z0)
    turned = rng.uniform(-0.3, 0.3)
    if body.shape in _EDGED:
        turned = rng.choice((-1, 1)) * rng.uniform(*_THREE_QUARTERS)
    yaw = np.full(frames, turned)
    heading = None
    if body.motion in ("roll", "slide"):
        if body.direction in ("left", "right"):
            length = rng.uniform(*pace.sideways)
            sign = 1.0 if body.direction == "right" else -1.0
            x = sign * (length * times - rng.uniform(*reversed(pace.sideways_from)))
            heading = np.array([sign, 0.0])
            if index and body.direction == others[0].direction:
                x = x + sign * rng.uniform(
                    0.8, 1.1
                )  # ahead of the first body, which would hide it
        else:
            length = rng.uniform(*(pace if alone or not one_circles else _ONE_SECOND).in_depth)
            sign = 1.0 if body.direction == "away" else -1.0
            z = rng.uniform(-1.0, -0.7) + length * (times if sign > 0 else 1 - times)
            heading = np.array([0.0, sign])
    elif body.motion == "bounce":
        height, u = rng.uniform(0.85, 1.05), pace.bounces * times % 1.0
        y = 4 * height * u * (1 - u)
    elif body.motion == "spin":
        yaw = yaw + rng.choice((-1, 1)) * rng.uniform(*pace.spin) * math.pi * times
    elif body.motion == "orbit":
        radius = rng.uniform(0.8, 0.9) if alone else rng.uniform(1.5, 1.6)
        angle = rng.uniform(-0.2, 0.2) - math.pi / 2  # from the front
        ahead = any(b.motion == "orbit" for b in scene.bodies[:index])
        if ahead or any(other.direction == "away" for other in others):
            angle += math.pi  # another starts from the front
        half_turns = pace.orbit_alone if alone else pace.orbit_around
        if any(other.direction in ("towards", "away") for other in others):
            half_turns = pace.orbit_open
        angle = angle + side * half_turns * math.pi * times
        x, z = radius * np.cos(angle), 0.35 + radius * np.sin(angle)
    turns = _about_y(yaw)
    lift = HALF_HEIGHT[body.shape]
    if body.motion == "roll" and heading is not None:
        along = x * heading[0] + z * heading[1]
        angle = (along - along[0]) / (_ROLL_RADIUS[body.shape] * size)
        lift = _ROLL_RADIUS[body.shape]
        turns = _about_y(np.full(frames, math.atan2(-heading[1], heading[0]))) @ _about_z(-angle)
        if body.shape == "cylinder":
            turns = turns @ _about_x(np.full(frames, math.pi / 2))  # it lies on its side
    centres = np.stack([x, y + lift * size, z], axis=-1)
    return size, centres, turns


def _crosses(body: Body, others: Sequence[Body]) -> bool:
    """Whether it moves sideways and another moves in depth: further back they would meet."""
    return body.direction in ("left", "right") and any(
        other.direction in ("towards", "away") for other in others
    )


def _gap(drawn: list[tuple[float, ndarray, ndarray]]) -> float:
    """Smallest distance over all frames between balls around the bodies, without corners."""
    if len(drawn) == 1:
        return math.inf
    (size_a, a, _), (size_b, b, _) = drawn
    return float(np.linalg.norm(a - b, axis=-1).min() - 1.15 * (size_a + size_b))


def _view_gap(drawn: list[tuple[float, ndarray, ndarray]]) -> float:
    """Angle between the bodies in most frames, seen from the first position of the camera."""
    if len(drawn) == 1:
        return math.inf
    away = [centres - np.array(EYE) for _, centres, _ in drawn]
    depths = [np.linalg.norm(a, axis=-1) for a in away]
    cosine = (away[0] * away[1]).sum(-1) / (depths[0] * depths[1])
    angle = np.arccos(np.clip(cosine, -1, 1))
    radii = drawn[0][0] / depths[0] + drawn[1][0] / depths[1]
    return float(np.quantile(angle - 0.75 * radii, 0.4))


def _about_x(angle: ndarray) -> Float[ndarray, "F 3 3"]:
    return _rotation(angle, 1, 2)


def _about_y(angle: ndarray) -> Float[ndarray, "F 3 3"]:
    return _rotation(angle, 2, 0)


def _about_z(angle: ndarray) -> Float[ndarray, "F 3 3"]:
    return _rotation(angle, 0, 1)


def _rotation(angle: ndarray, i: int, j: int) -> ndarray:
    turn = np.tile(np.eye(3), (len(angle), 1, 1))
    c, s = np.cos(angle), np.sin(angle)
    turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = c, c, -s, s
    return turn
