"""Reads from the frames of a clip where a body of a colour is, and how it moves.

Bodies are found by hue. White bodies can't be found, because floors and clouds are white too.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from svg2.models.prompts import Body, Scene
from svg2.training.placement import camera_effect

# OpenCV hue (0 to 180), the largest distance to it, and a saturation above all grounds and skies.
HUES = {
    "red": (0, 6, 140),
    "orange": (13, 6, 190),
    "yellow": (26, 5, 150),
    "green": (65, 16, 180),
    "cyan": (91, 9, 150),
    "blue": (116, 9, 160),
    "purple": (139, 11, 110),
    "pink": (165, 9, 80),
}
_LEAST_VALUE = 40
_LEAST_AREA = 0.0025  # of the frame
_PIECE = 0.2  # of the largest region: the body has no smaller parts
_MOVED_X = 0.14  # of the width, first to last
_MOVED_Y = 0.07  # of the height, highest to lowest
_GROWN, _SHRUNK = 1.2, 0.83
_WOUND = 3.4  # radians that an orbit goes around its middle, at least
_LAG = 4  # frames over which a body's inside may change
_TURNED = 7.0  # change inside a turning body in that time, of 255
_STEADILY = 0.25  # quantile of the change: a passing shadow is brief, a turn lasts
_PATCH = 32
_WHOLE = 0.8  # of its largest size: a smaller body beside another is partly hidden by it
_TOUCHING = 0.026  # of the width, between bodies that touch: decoded outlines blend over as much
_FEWEST = 5  # frames from which a movement can be read


@dataclass(frozen=True)
class BodyTrack:
    """A body of one colour in a clip.

    Attributes:
        masks: its pixels; all false in frames without it.
        track: centre (x, y) as shares of width and height, and the root of its share of the
            frame's area; nan in frames without it.
        is_whole: frames in which no other body hides a part of it.
        change: how much its inside changes over four frames, of 255, in most of the clip; nan if
            too few frames show it.
    """

    masks: Bool[ndarray, "F H W"]
    track: Float[ndarray, "F 3"]
    is_whole: Bool[ndarray, " F"]
    change: float

    @property
    def seen(self) -> float:
        """Share of the frames that show it."""
        return float(np.isfinite(self.track[:, 0]).mean())

    def has_colour(self, alone: bool = True) -> bool:
        """Whether most frames show it. A second body in the clip may hide it for a while."""
        return self.seen >= (0.8 if alone else 0.6)


def object_mask(frame: UInt8[ndarray, "H W 3"], colour: str) -> Bool[ndarray, "H W"]:
    """The largest regions of `colour`; empty if none is large enough."""
    hue, spread, saturation = HUES[colour]
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV).astype(np.int16)
    distance = np.abs((hsv[..., 0] - hue + 90) % 180 - 90)
    match = (distance <= spread) & (hsv[..., 1] >= saturation) & (hsv[..., 2] >= _LEAST_VALUE)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(match.astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    if count < 2 or areas.max() < _LEAST_AREA * match.size:
        return np.zeros(match.shape, dtype=bool)
    return np.isin(labels, np.nonzero(areas >= _PIECE * areas.max())[0])


def track_bodies(
    frames: UInt8[ndarray, "F H W 3"], colours: Sequence[str], growth: float = 1.0
) -> list[BodyTrack]:
    """Follow the bodies of `colours` through a clip in which the camera enlarges by `growth`."""
    masks = [np.stack([object_mask(frame, colour) for frame in frames]) for colour in colours]
    grown = growth ** np.linspace(0, 1, len(frames))
    return [
        _body_track(frames, mine, [other for other in masks if other is not mine], grown)
        for mine in masks
    ]


def _body_track(
    frames: ndarray, masks: ndarray, others: Sequence[ndarray], grown: Float[ndarray, " F"]
) -> BodyTrack:
    track = np.full((len(frames), 3), np.nan)
    for i, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        if len(xs):
            size = np.sqrt(len(xs) / mask.size)
            track[i] = xs.mean() / mask.shape[1], ys.mean() / mask.shape[0], size
    is_whole = np.isfinite(track[:, 0])
    if is_whole.any():
        touched = np.any([_touch(masks, other) for other in others], axis=0)
        size = track[:, 2] / grown
        is_whole &= ~(touched & (size < _WHOLE * np.nanmax(size)))
    return BodyTrack(masks, track, is_whole, _change(frames, masks, track, is_whole))


def _touch(masks: ndarray, others: ndarray) -> Bool[ndarray, " F"]:
    """Frames in which two bodies touch."""
    reach = np.ones((2 * round(_TOUCHING * masks.shape[2]) + 1,) * 2, dtype=np.uint8)
    wider = np.stack([cv2.dilate(mask.astype(np.uint8), reach) > 0 for mask in masks])
    return np.asarray((wider & others).any(axis=(1, 2)))


def _change(frames: ndarray, masks: ndarray, track: ndarray, shown: ndarray) -> float:
    """Difference of patches around the body over `_LAG` frames, of 255.

    In the brightest channel, because a change of blue hardly changes grey.
    """
    height, width = frames.shape[1:3]
    patches: list[tuple[ndarray, ndarray] | None] = []
    for frame, mask, (x, y, size), is_shown in zip(frames, masks, track, shown, strict=True):
        if not is_shown:
            patches.append(None)
            continue
        side = 1.3 * size * np.sqrt(height * width) / _PATCH
        matrix = np.array(
            [
                [side, 0, x * width - side * _PATCH / 2],
                [0, side, y * height - side * _PATCH / 2],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        bright = frame.max(axis=-1).astype(np.float32)
        inside = cv2.erode(mask.astype(np.float32), np.ones((3, 3)))
        warp = functools.partial(cv2.warpAffine, M=matrix, dsize=(_PATCH, _PATCH), flags=flags)
        patches.append((warp(bright), warp(inside) > 0.99))
    found = []
    for before, after in zip(patches, patches[_LAG:], strict=False):
        if before is None or after is None:
            continue
        both = before[1] & after[1]
        if both.sum() >= 30:
            found.append(float(np.abs(before[0] - after[0])[both].mean()))
    return float(np.quantile(found, _STEADILY)) if found else math.nan


def moves_as(seen: BodyTrack, body: Body, scene: Scene) -> bool:
    """Whether a body moves as asked, after the camera's movement is subtracted."""
    if not seen.has_colour(len(scene.bodies) == 1):
        return False
    shown = np.isfinite(seen.track[:, 0])
    stays = body.motion in ("still", "spin", "bounce")
    if stays and seen.is_whole.sum() >= _FEWEST:
        shown = seen.is_whole  # the visible part seems to move away from what hides the rest
    frames = np.nonzero(shown)[0]
    share = frames / max(len(seen.track) - 1, 1)
    camera_x, camera_growth = camera_effect(scene.camera)
    zoom = camera_growth**share
    x, y = 0.5 + (seen.track[frames, :2].T - 0.5) / zoom
    x = x - camera_x * share
    size = seen.track[frames, 2] / zoom
    # A few frames at each end, because one body may hide another in a single frame.
    first, last = slice(None, 3), slice(-3, None)
    shift = float(np.median(x[last]) - np.median(x[first])) * len(x) / max(len(x) - 2, 1)
    growth = float(np.median(size[last]) / np.median(size[first]))
    range_x, range_y = float(np.ptp(x)), float(np.ptp(y))
    sideways = abs(shift) > _MOVED_X
    if body.motion == "orbit":
        return range_x > _MOVED_X and _winding(x, y) > _WOUND
    if body.direction in ("left", "right"):
        return sideways and (shift > 0) == (body.direction == "right")
    if body.direction == "towards":
        return growth > _GROWN
    if body.direction == "away":
        return growth < _SHRUNK
    if sideways or not _SHRUNK**1.5 < growth < _GROWN**1.5:
        return False
    if body.motion == "bounce":
        return range_y > _MOVED_Y
    if range_y > _MOVED_Y * 1.5:
        return False
    return seen.change > _TURNED if body.motion == "spin" else seen.change <= _TURNED


def _winding(x: ndarray, y: ndarray) -> float:
    """Angle of a path around its middle in radians, with each axis scaled to its range."""
    ends = [np.array([v.min(), v.max()]) for v in (x, y)]
    scaled = [
        (v - e.mean()) / max(float(np.ptp(e)), 0.02) for v, e in zip((x, y), ends, strict=True)
    ]
    angle = np.unwrap(np.arctan2(scaled[1], scaled[0]))
    return float(abs(angle[-1] - angle[0]))


def flicker(frames: UInt8[ndarray, "F H W 3"]) -> float:
    """Mean second difference over time, of 255: low for even movement, high for noise."""
    values = frames.astype(np.float32)
    return float(np.abs(values[2:] - 2 * values[1:-1] + values[:-2]).mean() / 2)


def following(
    labels: ndarray, grid: tuple[int, int, int], masks: Bool[ndarray, "F H W"]
) -> float | None:
    """Whether a cluster follows a body: its share of last-frame tokens that lie on the body.

    The cluster is the one with the most tokens on the body in the first frame.

    Args:
        labels: cluster of each token, in (frame, row, column) order.
        masks: pixels of the body.

    Returns:
        None if the first or the last frame does not show the body; 0 if the cluster has no tokens
        in the last frame.
    """
    t, y, x = grid
    tokens = labels.reshape(t, y, x)
    first, last = (_on_tokens(masks[i], y, x) for i in (0, -1))
    if not first.any() or not last.any():
        return None
    cluster = np.bincount(tokens[0][first]).argmax()
    mine = tokens[-1] == cluster
    return float((mine & last).sum() / mine.sum()) if mine.any() else 0.0


def _on_tokens(mask: Bool[ndarray, "H W"], rows: int, columns: int) -> Bool[ndarray, "Y X"]:
    """Tokens of which the body covers a third or more, so that its rim is included."""
    covered = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    return covered >= 1 / 3
