"""Stage `dit`: train the transformer on latents of rendered clips, under a frozen text encoder.

Steps read parts of clips first and whole clips last (`svg2.training.views`). Halfway through the
blocks, a guide must read from the tokens what they show (`svg2.training.layout`).
"""

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kernels import bf16_is_native
from svg2.models.prompts import rule
from svg2.runs.distributed import processes
from svg2.training.attention import WrittenOutProcessor
from svg2.training.data import Store, TrainingError, save_checkpoint
from svg2.training.denoiser import Denoiser, check_rule, load_shipped, load_training
from svg2.training.latents import LatentSet, load_latents
from svg2.training.layout import known
from svg2.training.muon import build_optimizers, set_rate
from svg2.training.pipeline import TEXT_LENGTH
from svg2.training.ranks import average_gradients, shared_clock
from svg2.training.text import load_text_encoder, write
from svg2.training.vae import autocast
from svg2.training.views import CURRICULA, Lesson, View, pick_places

_SHIFT, _SHIFT_TOKENS = 5.0, 5184  # the noise schedule's shift, and the tokens that it is for
_LR = 2e-3
_WARM_STEPS = 50
_COOLING = 0.7  # share of the time after which the learning rate falls
_GUIDE_WEIGHT = 0.5  # of the guide's loss
# A video is judged by its bodies. They are 6 % of the tokens and had a third of the error.
_BODY_WEIGHT = 4.0
_LENGTHS = (*[TEXT_LENGTH] * 14, 64, 512)  # mostly short; 512 is the default of WanPipeline
_PROMPTLESS = 0.1  # share of clips without a prompt, for guidance


@dataclass
class _State:
    """A training so far: model, moving averages of its weights, and the checkpoint's record."""

    model: Denoiser
    ema: dict[str, Tensor]
    record: dict


def train_dit(
    latents: Store,
    checkpoint: Path,
    minutes: float,
    *,
    text: Path,
    start: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    compile_blocks: bool = False,
) -> dict:
    """Train the denoiser, write `checkpoint` and return its record.

    A checkpoint is resumed. Under torchrun, all processes share the work. The schedule follows the
    time, so a slow machine makes fewer steps of the same schedule.

    Args:
        minutes: wall time in total, earlier calls included.
        text: checkpoint of the text encoder, for a training from random weights.
        start: folder of a shipped pipeline to continue from where there is no checkpoint yet.
        compile_blocks: whether to compile the blocks of the transformer.

    Raises:
        TrainingError: the existing weights use other words than the grammar, or were trained with
            other combinations held out; or the checkpoint was trained on latents of another VAE.
    """
    share = processes()
    rank, world = share.rank, share.world
    curriculum = CURRICULA[torch.device(device).type]
    data = load_latents(latents, device)
    torch.manual_seed(seed)
    state = _begin(latents, checkpoint, text, start, seed, device)
    model, record = state.model, state.record
    optimizers = build_optimizers(
        model, _LR, is_matrix=lambda name, p: "blocks" in name and p.ndim == 2
    )
    if compile_blocks:
        for block in model.transformer.blocks:
            block.compile(dynamic=True)  # one graph for many views and lengths of prompts
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
        losses = _losses(model, data, view, lessons.choice(_LENGTHS), rng, generator)
        _step(state, optimizers, *losses)
        record["clips"] += view.clips * world
        record["seconds"] = seconds
        recent.append(torch.stack(losses).detach())
        if rank == 0 and record["steps"] % 50 == 0:
            _log(record, recent)
            recent = []
        if rank == 0 and time.monotonic() - saved > 120:
            save_checkpoint(checkpoint, record, model=model.state_dict(), ema=state.ema)
            saved = time.monotonic()
    if rank == 0:
        save_checkpoint(checkpoint, record, model=model.state_dict(), ema=state.ema)
    return record


def _begin(
    latents: Store, checkpoint: Path, text: Path, start: Path | None, seed: int, device: str
) -> _State:
    """The state of `checkpoint`; without one, of the pipeline `start` or of random weights.

    Momenta are not in it: a resumed training warms up within seconds.

    Raises:
        TrainingError: as in `train_dit`.
    """
    record: dict = {"seed": seed, "log": [], "seconds": 0.0, "steps": 0, "clips": 0}
    averages: dict[str, Tensor] = {}
    vae = latents.about["vae"]
    if checkpoint.exists():
        model, record, averages = load_training(checkpoint)
        check_rule(checkpoint, model.words, record.get("rule"))
        if record.get("vae", vae) != vae:
            raise TrainingError(
                f"{checkpoint} was trained on latents of another VAE: remove it first."
            )
    elif start is not None:
        model = load_shipped(start)
        lab = json.loads((start / "lab.json").read_text())
        check_rule(start, model.words, lab.get("rule"))
    else:
        model = Denoiser()
        model.text_encoder.load_state_dict(load_text_encoder(text).state_dict())
    record |= model.record | {"max_sequence_length": TEXT_LENGTH, "rule": rule(), "vae": vae}
    model.to(device).float()
    if torch.device(device).type == "cpu" and bf16_is_native():
        for block in model.transformer.blocks:
            block.attn1.set_processor(WrittenOutProcessor())
            block.attn2.set_processor(WrittenOutProcessor())
    ema = {
        name: averages.get(name, p).detach().clone().to(device)
        for name, p in model.named_parameters()
    }
    return _State(model, ema, record)


def _rate(lesson: Lesson, progress: float, steps: int) -> float:
    """Share of the largest learning rate, after some steps of this call."""
    cooled = max(0.0, progress - _COOLING) / (1 - _COOLING)
    decay = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * cooled))
    warm = min(1.0, (steps + 1) / _WARM_STEPS)
    return lesson.rate * decay * warm


def _step(
    state: _State, optimizers: list[torch.optim.Optimizer], loss: Tensor, guide_loss: Tensor
) -> None:
    """Update the weights and their averages, and count the step."""
    model, record = state.model, state.record
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    (loss + _GUIDE_WEIGHT * guide_loss).backward()
    average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    record["steps"] += 1
    keep = min(0.998, (1 + record["steps"]) / (10 + record["steps"]))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.values()), list(model.parameters()), 1 - keep)


def _log(record: dict, recent: list[Tensor]) -> None:
    """Add the mean losses of recent steps to the record, and print them."""
    loss, guide_loss = (round(value, 4) for value in torch.stack(recent).mean(dim=0).tolist())
    record["log"].append([record["steps"], round(record["seconds"]), loss, guide_loss])
    print(
        f"dit step {record['steps']} {record['seconds']:.0f} s clips {record['clips']} "
        f"loss {loss:.4f} guide {guide_loss:.4f}",
        flush=True,
    )


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
    picks = [data.pick(rng) for _ in range(view.clips)]
    places = pick_places(data.layout, picks, view, rng)
    clean = data.clean(picks, places, str(device))
    prompts = [
        "" if rng.random() < _PROMPTLESS else write(data.scene(pick), rng) for pick in picks
    ]
    noise = torch.randn(clean.shape, generator=generator, device=device)
    sigma = sample_sigma(view.clips, places.index.shape[1], generator)
    s = sigma.view(-1, 1, 1, 1, 1)
    wanted = known(data.layout, picks, places.index.to(device))
    with autocast(str(device)):
        predicted, inside = model((1 - s) * clean + s * noise, sigma, prompts, places, length)
        guide_loss = model.guide(inside, wanted)
    wrong = (predicted.float() - (noise - clean)).pow(2).mean(dim=1).flatten(1)
    weight = 1 + (_BODY_WEIGHT - 1) * wanted.near
    return (wrong * weight).sum() / weight.sum(), guide_loss


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
