"""Stage `evaluate`: do generated clips show the asked colour and the asked movement?

The object is the largest connected region of the asked colour's hue; its centroid over time gives
the movement. Prompts are combinations held out of training.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from svg2.training.grammar import MOTIONS, Scene, describe, held_out, random_scene

# OpenCV hue (0 to 180), then the least saturation that no ground reaches at that hue.
_HUES = {
    "red": (0, 7, 130),
    "orange": (14, 6, 185),
    "yellow": (26, 6, 140),
    "green": (64, 14, 175),
    "blue": (116, 10, 150),
    "purple": (141, 12, 110),
}
_MIN_AREA = 0.006  # of the frame
_MOVED_X = 0.15  # of the width, first to last
_MOVED_Y = 0.08  # of the height, highest to lowest


@dataclass(frozen=True)
class Sighting:
    """Share of a clip's frames with the object, and its movement in shares of the frame."""

    seen: float
    shift_x: float
    range_y: float

    @property
    def has_colour(self) -> bool:
        return self.seen >= 0.8

    def moves_as(self, motion: str) -> bool:
        """Whether the movement is the asked one; turning in place counts as staying in place."""
        if not self.has_colour:
            return False
        if motion == "right":
            return self.shift_x > _MOVED_X
        if motion == "left":
            return self.shift_x < -_MOVED_X
        still_x = abs(self.shift_x) < _MOVED_X
        return still_x and (self.range_y > _MOVED_Y) == (motion == "bounce")


def object_mask(frame: UInt8[np.ndarray, "H W 3"], colour: str) -> Bool[np.ndarray, "H W"]:
    """The largest region of `colour`, empty where none is large enough; not for white."""
    hue, spread, saturation = _HUES[colour]
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV).astype(np.int16)
    distance = np.abs((hsv[..., 0] - hue + 90) % 180 - 90)
    match = (distance <= spread) & (hsv[..., 1] >= saturation) & (hsv[..., 2] >= 50)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(match.astype(np.uint8))
    if count < 2:
        return np.zeros(match.shape, dtype=bool)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    mask = labels == largest
    return mask if mask.mean() >= _MIN_AREA else np.zeros_like(mask)


def centroids(frames: UInt8[np.ndarray, "F H W 3"], colour: str) -> Float[np.ndarray, "F 2"]:
    """Centre (x, y) of the object by frame, in shares of width and height; nan where unseen."""
    out = np.full((len(frames), 2), np.nan)
    for i, frame in enumerate(frames):
        ys, xs = np.nonzero(object_mask(frame, colour))
        if len(xs):
            out[i] = xs.mean() / frame.shape[1], ys.mean() / frame.shape[0]
    return out


def sight(frames: UInt8[np.ndarray, "F H W 3"], colour: str) -> Sighting:
    """Follow the object of `colour` through a clip."""
    track = centroids(frames, colour)
    seen = ~np.isnan(track[:, 0])
    if seen.sum() < 2:
        return Sighting(float(seen.mean()), 0.0, 0.0)
    x, y = track[seen].T
    return Sighting(float(seen.mean()), float(x[-1] - x[0]), float(np.ptp(y)))


def held_out_scenes(count: int, seed: int = 0) -> tuple[Scene, ...]:
    """Scenes never trained on, in a colour that `object_mask` can tell from every ground."""
    rng, scenes = random.Random(f"held out {seed}"), []
    while len(scenes) < count:
        scene = random_scene(rng)
        if held_out(scene) and scene.colour in _HUES:
            scenes.append(scene)
    return tuple(scenes)


def evaluate(
    scenes: Iterable[Scene],
    generate: Callable[[str, int], dict[str, np.ndarray]],
) -> dict:
    """Judge clips of `scenes`; `generate(prompt, seed)` gives uint8 [F, H, W, 3] by method."""
    rows = []
    for i, scene in enumerate(scenes):
        prompt = describe(scene, random.Random(i))
        for method, frames in generate(prompt, i).items():
            seen = sight(frames, scene.colour)
            rows.append(
                {
                    "method": method,
                    "prompt": prompt,
                    "seed": i,
                    "motion": scene.motion,
                    "colour_ok": seen.has_colour,
                    "motion_ok": seen.moves_as(scene.motion),
                    "shift_x": round(seen.shift_x, 3),
                    "range_y": round(seen.range_y, 3),
                }
            )
    return {
        "shares": {m: _shares(rows, m) for m in dict.fromkeys(r["method"] for r in rows)},
        "rows": rows,
    }


def _shares(rows: list[dict], method: str) -> dict:
    rows = [r for r in rows if r["method"] == method]
    kinds = [m for m in MOTIONS if any(r["motion"] == m for r in rows)]
    return {
        "prompts": len(rows),
        "colour": _share(r["colour_ok"] for r in rows),
        "motion": _share(r["motion_ok"] for r in rows),
        "motion_by_kind": {
            m: _share(r["motion_ok"] for r in rows if r["motion"] == m) for m in kinds
        },
    }


def _share(flags: Iterable[bool]) -> float:
    return round(float(np.mean(list(flags))), 3)


def evaluate_shipped(model: str, prompts: int, top_p: float | None = None) -> dict:
    """Judge a model on held-out prompts, dense and sparse, and how close the sparse runs stay.

    Args:
        model: model id or folder.
        top_p: budget of the sparse runs; None takes the model's own.
    """
    from svg2.config import METHODS, method_config
    from svg2.environment import provenance
    from svg2.generate import compare, generate_dense
    from svg2.models import load_pipeline, model_spec
    from svg2.request import Request
    from svg2.trace import RecordingPolicy

    spec = model_spec(model)
    config = spec.config if top_p is None else spec.config.replace(top_p=top_p)
    pipe = load_pipeline(model, "auto", "auto")
    nothing = RecordingPolicy(steps=(), layers=(), heads=())
    results: dict[str, list[dict]] = {m: [] for m in METHODS}

    def generate(prompt: str, seed: int) -> dict[str, np.ndarray]:
        request = Request(prompt=prompt, model=model, seed=seed)
        dense = generate_dense(pipe, request)
        frames = {"dense": dense.frames}
        for method in METHODS:
            done = compare(
                request,
                method,
                method_config(method, config),
                pipe=pipe,
                dense=dense,
                policy=nothing,
            )
            frames[method] = done.sparse.frames
            results[method].append(done.result)
        print(prompt, [round(results[m][-1]["psnr_db"] or 99, 1) for m in METHODS], flush=True)
        return frames

    report = provenance(pipe.device) | evaluate(held_out_scenes(prompts), generate)
    report["fidelity"] = {
        method: {
            "top_p": config.top_p,
            "density_median": float(np.median([r["density"] for r in rs])),
            "psnr_db_median": float(np.median([r["psnr_db"] for r in rs])),
            "psnr_db_worst": float(np.min([r["psnr_db"] for r in rs])),
            "speedup_median": float(np.median([r["speedup"] for r in rs])),
        }
        for method, rs in results.items()
    }
    return report
