"""Stage `dit`: train the transformer on latents of rendered clips, under a frozen text encoder.

Any subset of a clip's tokens, at their own places, is a fair sample. So training starts on every
third row and column of the clip and all tokens about a body, which is many clips a minute and
enough to learn what goes where, and ends on all tokens, always at the positions at which the model
samples. Halfway through the blocks, tokens are asked what they stand for (`svg2.training.layout`).
"""

import functools
import hashlib
import itertools
import json
import math
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from kernels import bf16_is_native
from svg2.models.prompts import Scene, rule, vocabulary
from svg2.runs.distributed import processes
from svg2.training.attention import WrittenOutProcessor
from svg2.training.data import (
    Store,
    TrainingError,
    check_staging,
    grow,
    load_checkpoint,
    place_training,
    render_training,
    save_checkpoint,
    staging_of,
)
from svg2.training.layout import Grid, Guide, Layout, known, layout_of, window
from svg2.training.muon import build_optimizers, set_rate
from svg2.training.pipeline import (
    DEFAULTS,
    SIZES,
    TEXT_LENGTH,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    words_of,
)
from svg2.training.ranks import average_gradients, shared_clock
from svg2.training.text import load_text_encoder, write
from svg2.training.vae import Redraw, WholeClips, autocast, open_vae, to_model

_SHIFT, _SHIFT_TOKENS = 5.0, 5184  # shift to more noise at so many tokens
_REDRAWN_FROM = 0.4  # the highest noise level that a decoder's latents are drawn anew from
_STATISTICS_OF = 48  # clips whose latents tell mean and std
_FRAMES = int(DEFAULTS["num_frames"])
_LR = 2e-3
_WARM_STEPS = 50
_COOLING = 0.7  # share of the time after which the learning rate falls
_GUIDANCE = 0.5  # weight of what tokens are to know
# Bodies are what a video is judged by, and few tokens: 6 % of them had a third of the error.
_BODY_WEIGHT = 4.0
_PAIRS = 0.7  # share of clips with two objects: harder to draw than one
# How often a clip is drawn in which something spins, against all others: before this, such were
# all six wrong movements of 47 prompts.
_SPIN_WEIGHT = 2.0


@dataclass(frozen=True)
class View:
    """Which tokens of a clip a step looks at.

    Attributes:
        weight: how often, against the lesson's other views.
        num_frames: latent frames.
        stride: of rows and columns.
        clips: a step and process.
        window: side of a square of all tokens about a body, beside those of `stride`, which
            divides it; 0 for none.
    """

    weight: float
    num_frames: int
    stride: int
    clips: int
    window: int = 0


@dataclass(frozen=True)
class Lesson:
    """A part of the training.

    Attributes:
        until: share of the time at which it ends.
        views: each step draws one of them.
        rate: share of the largest learning rate.
    """

    until: float
    views: tuple[View, ...]
    rate: float = 1.0


# A CPU sees few clips, so most of them in part; a GPU sees many, and mostly all tokens of them.
CURRICULA = {
    "cpu": (
        Lesson(0.3, (View(0.6, 9, 3, 8), View(0.4, 9, 3, 3, window=12)), 0.5),
        Lesson(0.55, (View(0.3, 9, 3, 8), View(0.7, 9, 3, 3, window=12)), 0.5),
        Lesson(0.85, (View(0.5, 9, 2, 3, window=12), View(0.5, 9, 1, 1)), 0.4),
        Lesson(1.0, (View(0.2, 9, 2, 3, window=12), View(0.8, 9, 1, 1)), 0.4),
    ),
    "cuda": (
        Lesson(0.1, (View(0.5, 9, 3, 96), View(0.5, 9, 2, 64)), 0.6),
        Lesson(0.3, (View(0.4, 9, 2, 64), View(0.3, 4, 1, 32), View(0.3, 9, 1, 16)), 0.6),
        Lesson(1.0, (View(0.1, 9, 2, 64), View(0.9, 9, 1, 16)), 0.6),
    ),
}


@dataclass(frozen=True)
class Places:
    """Some tokens of each of some clips, in (frame, row, column) order of the grid; on the CPU."""

    index: Int[Tensor, "B N"]
    grid: Grid

    def of(self, latents: Float[Tensor, "B C T Y X"]) -> Float[Tensor, "B C 1 1 N"]:
        """These tokens of `latents` in a row, a shape as good as any to the transformer."""
        flat = latents.flatten(2)
        index = self.index.to(latents.device)[:, None].expand(-1, flat.shape[1], -1)
        return flat.gather(2, index)[:, :, None, None]


def all_places(batch: int, grid: Grid) -> Places:
    """All tokens of `batch` clips."""
    return Places(torch.arange(math.prod(grid)).expand(batch, -1), grid)


@dataclass(frozen=True)
class LatentSet:
    """Latents [n, 2, C, T, Y, X] of clips and of their mirror images, and the clips' scenes."""

    latents: Tensor
    scenes: tuple[Scene, ...]
    mean: Tensor
    std: Tensor
    layout: Layout

    def clean(self, picks: list[tuple[int, int]], places: Places, device: str) -> Tensor:
        """Normalised latents [n, C, 1, 1, N] at `places` of some (clip, is mirrored)."""
        at = torch.tensor(picks, device=self.latents.device)
        rows = places.of(self.latents[at[:, 0], at[:, 1]]).to(device).float()
        mean, std = (v.to(device).view(-1, 1, 1, 1) for v in (self.mean, self.std))
        return (rows - mean) / std

    @functools.cached_property
    def _by_count(self) -> tuple[tuple[list[int], list[float]], ...]:
        """Clips of one object, and of two, each with how often they are drawn, summed up."""
        counts = [len(scene.bodies) for scene in self.scenes]
        one, two = ([i for i, n in enumerate(counts) if n == some] for some in (1, 2))
        often = [
            _SPIN_WEIGHT if any(body.motion == "spin" for body in scene.bodies) else 1.0
            for scene in self.scenes
        ]
        return tuple(
            (clips, list(itertools.accumulate(often[i] for i in clips)))
            for clips in (one or two, two or one)
        )

    def pick(self, rng: random.Random) -> tuple[int, int]:
        """A clip, and whether it is mirrored."""
        clips, often = self._by_count[rng.random() < _PAIRS]
        return rng.choices(clips, cum_weights=often)[0], rng.randrange(2)

    def scene(self, pick: tuple[int, int]) -> Scene:
        scene = self.scenes[pick[0]]
        return scene.mirrored() if pick[1] else scene


class Denoiser(nn.Module):
    """Transformer and the frozen text encoder that it listens to, for a vocabulary."""

    def __init__(
        self,
        words: Sequence[str] = vocabulary(),
        transformer: WanTransformer3DModel | None = None,
    ) -> None:
        super().__init__()
        self.words = tuple(words)
        self.tokenizer = build_tokenizer(self.words)
        self.text_encoder = build_text_encoder(len(self.tokenizer)).requires_grad_(False)
        self.transformer = transformer or build_transformer()
        config = self.transformer.config
        self.guide = Guide(config.num_attention_heads * config.attention_head_dim)

    @property
    def record(self) -> dict:
        """What a checkpoint must say of the model to build it again."""
        config = self.transformer.config
        return {"words": list(self.words), "sizes": {name: config[name] for name in SIZES}}

    def encode(self, prompts: list[str], length: int) -> Float[Tensor, "B length text"]:
        """Embeddings as WanPipeline makes them: zeros after the end of each prompt."""
        tokens = self.tokenizer(prompts, padding="longest", return_tensors="pt")
        mask = tokens.attention_mask.to(self.transformer.device)
        ids = tokens.input_ids.to(self.transformer.device)
        hidden = self.text_encoder(ids, mask).last_hidden_state * mask[:, :, None]
        return nn.functional.pad(hidden, (0, 0, 0, length - hidden.shape[1]))

    def forward(
        self, noisy: Tensor, sigma: Tensor, prompts: list[str], places: Places, length: int
    ) -> tuple[Tensor, Tensor]:
        """Velocity at `places`, and the tokens [B, N, inner] inside that the guide reads."""
        with _positions(self.transformer, places), _tap(self.transformer) as inside:
            velocity = self.transformer(
                noisy, sigma * 1000, self.encode(prompts, length), return_dict=False
            )[0]
        return velocity, inside[0]


@contextmanager
def _positions(transformer: WanTransformer3DModel, places: Places) -> Iterator[None]:
    """Give the transformer's rotary embedding the true places of some tokens."""
    rope = transformer.rope

    def at_places(hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        whole = hidden_states.new_empty((1, 1, *places.grid))
        index = places.index.to(hidden_states.device)
        cos, sin = (table[0][index] for table in type(rope).forward(rope, whole))
        return cos, sin

    rope.forward = at_places
    try:
        yield
    finally:
        del rope.forward


@contextmanager
def _tap(transformer: WanTransformer3DModel) -> Iterator[list[Tensor]]:
    """What the first half of the blocks makes, in a list."""
    tokens: list[Tensor] = []
    block = transformer.blocks[len(transformer.blocks) // 2]
    handle = block.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    try:
        yield tokens
    finally:
        handle.remove()


def encode_clips(
    clips: Store,
    latents: Store,
    vae_source: Path,
    count: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    minutes: float = math.inf,
) -> None:
    """Encode training clips and their mirror images until `latents` holds `count`; resumes.

    Clips that `clips` does not hold are rendered on the way and not kept.

    Raises:
        TrainingError: `latents` holds what another VAE made, or either is of clips that would be
            placed otherwise today.
    """
    check_staging(clips, _FRAMES, seed)
    check_staging(latents, _FRAMES, seed)
    vae = open_vae(vae_source, device).eval()
    maker, whole = _fingerprint(vae), WholeClips(vae)
    if len(latents) and latents.about["vae"] != maker:
        raise TrainingError(f"{latents.folder} holds latents of another VAE: remove it first.")
    rendered = clips.scenes
    staging = staging_of(_FRAMES, seed)

    def encode(start: int, some: int) -> tuple[Sequence[Scene], np.ndarray]:
        scenes: Sequence[Scene]
        if start + some <= len(rendered):
            scenes = rendered[start : start + some]
            frames = torch.from_numpy(np.array(clips.rows()[start : start + some])).to(device)
        else:
            scenes, frames = render_training(
                start, some, _FRAMES, int(DEFAULTS["height"]), seed, device
            )
        return scenes, _encode(whole, frames, device)

    # The first are stored together, since the statistics of all are theirs.
    grow(
        *(latents, count, encode),
        lambda rows: _statistics(vae, rows) | {"vae": maker, "seed": seed, "staging": staging},
        least=_STATISTICS_OF,
        minutes=minutes,
        device=device,
    )


def _encode(vae: WholeClips, frames: Tensor, device: str) -> np.ndarray:
    with torch.no_grad(), autocast(device):
        both = [vae.encode(to_model(f)).mode() for f in (frames, frames.flip(3))]
    return torch.stack(both, dim=1).half().cpu().numpy()


def _statistics(vae: AutoencoderKLWan, rows: np.ndarray) -> dict[str, list[float]]:
    """Mean by channel and one std: those that a shipped VAE came with, or else those of `rows`.

    One for all channels, since in the VAE's own units an error changes the video about as much in
    each of them. By its own std, a channel of fine grain would weigh as much as one of bodies.
    """
    config = vae.config
    if any(config["latents_mean"]):
        return {"mean": list(config["latents_mean"]), "std": list(config["latents_std"])}
    values = rows.astype(np.float32)
    axes = (0, 1, 3, 4, 5)
    std = float(np.sqrt(values.var(axes).mean()))
    return {"mean": values.mean(axes).tolist(), "std": [std] * values.shape[2]}


def _fingerprint(vae: AutoencoderKLWan) -> str:
    """Tells encoders apart: latents of one are noise to a denoiser of another."""
    digest = hashlib.sha256()
    for p in vae.encoder.parameters():
        digest.update(p.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _pick_places(
    layout: Layout, picks: Sequence[tuple[int, int]], view: View, rng: random.Random
) -> Places:
    """Random frames, a grid of rows and columns that starts anywhere, and a window for each clip.

    The first frame is always one of them: it alone holds a single video frame, and rotary
    positions tell only how far frames are apart.
    """
    t, *sides = layout.grid
    frames = [0, *sorted(rng.sample(range(1, t), min(view.num_frames, t) - 1))]
    start = [rng.randrange(min(view.stride, side)) for side in sides]
    coarse = np.zeros(sides, dtype=bool)
    coarse[start[0] :: view.stride, start[1] :: view.stride] = True
    index = []
    for clip, is_mirrored in picks:
        chosen = np.broadcast_to(coarse, layout.grid)
        if view.window:
            chosen = chosen | window(layout, clip, bool(is_mirrored), view.window, rng)
        of_frames = np.zeros(layout.grid, dtype=bool)
        of_frames[frames] = chosen[frames]
        index.append(torch.from_numpy(np.flatnonzero(of_frames)))
    return Places(torch.stack(index), layout.grid)


def load_latents(store: Store, device: str = "cpu") -> LatentSet:
    """All latents: memory-mapped on a CPU, moved to a GPU as a whole.

    Raises:
        TrainingError: they are of clips that would be placed otherwise today.
    """
    rows, about, scenes = store.rows(), store.about, store.scenes
    on_gpu = torch.device(device).type == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is read-only, and so is all that reads it
        latents = torch.from_numpy(rows)
    mean, std = (torch.tensor(about[name]) for name in ("mean", "std"))
    check_staging(store, _FRAMES, about["seed"])
    drawn = place_training(0, len(scenes), _FRAMES, about["seed"])
    layout = layout_of([placement for _, placement in drawn], rows.shape[3:])
    moved = latents.to(device) if on_gpu else latents
    return LatentSet(moved, scenes, mean, std, layout)


def sample_sigma(batch: int, tokens: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Noise levels: logit-normal, shifted to more noise (SD3, arXiv 2403.03206).

    More tokens show the same object through more noise, by their root. But what one token shows
    does not depend on them, and samplers start at the most noise: so it is the root of that.
    """
    noise = torch.randn(batch, generator=generator, device=generator.device)
    u = torch.sigmoid(noise * 1.1)
    shift = _SHIFT * (tokens / _SHIFT_TOKENS) ** 0.25
    return shift * u / (1 + (shift - 1) * u)


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
    """Train for `minutes` of wall time in all, resuming from `checkpoint`; torchrun shares it out.

    Where there is no checkpoint yet, it begins under the text encoder of the checkpoint `text`, or
    goes on from the shipped pipeline in `start`.

    The schedule is a fraction of the time, so a slow machine gets fewer steps, not a cut schedule.

    Raises:
        TrainingError: the weights to go on from know other words than the grammar, or may have
            seen combinations that are held out today; or the checkpoint is of other latents.
    """
    share = processes()
    rank, world = share.rank, share.world
    curriculum = CURRICULA[torch.device(device).type]
    data = load_latents(latents, device)
    torch.manual_seed(seed)
    record: dict = {"seed": seed, "log": [], "seconds": 0.0, "steps": 0, "clips": 0}
    averages: dict[str, Tensor] = {}
    if checkpoint.exists():
        model, record, averages = _load(checkpoint)
        _check_rule(checkpoint, model.words, record.get("rule"))
        if record.get("vae", latents.about["vae"]) != latents.about["vae"]:
            raise TrainingError(
                f"{checkpoint} was trained on latents of another VAE: remove it first."
            )
    elif start is not None:
        model = load_shipped(start)
        lab = json.loads((start / "lab.json").read_text())
        _check_rule(start, model.words, lab.get("rule"))
    else:
        model = Denoiser()
        model.text_encoder.load_state_dict(load_text_encoder(text).state_dict())
    record |= model.record | {"max_sequence_length": TEXT_LENGTH, "rule": rule()}
    record["vae"] = latents.about["vae"]
    model.to(device).float()
    if torch.device(device).type == "cpu" and bf16_is_native():
        for block in model.transformer.blocks:
            block.attn1.set_processor(WrittenOutProcessor())
            block.attn2.set_processor(WrittenOutProcessor())
    # Momenta are not kept: a resumed run warms up within seconds.
    parameters = dict(model.named_parameters())
    ema = {n: averages.get(n, p).detach().clone().to(device) for n, p in parameters.items()}
    optimizers = build_optimizers(
        model, _LR, is_matrix=lambda name, p: "blocks" in name and p.ndim == 2
    )
    if compile_blocks:
        for block in model.transformer.blocks:
            block.compile(dynamic=True)  # one graph for many views and lengths of prompts
    first_step = record["steps"]
    generator = torch.Generator(device).manual_seed(seed + 1000 * rank + first_step)
    rng = random.Random(f"{seed}/{rank}/{first_step}")
    # The same on all ranks, so that they take as long.
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
        cooled = max(0.0, progress - _COOLING) / (1 - _COOLING)
        decay = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * cooled))
        warm = min(1.0, (record["steps"] - first_step + 1) / _WARM_STEPS)
        set_rate(optimizers, lesson.rate * decay * warm)
        # Mostly short, at times as long as WanPipeline's default, so that both read alike.
        length = lessons.choice((*[TEXT_LENGTH] * 14, 64, 512))
        loss, unknown = _losses(model, data, view, length, rng, generator)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        (loss + _GUIDANCE * unknown).backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        record["steps"] += 1
        record["clips"] += view.clips * world
        record["seconds"] = seconds
        recent.append(torch.stack([loss, unknown]).detach())
        keep = min(0.998, (1 + record["steps"]) / (10 + record["steps"]))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), list(parameters.values()), 1 - keep)
        if rank == 0 and record["steps"] % 50 == 0:
            mean = [round(value, 4) for value in torch.stack(recent).mean(dim=0).tolist()]
            record["log"].append([record["steps"], round(seconds), *mean])
            print(
                f"dit step {record['steps']} {seconds:.0f} s clips {record['clips']} "
                f"loss {mean[0]:.4f} guide {mean[1]:.4f}",
                flush=True,
            )
            recent = []
        if rank == 0 and time.monotonic() - saved > 120:
            save_checkpoint(checkpoint, record, model=model.state_dict(), ema=ema)
            saved = time.monotonic()
    if rank == 0:
        save_checkpoint(checkpoint, record, model=model.state_dict(), ema=ema)
    return record


def load_shipped(folder: Path) -> Denoiser:
    """The weights of a shipped pipeline, in fp32."""
    transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    model = Denoiser(words_of(folder), transformer.float())
    text_encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder")
    model.text_encoder.load_state_dict(text_encoder.state_dict())
    return model


def _check_rule(source: Path, words: Sequence[str], trained_by: str | None) -> None:
    """See that weights know the grammar's words, and not what is held out today.

    Raises:
        TrainingError: they don't, or do.
    """
    if set(words) != set(vocabulary()):
        problem = "knows other words than the grammar"
    elif trained_by != rule():
        problem = "was trained with other combinations held out"
    else:
        return
    raise TrainingError(f"{source} {problem}, so it can't be gone on from: train from the start.")


def _losses(
    model: Denoiser,
    data: LatentSet,
    view: View,
    length: int,
    rng: random.Random,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Of the velocity, bodies above all, and of what tokens know halfway."""
    device = model.transformer.device
    picks = [data.pick(rng) for _ in range(view.clips)]
    places = _pick_places(data.layout, picks, view, rng)
    clean = data.clean(picks, places, str(device))
    prompts = ["" if rng.random() < 0.1 else write(data.scene(pick), rng) for pick in picks]
    noise = torch.randn(clean.shape, generator=generator, device=device)
    sigma = sample_sigma(view.clips, places.index.shape[1], generator)
    s = sigma.view(-1, 1, 1, 1, 1)
    wanted = known(data.layout, picks, places.index.to(device))
    with autocast(str(device)):
        predicted, inside = model((1 - s) * clean + s * noise, sigma, prompts, places, length)
        unknown = model.guide(inside, wanted)
    wrong = (predicted.float() - (noise - clean)).pow(2).mean(dim=1).flatten(1)
    weight = 1 + (_BODY_WEIGHT - 1) * wanted.near
    return (wrong * weight).sum() / weight.sum(), unknown


def _load(checkpoint: Path) -> tuple[Denoiser, dict, dict[str, Tensor]]:
    """Model, record and averages."""
    states, record = load_checkpoint(checkpoint)
    model = Denoiser(record["words"], build_transformer(**record.get("sizes", SIZES)))
    model.load_state_dict(states["model"])
    return model, record, states["ema"]


def load_denoiser(checkpoint: Path) -> tuple[Denoiser, dict]:
    """The averaged weights of a checkpoint, and its record."""
    model, record, averages = _load(checkpoint)
    for name, p in model.named_parameters():
        p.data.copy_(averages[name])
    return model.eval(), record


def load_vae(source: Path, latents: Store) -> AutoencoderKLWan:
    """The trained VAE, with the latents' mean and std in its config for WanPipeline.

    Raises:
        TrainingError: it is not the one that made the latents.
    """
    vae, about = open_vae(source), latents.about
    if _fingerprint(vae) != about["vae"]:
        raise TrainingError(
            f"{source} is not the autoencoder of {latents.folder}: encode, dit and decoder have "
            "to be run anew after it."
        )
    vae.register_to_config(latents_mean=about["mean"], latents_std=about["std"])
    return vae.eval()


def redraw_with(
    checkpoint: Path,
    latents: Store,
    *,
    seed: int = 0,
    device: str = "cpu",
) -> Redraw:
    """Noises latents a little, and denoises them in one step.

    So they err as samples do, and a decoder can learn to make good for it.
    """
    model = load_denoiser(checkpoint)[0].to(device)
    mean, std = (torch.tensor(latents.about[name]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    mean, std = mean.to(device), std.to(device)
    seed += 1000 * processes().rank
    rng, generator = random.Random(seed), torch.Generator(device).manual_seed(seed)

    @torch.no_grad()
    def redraw(drawn: Tensor, scenes: Sequence[Scene]) -> Tensor:
        clean = (drawn.float() - mean) / std
        noise = torch.randn(clean.shape, generator=generator, device=device)
        sigma = _REDRAWN_FROM * torch.rand(len(clean), generator=generator, device=device)
        s = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - s) * clean + s * noise
        places = all_places(len(clean), clean.shape[2:])
        prompts = [write(scene, rng) for scene in scenes]
        with autocast(device):
            velocity = model(places.of(noisy), sigma, prompts, places, TEXT_LENGTH)[0]
        velocity = velocity.view(clean.shape)
        return (noisy - s * velocity.float()) * std + mean

    return redraw
