"""A student learns where its teacher's guided flow leads, on the schedule that it ships with."""

import math
import random

import pytest
import torch
from diffusers import WanPipeline
from torch import nn
from torch._dynamo.testing import CompileCounter

from kernels import bf16_is_native
from svg2.models.finding import BUILTIN_FOLDER
from svg2.training.attention import WrittenOutProcessor
from svg2.training.denoiser import Denoiser, load_shipped
from svg2.training.distil import Distillation, Recipe, distilling, mean_velocity
from svg2.training.dit import compile_blocks, shortest
from svg2.training.latents import LatentSet
from svg2.training.layout import layout_of
from svg2.training.pipeline import EULER, SCHEDULERS, UNIPC, build_transformer
from svg2.training.placement import place
from svg2.training.vae import autocast
from svg2.training.views import CURRICULA, Places, View, all_places
from tests.svg2.training.test_layout import SCENES

PROMPT = "a red ball rolling to the right over a checkered floor"
VIEW = View(1.0, 3, 2, 2)


def clips_of(latent_frames: int) -> LatentSet:
    """Two clips of noise on a grid of 4 x 6 tokens."""
    frames = 2 * (latent_frames - 1) + 1
    placements = [place(scene, frames, random.Random(i)) for i, scene in enumerate(SCENES)]
    layout = layout_of(placements, (latent_frames, 4, 6))
    latents = torch.randn(2, 2, 16, latent_frames, 4, 6, generator=torch.manual_seed(0))
    return LatentSet(latents, SCENES, torch.zeros(16), torch.ones(16), layout)


class Pull(nn.Module):
    """A denoiser whose velocity is its state times a number; with no prompt, times another."""

    def __init__(self, told: float, untold: float = 0.0) -> None:
        super().__init__()
        self.told, self.untold = nn.Parameter(torch.tensor(told)), untold

    def forward(self, noisy, sigma, prompts, places, length):
        by = torch.stack([self.told if p else 0 * self.told + self.untold for p in prompts])
        return by.view(-1, 1, 1, 1, 1) * noisy, None


class Draws:
    """The arguments of a step that do not change."""

    def __init__(self, data: LatentSet, seed: int = 0) -> None:
        self.data = data
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def loss(self, distillation: Distillation, model, view: View = VIEW) -> torch.Tensor:
        return distillation(model, self.data, view, 48, self.rng, self.generator)[0]


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.97), (0.75, 0.6), (0.42, 0.0)])
@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_one_step_with_the_mean_velocity_ends_where_the_flow_does(start, end, spread):
    """Of normal data the flow is known: a state stays as many deviations out."""

    def deviation(sigma: torch.Tensor) -> torch.Tensor:
        return ((1 - sigma).square() * spread**2 + sigma.square()).sqrt()

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        slope = (sigma - (1 - sigma) * spread**2) / deviation(sigma).square()
        return slope[:, None] * x

    state = torch.randn(2, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    ends = [torch.full((2,), value, dtype=torch.float64) for value in (start, end)]
    wanted = state * (deviation(ends[1]) / deviation(ends[0]))[:, None]
    errors = []
    for substeps in (1, 2, 4):
        mean = mean_velocity(velocity, state, *ends, substeps)
        errors.append(float((state + (end - start) * mean - wanted).abs().max()))
    assert errors[2] < 0.01 * float((wanted - state).abs().max()) + 1e-9
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2], "of second order"


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(steps=0), Recipe(steps=0, on_policy=0.0)])
def test_bodies_weigh_in_the_error_of_a_student(monkeypatch, recipe):
    def loss() -> float:
        distillation = Distillation(Pull(0.8, 0.3), recipe)
        return float(Draws(clips_of(3)).loss(distillation, Pull(0.5)))

    weighed = loss()
    monkeypatch.setattr("svg2.training.dit._BODY_WEIGHT", 1.0)
    assert weighed != pytest.approx(loss(), rel=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_tell_the_same_times_from_all_noise_to_none(name):
    scheduler, other = SCHEDULERS[name](), SCHEDULERS[UNIPC]()
    for steps in (1, 4, 8, 10):
        scheduler.set_timesteps(steps)
        other.set_timesteps(steps)
        assert len(scheduler.timesteps) == steps
        assert (scheduler.timesteps - other.timesteps).abs().max() <= 3
        assert scheduler.sigmas[0] > 0.999
        assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_clip_is_not_rounded_to_the_precision_of_the_weights(name):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(4)
    state = torch.randn(1, 16, 3, 4, 4)
    for time in scheduler.timesteps:
        state = scheduler.step(torch.ones_like(state).bfloat16(), time, state, return_dict=False)[
            0
        ]
        assert state.dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("is_own", [True, False])
def test_a_path_is_that_of_the_shipped_scheduler(steps, is_own):
    """From the same noise, with the velocities of the student or with those it should have had."""
    teacher, student = Pull(0.8, 0.3), Pull(0.5)
    distillation = Distillation(teacher, Recipe(steps=steps, on_policy=float(is_own)))
    draws, states = Draws(clips_of(3)), []
    for _ in range(steps + 1):
        draws.loss(distillation, student)
        path = distillation._paths[VIEW, is_own]
        states.append((path.step, path.state))
    assert [step for step, _ in states] == [*range(1, steps + 1), 1], "then it begins anew"

    noise_of = torch.Generator().manual_seed(0)
    state = torch.randn(states[0][1].shape, generator=noise_of)
    scheduler = SCHEDULERS[EULER]()
    scheduler.set_timesteps(steps)
    prompts = torch.tensor([bool(p) for p in distillation._paths[VIEW, is_own].prompts])
    assert prompts.all(), "else the velocity is another"
    guided = 0.3 + 2 * (0.8 - 0.3)
    for i, time in enumerate(scheduler.timesteps):
        h = float(scheduler.sigmas[i + 1] - scheduler.sigmas[i])
        velocity = (0.5 if is_own else guided * (1 + guided * h / 2)) * state
        state = scheduler.step(velocity, time, state, return_dict=False)[0]
        assert torch.allclose(state, states[i][1], atol=1e-5), i


@pytest.mark.parametrize("guidance", [1.0, 2.0, 3.5])
def test_the_guidance_is_that_of_the_pipeline(monkeypatch, guidance):
    """Of the shipped weights: the velocity that its scheduler gets in a run of `WanPipeline`."""
    pipe = WanPipeline.from_pretrained(BUILTIN_FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    step = pipe.scheduler.step

    def watched(velocity, time, sample, **more):
        seen.append((velocity, float(time) / 1000, sample))
        return step(velocity, time, sample, **more)

    monkeypatch.setattr(pipe.scheduler, "step", watched)
    pipe(
        PROMPT,
        **{"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 2},
        guidance_scale=guidance,
        max_sequence_length=48,
        output_type="latent",
        generator=torch.manual_seed(0),
    )
    distillation = Distillation(load_shipped(BUILTIN_FOLDER), Recipe(guidance, steps=0))
    places = all_places(1, (3, 8, 8))
    errors = []
    for velocity, time, sample in seen:
        sigma = torch.tensor([time])
        found = distillation._wanted(places.of(sample), sigma, sigma, [PROMPT], places, 48)
        errors.append(float((found.view(velocity.shape) - velocity).norm() / velocity.norm()))
    assert max(errors) < 0.02


@pytest.mark.parametrize("guidance", [1.0, 2.0, 7.0])
def test_without_a_prompt_a_student_learns_the_velocity_without_guidance(guidance):
    """So that a guidance scale above 1 still has two velocities to go between."""
    distillation = Distillation(Pull(0.8, 0.3), Recipe(guidance, steps=0))
    state, sigma = torch.randn(2, 16, 1, 1, 4), torch.tensor([0.5, 0.5])
    places = Places(torch.arange(4).expand(2, -1), (1, 2, 2))
    wanted = distillation._wanted(state, sigma, sigma, ["", PROMPT], places, 48)
    assert torch.allclose(wanted[0], 0.3 * state[0])
    assert torch.allclose(wanted[1], (0.3 + guidance * 0.5) * state[1], atol=1e-5)


@pytest.mark.parametrize("on_policy", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("steps", [0, 4])
def test_the_share_of_states_of_its_own_is_the_one_asked_for(on_policy, steps):
    distillation = Distillation(Pull(0.8), Recipe(steps=steps, on_policy=on_policy))
    draws, student, own = Draws(clips_of(3)), Pull(0.5), 0
    for _ in range(200):
        before = distillation._paths.get((VIEW, True))
        at = None if before is None else (id(before), before.step)
        draws.loss(distillation, student)
        after = distillation._paths.get((VIEW, True))
        own += after is not None and (id(after), after.step) != at
    assert own == pytest.approx(200 * on_policy, abs=20)
    if steps == 0:
        assert (VIEW, False) not in distillation._paths, "clips of the data take its place"


@pytest.mark.parametrize("on_policy", [0.0, 0.5, 1.0])
def test_a_student_of_one_step_learns_where_its_teacher_gets_in_many(on_policy):
    recipe = Recipe(guidance=2.0, steps=1, on_policy=on_policy, substeps=16)
    distillation = Distillation(Pull(1.1, 0.6), recipe)
    draws, student = Draws(clips_of(3)), Pull(0.1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    for _ in range(80):
        loss = draws.loss(distillation, student)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The flow of velocity 1.6 x from noise level 1 to 0.
    assert 1 - float(student.told.detach()) == pytest.approx(math.exp(-1.6), abs=0.01)


def test_a_student_notes_what_it_ships_with_and_leaves_its_teacher_as_it_is():
    course = distilling(Denoiser(transformer=build_transformer(1, 2, 64)), Recipe(steps=4))
    assert course.notes["scheduler"] == EULER
    assert course.notes["recipe"]["steps"] == 4
    assert not any(p.requires_grad for p in course.losses.teacher.parameters())
    alone = distilling(course.losses.teacher, Recipe(steps=0)).notes
    assert alone["scheduler"] == UNIPC


@pytest.mark.parametrize(("frames", "wanted"), [(2, 3), (3, 3), (4, 5), (5, 5), (9, 5)])
def test_a_view_reads_the_shortest_clips_with_as_many_frames(frames, wanted):
    sets = [clips_of(5), clips_of(3)]
    assert shortest(sets, View(1.0, frames, 1, 1)).layout.grid[0] == wanted


@pytest.mark.parametrize("stage", ["long", "distil"])
def test_both_lengths_of_clips_are_in_every_lesson(stage):
    for lessons in CURRICULA[stage].values():
        for lesson in lessons:
            assert {view.num_frames for view in lesson.views} == {9, 17}
            short = sum(view.weight for view in lesson.views if view.num_frames == 9)
            assert 0.1 <= short / sum(view.weight for view in lesson.views) <= 0.3
        assert max(lessons[-1].views, key=lambda view: view.weight).num_frames == 17
        main = max(lessons[0].views, key=lambda view: view.weight)
        assert main.stride > 1, "parts of clips first"
        assert any((view.num_frames, view.stride) == (17, 1) for view in lessons[-1].views)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=() if stage == "distil" else pytest.mark.nightly)
        for stage in CURRICULA
    ],
)
def test_one_graph_serves_all_views_and_lengths_of_prompts(stage, device):
    """A CPU also has views of one clip; and a teacher runs without gradients."""
    torch._dynamo.reset()
    counter, side = CompileCounter(), 6
    models = [Denoiser(transformer=build_transformer(1, 2, 64)) for _ in range(2)]
    for model in models:
        compile_blocks(model, counter)
    if device == "cpu" and bf16_is_native():  # as in training
        for block in models[0].transformer.blocks:
            block.attn1.set_processor(WrittenOutProcessor())
            block.attn2.set_processor(WrittenOutProcessor())
    views = {view for lesson in CURRICULA[stage][device] for view in lesson.views}
    for view in sorted(views, key=lambda view: -view.clips):
        count = view.num_frames * ((side // view.stride) ** 2 + (7 if view.window else 0))
        places = Places(torch.arange(count).expand(view.clips, -1), (17, side, side))
        noisy, sigma = torch.randn(view.clips, 16, 1, 1, count), torch.rand(view.clips)
        for length in (48, 64, 512):
            given = (noisy, sigma, [PROMPT] * view.clips, places, length)
            with autocast("cpu"):
                velocity = models[0](*given)[0]
            velocity.float().mean().backward()
            if stage == "distil":
                with autocast("cpu"), torch.no_grad():
                    models[1](*given)
    # With one clip, with more, and each again for a teacher. `recompile_limit` is 8.
    assert counter.frame_count <= (2 if device == "cuda" else 5)
