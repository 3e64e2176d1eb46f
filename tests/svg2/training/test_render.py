"""Rendered clips show the scene that was asked for, as the evaluation reads it."""

import random

import numpy as np
import pytest
import torch

from svg2.training.evaluate import evaluate, held_out_scenes, object_mask, sight
from svg2.training.grammar import SHAPES, Scene, held_out
from svg2.training.render import place, render


def clip(scene: Scene, seed: int, size: int = 64, num_frames: int = 9) -> np.ndarray:
    placement = place(scene, num_frames, random.Random(seed))
    return render(scene, placement, size, size).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_solid_and_of_its_colour(shape):
    frames = clip(Scene("blue", shape, "still", "gray floor"), seed=1)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == np.uint8
    mask = object_mask(frames[0], "blue")
    assert 0.015 < mask.mean() < 0.3


def test_still_clips_repeat_one_frame_and_a_seed_repeats_the_clip():
    scene = Scene("red", "cube", "still", "wooden floor")
    frames = clip(scene, seed=3)
    assert (frames == frames[:1]).all()
    assert (frames == clip(scene, seed=3)).all()
    assert (frames != clip(scene, seed=4)).any()


def test_shiny_is_brighter_at_its_highlight():
    shiny = clip(Scene("red", "ball", "still", "gray floor", "shiny"), seed=0)
    matte = clip(Scene("red", "ball", "still", "gray floor", "matte"), seed=0)
    mask = object_mask(matte[0], "red")
    assert shiny[0][mask].astype(int).sum(-1).max() > matte[0][mask].astype(int).sum(-1).max() + 60


def test_the_evaluation_passes_rendered_clips_of_held_out_scenes():
    scenes = held_out_scenes(24)
    assert all(map(held_out, scenes))
    seen = iter(scenes)
    report = evaluate(scenes, lambda _, seed: {"rendered": clip(next(seen), seed, 128, 17)})
    assert report["shares"]["rendered"]["colour"] == 1
    assert report["shares"]["rendered"]["motion"] == 1


def test_the_evaluation_fails_the_wrong_colour_and_the_wrong_direction():
    frames = clip(Scene("red", "ball", "right", "grassy field"), seed=0, size=128, num_frames=17)
    assert sight(frames, "red").moves_as("right")
    assert not sight(frames, "red").moves_as("left")
    assert not sight(frames, "red").moves_as("still")
    assert not sight(frames, "blue").has_colour


def test_noise_shows_nothing():
    noise = torch.randint(
        0, 256, (9, 64, 64, 3), dtype=torch.uint8, generator=torch.manual_seed(0)
    )
    assert not sight(noise.numpy(), "green").has_colour
