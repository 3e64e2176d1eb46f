"""Rendered clips show the scene that was asked for, as the evaluation reads it."""

import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from svg2.models.prompts import (
    GROUNDS,
    MOTIONS,
    SHAPES,
    SKIES,
    Body,
    Scene,
    parse,
    random_scene,
)
from svg2.training.clip_reader import HUES, flicker, following, moves_as, object_mask, track_bodies
from svg2.training.data import staging_of
from svg2.training.placement import camera_effect, place, project
from svg2.training.render import _Batch, render, render_one
from svg2.training.scenery import ALBEDOS


def clip(scene: Scene, seed: int, size: int = 64, num_frames: int = 9) -> np.ndarray:
    return render_one(scene, num_frames, size, random.Random(seed)).frames[0].numpy()


def one(colour: str, shape: str, motion: str = "still", direction: str = "", **other) -> Scene:
    material = other.pop("material", "matte")
    return Scene((Body(colour, shape, motion, direction, material),), **other)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_solid_and_of_its_colour(shape):
    made = render_one(one("blue", shape), 2, 64, random.Random(1))
    frames = made.frames[0].numpy()
    assert frames.shape == (2, 64, 64, 3)
    assert frames.dtype == np.uint8
    mask, truth = object_mask(frames[0], "blue"), made.masks[0, 0, 0].numpy()
    assert 0.015 < truth.mean() < 0.3
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8


@pytest.mark.parametrize("colour", HUES)
def test_a_colour_is_found_on_every_ground_and_sky_and_no_other_is(colour):
    for ground in GROUNDS:
        for sky in SKIES:
            scene = one(colour, "cube", "spin", ground=ground, sky=sky)
            frame = clip(scene, seed=2, num_frames=1)[0]
            assert object_mask(frame, colour).any(), (ground, sky)
            others = [c for c in HUES if c != colour and object_mask(frame, c).any()]
            assert not others, (ground, sky, others)


def test_still_clips_repeat_one_frame_and_a_seed_repeats_the_clip():
    scene = one("red", "cube", ground="wooden floor")
    frames = clip(scene, seed=3)
    assert (frames == frames[:1]).all()
    assert (frames == clip(scene, seed=3)).all()
    assert (frames != clip(scene, seed=4)).any()


def test_clips_rendered_together_are_those_rendered_alone():
    drawn = []
    for i in range(4):
        rng = random.Random(i)
        scene = random_scene(rng)
        drawn.append((scene, place(scene, 3, rng)))
    scenes, placements = zip(*drawn, strict=True)
    together = render(scenes, placements, 32, 32)
    for i, (scene, placement) in enumerate(drawn):
        alone = render([scene], [placement], 32, 32)
        assert torch.equal(alone.frames[0], together.frames[i])
        assert torch.equal(alone.masks[0], together.masks[i])


def test_a_batch_of_a_gpu_renders_what_a_cpu_does_clip_by_clip():
    """A GPU takes many clips of all shapes, skies and numbers of bodies as one batch."""
    drawn = []
    for i in range(20):
        rng = random.Random(i)
        scene = replace(random_scene(rng), camera="still")
        drawn.append((scene, place(scene, 2, rng)))
    scenes, placements = ([d[k] for d in drawn] for k in (0, 1))
    assert {len(s.bodies) for s in scenes} == {1, 2}
    frames, masks = _Batch(scenes, placements, (48, 48), torch.device("cpu")).render(2)
    alone = render(scenes, placements, 24, 24)
    assert (frames.int() - alone.frames.int()).abs().max() <= 1  # sums in another order
    assert (masks[:, :1] == alone.masks[:, :1]).float().mean() > 0.999


def test_shiny_is_brighter_at_its_highlight():
    shiny = clip(one("red", "ball", material="shiny"), seed=0, num_frames=1)
    matte = clip(one("red", "ball", material="matte"), seed=0, num_frames=1)
    mask = object_mask(matte[0], "red")
    assert shiny[0][mask].astype(int).sum(-1).max() > matte[0][mask].astype(int).sum(-1).max() + 60


def test_the_nearer_body_hides_the_farther_and_bodies_cast_shadows():
    scene = Scene((Body("red", "ball"), Body("blue", "ball")))
    placed = place(scene, 1, random.Random(0))
    centres = np.array([[[0.0, 0.6, -0.5]], [[0.15, 0.6, 1.0]]])
    placed = replace(placed, sizes=np.array([0.6, 0.6]), centres=centres)
    made = render([scene], [placed], 64, 64)
    near, far = made.masks[0, :, 0]
    assert not (near & far).any()
    assert near.sum() > 1.5 * far.sum()
    away = replace(placed, centres=centres + np.array([0.0, 0.0, 60.0]))
    without = render([scene], [away], 64, 64).frames[0, 0].int()
    darker = made.frames[0, 0].int().sum(-1) < without.sum(-1) - 60
    assert (darker & ~near & ~far).sum() > 40


def test_far_checkers_are_averaged_and_not_sampled(monkeypatch):
    scene = one("red", "ball", ground="checkered floor", camera="pan right")
    placed = place(scene, 5, random.Random(1))
    placed = replace(placed, centres=placed.centres + np.array([0.0, 0.0, -60.0]))  # unseen

    def horizon(supersample: int) -> np.ndarray:
        frames = render([scene], [placed], 64, 64, supersample=supersample).frames[0]
        return frames[:, 26:32].numpy().astype(int)

    fine, filtered = horizon(6), horizon(1)
    floor = ALBEDOS["checkered floor"]
    monkeypatch.setitem(ALBEDOS, "checkered floor", lambda u, v, a, b: floor(u, v, 0 * a, 0 * b))
    sampled = horizon(1)
    assert np.square(filtered - fine).mean() < 0.4 * np.square(sampled - fine).mean()


def test_bodies_are_where_the_placement_says():
    scene = one("green", "ball", "slide", "right", camera="pan left")
    placed = place(scene, 5, random.Random(0))
    made = render([scene], [placed], 96, 96)
    truth = project(placed.centres[0], placed)
    for mask, (x, y) in zip(made.masks[0, 0].numpy(), truth, strict=True):
        ys, xs = np.nonzero(mask)
        assert abs(xs.mean() / 96 - x) < 0.02
        assert abs(ys.mean() / 96 - y) < 0.02


@pytest.mark.parametrize("num_frames", [17, 33])
def test_two_bodies_do_not_run_into_each_other(num_frames):
    pairs = 0
    for i in range(300):
        rng = random.Random(f"apart {i}")
        scene = random_scene(rng)
        if len(scene.bodies) == 2:
            placed = place(scene, num_frames, rng)
            apart = np.linalg.norm(placed.centres[0] - placed.centres[1], axis=-1).min()
            assert apart > 0.93 * placed.sizes.sum(), scene
            pairs += 1
    assert pairs > 80


def test_clips_of_one_second_are_staged_as_the_shipped_weights_learned_them():
    """Stores of latents have this hash, and the evaluation renders the same clips."""
    assert staging_of(17, 0) == "01e3144bee369dd9"
    assert staging_of(17, 1) == "82f6fbd37ff6ee1d"


@pytest.mark.parametrize("seed", range(4))
def test_two_seconds_are_worth_watching(seed):
    """A roll crosses the picture, an orbit comes round, and a bounce comes down twice."""

    def placed(motion: str, direction: str = "", num_frames: int = 33):
        scene = one("red", "ball", motion, direction)
        return place(scene, num_frames, random.Random(seed))

    for direction, ends in (("right", (0, -1)), ("left", (-1, 0))):
        across = placed("roll", direction)
        x = project(across.centres[0], across)[list(ends), 0]
        assert x[0] < 0.25
        assert x[1] > 0.75
    circle = placed("orbit").centres[0]
    assert np.linalg.norm(circle[-1] - circle[0]) < 0.5 < np.ptp(circle, axis=0).max()
    height = placed("bounce").centres[0, :, 1]
    low = height < height.min() + 0.25 * np.ptp(height)
    assert np.count_nonzero(np.diff(low.astype(int)) == 1) >= 2
    for motion in ("bounce", "spin"):
        short, long = placed(motion, num_frames=17), placed(motion)
        for moved in ("centres", "turns"):
            slow, fast = (abs(np.diff(getattr(p, moved)[0], axis=0)).max() for p in (short, long))
            assert slow == pytest.approx(fast, rel=0.15, abs=1e-9), "as fast as in one second"


def test_two_that_cross_meet_in_the_middle_of_two_seconds():
    bodies = (Body("red", "ball", "roll", "right"), Body("blue", "cube", "slide", "left"))
    for seed in range(6):
        placed = place(Scene(bodies), 33, random.Random(seed))
        apart = np.subtract(*(project(centres, placed)[:, 0] for centres in placed.centres))
        assert apart[0] < -0.4
        assert apart[-1] > 0.4
        assert 10 <= np.abs(apart).argmin() <= 22


@pytest.mark.parametrize("direction", ["left", "right"])
def test_of_two_that_go_the_same_way_the_second_is_ahead(direction):
    bodies = tuple(Body(colour, "cube", "slide", direction) for colour in ("red", "blue"))
    sign = 1 if direction == "right" else -1
    for seed in range(10):
        for num_frames in (17, 33):
            first, second = place(Scene(bodies), num_frames, random.Random(seed)).centres
            assert (sign * (second - first)[:, 0] > 0.3).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_has_edges_shows_two_faces_and_all_else_stands_straight(shape):
    turns = [place(one("red", shape), 1, random.Random(i)).turns[0, 0] for i in range(20)]
    yaw = np.array([np.arctan2(turn[0, 2], turn[0, 0]) for turn in turns])
    if shape in ("cube", "pyramid"):
        assert yaw.min() < 0 < yaw.max(), "to one side alone"
        assert ((abs(yaw) >= 0.45) & (abs(yaw) <= 0.75)).all()
    else:
        assert (abs(yaw) <= 0.3).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "num_frames"),
    [(25, 17), (25, 33), *(pytest.param(100, n, marks=pytest.mark.nightly) for n in (17, 33))],
)
def test_the_evaluation_passes_rendered_clips(count, num_frames, record_property):
    right = dict.fromkeys(("colour", "motion", "bodies"), 0)
    kinds = set()
    for i in range(count):
        rng = random.Random(f"judged {i}")
        scene = random_scene(rng)
        while not all(b.colour in HUES for b in scene.bodies):
            scene = random_scene(rng)
        frames = clip(scene, i, 96, num_frames)
        growth = camera_effect(scene.camera)[1]
        found = track_bodies(frames, [body.colour for body in scene.bodies], growth)
        for seen, body in zip(found, scene.bodies, strict=True):
            right["bodies"] += 1
            right["colour"] += seen.has_colour(len(scene.bodies) == 1)
            right["motion"] += moves_as(seen, body, scene)
            kinds.add(body.motion)
    record_property("right", right)
    assert kinds == set(MOTIONS)
    assert right["colour"] >= 0.98 * right["bodies"]
    assert right["motion"] >= 0.98 * right["bodies"]


def test_the_evaluation_fails_the_wrong_colour_and_the_wrong_movement():
    scene = one("red", "ball", "roll", "right", ground="grassy field")
    seen = track_bodies(clip(scene, seed=0, size=96, num_frames=17), ["red"])[0]
    assert moves_as(seen, scene.bodies[0], scene)
    for motion, direction in (("roll", "left"), ("roll", "towards"), ("roll", "away")):
        assert not moves_as(seen, Body("red", "ball", motion, direction), scene)
    for motion in ("still", "spin", "bounce", "orbit"):
        assert not moves_as(seen, Body("red", "ball", motion), scene)
    assert not track_bodies(clip(scene, seed=0, size=96), ["blue"])[0].has_colour()


def test_a_body_that_another_hides_for_a_while_is_not_said_to_move():
    scene = parse("a green ball sliding to the right and a red cube resting over a grassy field")
    cube = scene.bodies[1]
    frames = clip(scene, seed=4, size=96, num_frames=17)
    by_itself, beside = track_bodies(frames, ["red"])[0], track_bodies(frames, ["red", "green"])[0]
    assert by_itself.is_whole.all()
    assert not moves_as(by_itself, cube, scene), "else this clip shows nothing"
    assert 5 <= beside.is_whole.sum() < len(frames)
    assert moves_as(beside, cube, scene)
    for motion in ("spin", "bounce"):
        assert not moves_as(beside, Body("red", "cube", motion), scene)


@pytest.mark.parametrize("seed", [7, 8])
def test_where_outlines_blend_a_hidden_body_is_not_said_to_move(seed):
    """Between two bodies a decoded clip has pixels of neither colour."""
    scene = parse("a green ball sliding to the right and a red cube resting over a grassy field")
    sharp = clip(scene, seed, size=192, num_frames=17)
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 2.5) for frame in sharp])
    for frames in (sharp, soft):
        cube = track_bodies(frames, ["red", "green"])[0]
        assert 5 <= cube.is_whole.sum() < 10
        assert moves_as(cube, scene.bodies[1], scene)


def test_a_blue_cube_is_seen_to_turn():
    scene = one("blue", "cube", "spin")
    for seed in range(3):
        turning = track_bodies(clip(scene, seed=seed, size=96, num_frames=17), ["blue"])[0]
        assert moves_as(turning, scene.bodies[0], scene)
        assert not moves_as(turning, Body("blue", "cube", "still"), scene)


def test_noise_shows_nothing_and_flickers():
    noise = torch.randint(
        0, 256, (9, 64, 64, 3), dtype=torch.uint8, generator=torch.manual_seed(0)
    ).numpy()
    assert not track_bodies(noise, ["green"])[0].has_colour()
    assert flicker(noise) > 20 * flicker(clip(one("red", "ball", "spin"), seed=0))


def test_a_cluster_that_travels_with_its_body_is_told_from_one_that_stays():
    scene = one("red", "cube", "slide", "right")
    masks = track_bodies(clip(scene, seed=0, size=96, num_frames=9), ["red"])[0].masks
    grid = (5, 12, 12)
    tokens = np.stack([masks[i].reshape(12, 8, 12, 8).mean((1, 3)) > 0.34 for i in range(0, 9, 2)])
    travels = following(tokens.astype(int).ravel(), grid, masks)
    stays = following(np.broadcast_to(tokens[0].astype(int), grid).ravel(), grid, masks)
    assert travels is not None
    assert stays is not None
    assert travels > 0.9
    assert stays < 0.2
    assert following(tokens.astype(int).ravel(), grid, np.zeros_like(masks)) is None
