"""Stage `distil`: a student that takes one forward per step, and few steps.

The student learns the velocity of its teacher with guidance. With a number of steps, it learns the
velocity that leads in one step of Euler's method to where the teacher gets in several, so that
its schedule may be coarse (after progressive distillation, arXiv 2202.00512).

States are those of sampling: clips on their way from noise, which go on where the student's own
last step led, or where the teacher would have got. The student's own cost nothing, because its
prediction leads to the next one. On them it learns to correct its errors (as in DAgger, arXiv
1011.0686).
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from svg2.training.denoiser import Denoiser
from svg2.training.dit import Course, draw, sample_sigma, velocity_error
from svg2.training.latents import LatentSet
from svg2.training.layout import Known, known
from svg2.training.pipeline import EULER, SCHEDULERS, UNIPC, distilled_lab
from svg2.training.vae import autocast
from svg2.training.views import Places, View

Velocity = Callable[[Tensor, Tensor], Tensor]  # of states at their noise levels


@dataclass(frozen=True)
class Recipe:
    """What a student learns.

    Attributes:
        guidance: guidance scale of the teacher, whose negative prompt is empty.
        steps: number of steps of the student; 0 distils the guidance alone, for any number.
        on_policy: share of the training steps whose states are the student's own. The others are
            the teacher's, or noised clips where the guidance alone is distilled.
        substeps: steps of the teacher, of two forwards each, in one step of the student.
    """

    guidance: float = 2.0
    steps: int = 8
    on_policy: float = 0.5
    substeps: int = 1

    @property
    def scheduler(self) -> str:
        """The scheduler of the student, a name of `SCHEDULERS`.

        A velocity that leads to the next time is of that step alone: a scheduler of several steps
        would extrapolate from it what it already contains.
        """
        return EULER if self.steps else UNIPC


def distilling(teacher: Denoiser, recipe: Recipe) -> Course:
    """The course of a student of `teacher`, which stays as it is."""
    notes = {"recipe": asdict(recipe), "scheduler": recipe.scheduler}
    return Course("distil", Distillation(teacher, recipe), {"loss": 1.0}, notes)


@dataclass
class _Path:
    """Clips on their way from noise: their tokens at `places` after some steps."""

    state: Float[Tensor, "B C 1 1 N"]
    places: Places
    shown: Known
    prompts: list[str]
    step: int = 0


class Distillation:
    """Losses of a student. It keeps one path of the student and one of the teacher per view."""

    def __init__(self, teacher: Denoiser, recipe: Recipe) -> None:
        self.teacher, self.recipe = teacher.eval().requires_grad_(False), recipe
        scheduler = SCHEDULERS[recipe.scheduler]()
        scheduler.set_timesteps(int(distilled_lab(recipe.steps)["num_inference_steps"]))
        self.sigmas: list[float] = scheduler.sigmas.tolist()
        # What the pipeline tells the transformer: whole numbers.
        self.told = [int(time) / 1000 for time in scheduler.timesteps]
        self._paths: dict[tuple[View, bool], _Path] = {}

    def __call__(
        self,
        model: Denoiser,
        data: LatentSet,
        view: View,
        length: int,
        rng: random.Random,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, ""]]:
        """Error of the student's velocity."""
        is_own = rng.random() < self.recipe.on_policy
        if not is_own and not self.recipe.steps:
            return (self._on_clips(model, data, view, length, rng, generator),)
        path = self._path(data, view, is_own, rng, generator)
        start, end = (
            torch.full((view.clips,), sigma, device=generator.device)
            for sigma in self.sigmas[path.step : path.step + 2]
        )
        told = torch.full_like(start, self.told[path.step])
        wanted = self._wanted(path.state, start, end, path.prompts, path.places, length)
        found = _velocity(model, path.state, told, path.prompts, path.places, length)
        went = found.detach() if is_own else wanted
        path.state = path.state + (end - start).view(-1, 1, 1, 1, 1) * went
        path.step += 1
        return (velocity_error(found, wanted, path.shown),)

    def _path(
        self,
        data: LatentSet,
        view: View,
        is_own: bool,
        rng: random.Random,
        generator: torch.Generator,
    ) -> _Path:
        """The path of a view that is under way, or a new one from noise."""
        path = self._paths.get((view, is_own))
        if path is None or path.step == len(self.told):
            picks, places, prompts = draw(data, view, rng)
            shown = known(data.layout, picks, places.index.to(generator.device))
            shape = (view.clips, data.latents.shape[2], 1, 1, places.index.shape[1])
            noise = torch.randn(shape, generator=generator, device=generator.device)
            path = self._paths[view, is_own] = _Path(noise, places, shown, prompts)
        return path

    def _on_clips(
        self,
        model: Denoiser,
        data: LatentSet,
        view: View,
        length: int,
        rng: random.Random,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Error of the student's velocity on noised clips, at random noise levels."""
        picks, places, prompts = draw(data, view, rng)
        clean = data.clean(picks, places, str(generator.device))
        noise = torch.randn(clean.shape, generator=generator, device=generator.device)
        sigma = sample_sigma(view.clips, places.index.shape[1], generator)
        s = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - s) * clean + s * noise
        wanted = self._wanted(noisy, sigma, sigma, prompts, places, length)
        found = _velocity(model, noisy, sigma, prompts, places, length)
        shown = known(data.layout, picks, places.index.to(generator.device))
        return velocity_error(found, wanted, shown)

    @torch.no_grad()
    def _wanted(
        self,
        state: Float[Tensor, "B C 1 1 N"],
        start: Float[Tensor, " B"],
        end: Float[Tensor, " B"],
        prompts: list[str],
        places: Places,
        length: int,
    ) -> Float[Tensor, "B C 1 1 N"]:
        """The teacher's velocity with guidance: its mean over a step, or at `start` alone."""
        both = Places(torch.cat([places.index] * 2), places.grid)

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            of_both = _velocity(
                *(self.teacher, torch.cat([x] * 2), torch.cat([sigma] * 2)),
                *([*prompts, *[""] * len(prompts)], both, length),
            )
            told, untold = of_both.chunk(2)
            return untold + self.recipe.guidance * (told - untold)

        if not self.recipe.steps:
            return guided(state, start)
        return mean_velocity(guided, state, start, end, self.recipe.substeps)


def mean_velocity(
    velocity: Velocity,
    state: Float[Tensor, "B ..."],
    start: Float[Tensor, " B"],
    end: Float[Tensor, " B"],
    substeps: int,
) -> Float[Tensor, "B ..."]:
    """Mean velocity of a flow from noise level `start` to `end`, by the midpoint method.

    One step of Euler's method with it ends where the flow does.
    """
    part = (end - start) / substeps
    wide = part.view(-1, *[1] * (state.ndim - 1))
    total = torch.zeros_like(state)
    for i in range(substeps):
        at = start + i * part
        middle = state + wide / 2 * velocity(state, at)
        passed = velocity(middle, at + part / 2)
        state = state + wide * passed
        total += passed
    return total / substeps


def _velocity(
    model: Denoiser,
    state: Float[Tensor, "B C 1 1 N"],
    sigma: Float[Tensor, " B"],
    prompts: list[str],
    places: Places,
    length: int,
) -> Float[Tensor, "B C 1 1 N"]:
    with autocast(str(state.device)):
        return model(state, sigma, prompts, places, length)[0].float()
