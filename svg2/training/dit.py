"""Stages `dit` and `long`: train the transformer on latents of clips, under a frozen text encoder.

Steps read parts of clips first and whole clips last (`svg2.training.views`). Halfway through the
blocks, a guide must read from the tokens what they show (`svg2.training.layout`). The loop is the
same for all stages that train the transformer; a `Course` is what they differ in.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kernels import bf16_is_native
from svg2.models.prompts import rule
from svg2.runs.distributed import processes
from svg2.training.attention import WrittenOutProcessor
from svg2.training.data import Store, TrainingError, save_checkpoint
from svg2.training.denoiser import Denoiser, check_rule, load_training, open_denoiser
from svg2.training.latents import LatentSet, load_latents
from svg2.training.layout import Known, known
from svg2.training.muon import build_optimizers, set_rate
from svg2.training.pipeline import TEXT_LENGTH
from svg2.training.ranks import average_gradients, shared_clock
from svg2.training.text import load_text_encoder, write
from svg2.training.vae import autocast
from svg2.training.views import CURRICULA, Lesson, Places, View, pick_places

_SHIFT, _SHIFT_TOKENS = 5.0, 5184  # the noise schedule's shift, and the tokens that it is for
_LR = 2e-3
_WARM_STEPS = 50
_COOLING = 0.7  # share of the time after which the learning rate falls
# A video is judged by its bodies. They are 6 % of the tokens and had a third of the error.
_BODY_WEIGHT = 4.0
_LENGTHS = (*[TEXT_LENGTH] * 14, 64, 512)  # mostly short; 512 is the default of WanPipeline
_PROMPTLESS = 0.1  # share of clips without a prompt, for guidance
_SAVE_SECONDS = 60  # between checkpoints

Losses = Callable[
    [Denoiser, LatentSet, View, int, random.Random, torch.Generator], tuple[Tensor, ...]
]
"""Losses of one step: of a model on clips of a data set, seen in a view, with prompts padded to a
length. One generator draws the clips and the other the noise."""


@dataclass(frozen=True)
class Course:
    """What a training of the denoiser differs in from the others.

    Attributes:
        stage: its name, by which `CURRICULA` has its lessons.
        losses: of a step.
        weights: of these losses in their sum, by the name under which they are logged.
        notes: what its record says of the weights: the `recipe` and the name of the `scheduler` of
            a student.
    """

    stage: str
    losses: Losses
    weights: Mapping[str, float]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _State:
    """A training so far: model, moving averages of its weights, and the checkpoint's record."""

    model: Denoiser
    ema: dict[str, Tensor]
    record: dict


def train_denoiser(
    course: Course,
    stores: Sequence[Store],
    checkpoint: Path,
    minutes: float,
    *,
    text: Path | None = None,
    start: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    is_compiled: bool = False,
) -> dict:
    """Train the denoiser, write `checkpoint` every minute and at the end, and return its record.

    A checkpoint is resumed. Under torchrun, all processes share the work. The schedule follows the
    time, so a slow machine makes fewer steps of the same schedule.

    Args:
        stores: latents of clips, one store for each length of clips.
        minutes: wall time in total, earlier calls included.
        text: checkpoint of the text encoder, for a training from random weights.
        start: folder of a shipped pipeline, or checkpoint of another stage, to continue from where
            there is no checkpoint yet.
        is_compiled: whether to compile the blocks of the transformer.

    Raises:
        TrainingError: the existing weights use other words than the grammar, or were trained with
            other combinations held out, or on latents of another VAE; or the stores differ in
            their VAE.
    """
    share = processes()
    rank, world = share.rank, share.world
    curriculum = CURRICULA[course.stage][torch.device(device).type]
    sets = [load_latents(store, device) for store in stores]
    torch.manual_seed(seed)
    state = _begin(stores, checkpoint, text, start, seed, device)
    model, record = state.model, state.record
    recipe = course.notes.get("recipe")
    if record["steps"] and record.get("recipe", recipe) != recipe:
        raise TrainingError(
            f"{checkpoint} was trained with another recipe ({record['recipe']}): remove it first, "
            "or give the same one."
        )
    record |= course.notes
    optimizers = build_optimizers(
        model, _LR, is_matrix=lambda name, p: "blocks" in name and p.ndim == 2
    )
    if is_compiled:
        compile_blocks(model)
    first_step = record["steps"]
    generator = torch.Generator(device).manual_seed(seed + 1000 * rank + first_step)
    rng = random.Random(f"{seed}/{rank}/{first_step}")
    # The same views on all ranks, so that their steps take equally long.
    lessons = random.Random(f"{seed}/lessons/{first_step}")
    started, saved = time.monotonic() - record["seconds"], time.monotonic()
    recent: list[Tensor] = []
    while True:
        seconds = shared_clock(time.monotonic() - started, device)
        progress = seconds / (60 * minutes)
        if progress >= 1:
            break
        lesson = next(part for part in curriculum if progress < part.until)
        view = lessons.choices(lesson.views, [view.weight for view in lesson.views])[0]
        set_rate(optimizers, _rate(lesson, progress, record["steps"] - first_step))
        data = shortest(sets, view)
        losses = course.losses(model, data, view, lessons.choice(_LENGTHS), rng, generator)
        weighted = zip(losses, course.weights.values(), strict=True)
        _step(state, optimizers, torch.stack([loss * weight for loss, weight in weighted]).sum())
        record["clips"] += view.clips * world
        record["seconds"] = seconds
        recent.append(torch.stack(losses).detach())
        if rank == 0 and record["steps"] % 50 == 0:
            _log(course, record, recent)
            recent = []
        if rank == 0 and time.monotonic() - saved > _SAVE_SECONDS:
            save_checkpoint(checkpoint, record, model=model.state_dict(), ema=state.ema)
            saved = time.monotonic()
    if rank == 0:
        save_checkpoint(checkpoint, record, model=model.state_dict(), ema=state.ema)
    return record


def _begin(
    stores: Sequence[Store],
    checkpoint: Path,
    text: Path | None,
    start: Path | None,
    seed: int,
    device: str,
) -> _State:
    """The state of `checkpoint`; without one, of the weights `start` or of random ones.

    Momenta are not in it: a resumed training warms up within seconds.

    Raises:
        TrainingError: as in `train_denoiser`.
    """
    record: dict = {"seed": seed, "log": [], "seconds": 0.0, "steps": 0, "clips": 0}
    averages: dict[str, Tensor] = {}
    vae, source = _common_vae(stores), checkpoint
    earlier: dict = {}
    if checkpoint.exists():
        model, record, averages = load_training(checkpoint)
        check_rule(checkpoint, model.words, record.get("rule"))
        earlier = record
    elif start is not None:
        source = start
        model, earlier = open_denoiser(start)
    else:
        assert text is not None, "random weights need a text encoder"
        model = Denoiser()
        model.text_encoder.load_state_dict(load_text_encoder(text).state_dict())
    if earlier.get("vae", vae) != vae:
        raise TrainingError(f"{source} was trained on latents of another VAE: remove it first.")
    record |= model.record | {"max_sequence_length": TEXT_LENGTH, "rule": rule(), "vae": vae}
    model.train().to(device).float()
    if torch.device(device).type == "cpu" and bf16_is_native():
        for block in model.transformer.blocks:
            block.attn1.set_processor(WrittenOutProcessor())
            block.attn2.set_processor(WrittenOutProcessor())
    ema = {
        name: averages.get(name, p).detach().clone().to(device)
        for name, p in model.named_parameters()
    }
    return _State(model, ema, record)


def _common_vae(stores: Sequence[Store]) -> str:
    """The fingerprint of the VAE that made all latents.

    Raises:
        TrainingError: they are of several VAEs, or have several means or standard deviations.
    """
    made = [{name: store.about[name] for name in ("vae", "mean", "std")} for store in stores]
    for store, other in zip(stores, made, strict=True):
        if other != made[0]:
            raise TrainingError(
                f"{store.folder} holds latents of another VAE than {stores[0].folder}: remove it "
                "and encode again."
            )
    return made[0]["vae"]


def compile_blocks(model: Denoiser, backend: str | Callable = "inductor") -> None:
    """Compile the blocks of the transformer: one graph for many views and lengths of prompts."""
    for block in model.transformer.blocks:
        block.compile(dynamic=True, backend=backend)


def shortest(sets: Sequence[LatentSet], view: View) -> LatentSet:
    """The data set of the shortest clips that have all latent frames of a view, or the longest."""
    by_length = sorted(sets, key=lambda data: data.layout.grid[0])
    fitting = [data for data in by_length if data.layout.grid[0] >= view.num_frames]
    return fitting[0] if fitting else by_length[-1]


def _rate(lesson: Lesson, progress: float, steps: int) -> float:
    """Share of the largest learning rate, after some steps of this call."""
    cooled = max(0.0, progress - _COOLING) / (1 - _COOLING)
    decay = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * cooled))
    warm = min(1.0, (steps + 1) / _WARM_STEPS)
    return lesson.rate * decay * warm


def _step(state: _State, optimizers: list[torch.optim.Optimizer], loss: Float[Tensor, ""]) -> None:
    """Update the weights and their averages, and count the step."""
    model, record = state.model, state.record
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    record["steps"] += 1
    keep = min(0.998, (1 + record["steps"]) / (10 + record["steps"]))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.values()), list(model.parameters()), 1 - keep)


def _log(course: Course, record: dict, recent: list[Tensor]) -> None:
    """Add the mean losses of recent steps to the record, and print them."""
    means = [round(value, 4) for value in torch.stack(recent).mean(dim=0).tolist()]
    record["log"].append([record["steps"], round(record["seconds"]), *means])
    told = " ".join(f"{name} {mean:.4f}" for name, mean in zip(course.weights, means, strict=True))
    print(
        f"{course.stage} step {record['steps']} {record['seconds']:.0f} s clips "
        f"{record['clips']} {told}",
        flush=True,
    )


def draw(
    data: LatentSet, view: View, rng: random.Random
) -> tuple[list[tuple[int, int]], Places, list[str]]:
    """Picks (clip, is mirrored) for a step, the places of a view in them, and their prompts."""
    picks = [data.pick(rng) for _ in range(view.clips)]
    places = pick_places(data.layout, picks, view, rng)
    prompts = [
        "" if rng.random() < _PROMPTLESS else write(data.scene(pick), rng) for pick in picks
    ]
    return picks, places, prompts


def _losses(
    model: Denoiser,
    data: LatentSet,
    view: View,
    length: int,
    rng: random.Random,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Error of the velocity, in which bodies weigh more, and the loss of the guide."""
    device = model.transformer.device
    picks, places, prompts = draw(data, view, rng)
    clean = data.clean(picks, places, str(device))
    noise = torch.randn(clean.shape, generator=generator, device=device)
    sigma = sample_sigma(view.clips, places.index.shape[1], generator)
    s = sigma.view(-1, 1, 1, 1, 1)
    wanted = known(data.layout, picks, places.index.to(device))
    with autocast(str(device)):
        predicted, inside = model((1 - s) * clean + s * noise, sigma, prompts, places, length)
        guide_loss = model.guide(inside, wanted)
    return velocity_error(predicted.float(), noise - clean, wanted), guide_loss


def velocity_error(
    found: Float[Tensor, "B C 1 1 N"], wanted: Float[Tensor, "B C 1 1 N"], shown: Known
) -> Float[Tensor, ""]:
    """Mean squared error of a velocity, in which tokens of bodies weigh more."""
    wrong = (found - wanted).square().mean(dim=1).flatten(1)
    weight = 1 + (_BODY_WEIGHT - 1) * shown.near
    return (wrong * weight).sum() / weight.sum()


def sample_sigma(batch: int, tokens: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Noise levels, logit-normal and shifted to more noise.

    The shift grows with the fourth root of the number of tokens. The source has it grow with the
    square root, because more tokens show an object through more noise. A single token does not,
    and samplers start at the most noise; so the exponent is between the two.

    Source: Stable Diffusion 3, arXiv 2403.03206.
    """
    noise = torch.randn(batch, generator=generator, device=generator.device)
    u = torch.sigmoid(noise * 1.1)
    shift = _SHIFT * (tokens / _SHIFT_TOKENS) ** 0.25
    return shift * u / (1 + (shift - 1) * u)


_WEIGHTS = {"loss": 1.0, "guide": 0.5}
DIT = Course("dit", _losses, _WEIGHTS)
LONG = Course("long", _losses, _WEIGHTS)
