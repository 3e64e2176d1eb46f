"""Windows lie on bodies, and what tokens are to know is true of the rendered clip."""

import random

import numpy as np
import pytest
import torch

from svg2.models.prompts import Body, Scene
from svg2.training.layout import Guide, known, layout_of, window
from svg2.training.placement import place
from svg2.training.render import render
from svg2.training.views import CURRICULA, View, pick_places

GRID = (9, 24, 24)
SCENES = (
    Scene((Body("red", "ball", "roll", "right"),), "checkered floor"),
    Scene((Body("red", "ball", "bounce"), Body("blue", "ball", "spin"))),
)


@pytest.fixture(scope="module")
def placements():
    return [place(scene, 17, random.Random(i)) for i, scene in enumerate(SCENES)]


@pytest.fixture(scope="module")
def layout(placements):
    return layout_of(placements, GRID)


@pytest.fixture(scope="module")
def longer():
    placements = [place(scene, 33, random.Random(i)) for i, scene in enumerate(SCENES)]
    return layout_of(placements, (17, 24, 24))


def every_token(count: int) -> torch.Tensor:
    return torch.arange(np.prod(GRID)).expand(count, -1)


@pytest.mark.parametrize("is_mirrored", [0, 1])
def test_tokens_inside_a_body_are_those_that_show_it(placements, layout, is_mirrored):
    masks = render(SCENES, placements, 96, 96).masks.numpy()  # NOFHW
    wanted = known(layout, [(0, is_mirrored), (1, is_mirrored)], every_token(2))
    for clip, body in ((0, 0), (1, 0), (1, 1)):
        disc = wanted.inside[clip, :, body].view(GRID).bool().numpy()
        for latent_frame, frame in ((0, 0), (4, 8), (8, 16)):
            shown = masks[clip, body, frame].reshape(24, 4, 24, 4).mean(axis=(1, 3)) > 0.5
            shown = shown[:, ::-1] if is_mirrored else shown
            both = (disc[latent_frame] & shown).sum()
            either = (disc[latent_frame] | shown).sum()
            assert either > 8
            assert both / either > 0.6
    assert ((wanted.inside.amax(-1) > 0) <= (wanted.near > 0)).all(), "what is inside is near"
    assert 0.03 < (wanted.near > 0).float().mean() < 0.35
    assert not wanted.inside[0, :, 1].any()
    assert wanted.exists.tolist() == [[[1, 0]], [[1, 1]]]


def test_the_tokens_of_a_small_body_count_more(layout):
    wanted = known(layout, [(1, 0)], every_token(1))
    front, back = (wanted.near[0][wanted.inside[0, :, body] > 0] for body in (0, 1))
    sums = [float(near.sum()) for near in (front, back)]
    assert len(front) > 1.3 * len(back), "the second is further away"
    assert max(sums) < 1.25 * min(sums)


def test_offsets_lead_from_a_token_to_the_body(layout):
    wanted = known(layout, [(1, 0)], every_token(1))
    near = wanted.offsets[0, :, 0].norm(dim=-1) < 2.9
    token = torch.arange(np.prod(GRID))
    frame, at = token // 576, torch.stack([token // 24 % 24, token % 24], dim=-1)
    radius = torch.from_numpy(layout.radii[1, 0])[frame]
    led = at + wanted.offsets[0, :, 0] * radius[:, None]
    centre = torch.from_numpy(layout.centres[1, 0])[frame]
    assert torch.allclose(led[near], centre[near], atol=1e-4)
    assert wanted.place[0, 0].tolist() == [-1, -1, -1]
    assert wanted.place[0, -1].tolist() == [1, 1, 1]


def test_a_window_goes_with_its_body_through_every_latent_frame(layout):
    rng = random.Random(0)
    for _ in range(20):
        chosen = window(layout, 0, False, 9, rng)
        assert (chosen.sum(axis=(1, 2)) == 81).all()
        for t, (row, column) in enumerate(layout.centres[0, 0].round().astype(int)):
            if 0 <= row < 24 and 0 <= column < 24:
                assert chosen[t, row, column]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("stage", CURRICULA)
def test_a_curriculum_lasts_to_the_end_and_can_draw_all_its_views(layout, longer, stage, device):
    lessons = CURRICULA[stage][device]
    ends = [lesson.until for lesson in lessons]
    assert ends == sorted(set(ends))
    assert ends[-1] == 1
    for view in (view for lesson in lessons for view in lesson.views):
        of = longer if view.num_frames > 9 else layout
        places = pick_places(of, [(0, 0), (1, 1)], view, random.Random(0))
        square = view.window**2 - (view.window // view.stride) ** 2
        tokens = view.num_frames * ((24 // view.stride) ** 2 + square)
        assert places.index.shape == (2, tokens)


@pytest.mark.parametrize(
    ("view", "count"),
    [(View(1, 9, 3, 2), 576), (View(1, 9, 3, 2, window=9), 9 * 136), (View(1, 4, 1, 2), 4 * 576)],
)
def test_all_clips_of_a_step_show_as_many_tokens(layout, view, count):
    rng = random.Random(0)
    for _ in range(20):
        places = pick_places(layout, [(0, 0), (1, 1)], view, rng)
        assert places.index.shape == (2, count)
        assert (places.index[:, 0] < 576).all()  # the first latent frame is among them
        assert (places.index.diff(dim=1) > 0).all()


def test_a_guide_learns_to_read_what_is_written_in_tokens(layout):
    torch.manual_seed(0)
    index = every_token(2)[:, ::7]
    wanted = known(layout, [(0, 0), (1, 0)], index)
    written = (wanted.place, wanted.offsets.flatten(2), wanted.inside * 4)
    tokens = torch.cat([*written, wanted.exists.expand(-1, index.shape[1], -1)], dim=-1)
    guide = Guide(tokens.shape[-1])
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        loss = guide(tokens, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]
