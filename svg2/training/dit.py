"""Stage `dit`: train the transformer on latents of rendered clips, under a frozen text encoder.

Any subset of a clip's tokens, at their own places, is a fair sample. So training starts on some
frames of the clip and every third row and column, which is many clips a minute and enough to
learn what goes where, and ends on all tokens, always at the positions at which the model samples.
"""

import functools
import hashlib
import json
import math
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from kernels import bf16_is_native
from svg2.distributed import processes
from svg2.training.attention import WrittenOutProcessor
from svg2.training.data import (
    Store,
    TrainingError,
    grow,
    load_checkpoint,
    render_training,
    save_checkpoint,
)
from svg2.training.grammar import Scene, rule, vocabulary
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
_STATISTICS_OF = 48  # clips whose latents tell mean and std by channel
_WARM_STEPS = 50
_COOLING = 0.7  # share of the time after which the learning rate falls
_PAIRS = 0.55  # share of clips with two objects: harder to draw than one


@dataclass(frozen=True)
class Lesson:
    """What a part of the training looks at.

    Attributes:
        until: share of the time at which it ends.
        mix: (weight, latent frames, stride of rows and columns, clips a step and process); each
            step draws one of them.
        rate: share of the largest learning rate.
    """

    until: float
    mix: tuple[tuple[float, int, int, int], ...]
    rate: float = 1.0


@dataclass(frozen=True)
class _Draw:
    """What one step draws, on every rank alike, so that all take as long."""

    batch: int
    num_frames: int
    stride: int
    text_length: int


# A CPU sees few clips, so most of them in part; a GPU sees many, and mostly all tokens of them.
CURRICULA = {
    "cpu": (
        Lesson(0.5, ((0.2, 3, 1, 2), (0.8, 9, 3, 8)), 0.8),
        Lesson(0.7, ((0.35, 3, 1, 2), (0.35, 9, 2, 3), (0.3, 9, 3, 8)), 0.8),
        Lesson(1.0, ((0.35, 3, 1, 2), (0.15, 9, 2, 3), (0.5, 9, 1, 1)), 0.7),
    ),
    "cuda": (
        Lesson(0.15, ((0.5, 9, 3, 96), (0.5, 9, 2, 64))),
        Lesson(0.35, ((0.4, 9, 2, 64), (0.3, 4, 1, 32), (0.3, 9, 1, 16))),
        Lesson(1.0, ((0.1, 9, 2, 64), (0.9, 9, 1, 16))),
    ),
}


@dataclass(frozen=True)
class Places:
    """The latent frames, rows and columns of a subset of a clip's tokens; on the CPU."""

    frames: Tensor
    rows: Tensor
    columns: Tensor

    def of(self, latents: Tensor) -> Tensor:
        """The subset of `latents` [n, C, T, Y, X]."""
        for dim, axis in enumerate((self.frames, self.rows, self.columns), start=2):
            latents = latents.index_select(dim, axis.to(latents.device))
        return latents


@dataclass(frozen=True)
class LatentSet:
    """Latents [n, 2, C, T, Y, X] of clips and of their mirror images, and the clips' scenes."""

    latents: Tensor
    scenes: tuple[Scene, ...]
    mean: Tensor
    std: Tensor

    def clean(self, picks: list[tuple[int, int]], places: Places, device: str) -> Tensor:
        """Normalised latents at `places` of some (clip, is mirrored)."""
        at = torch.tensor(picks, device=self.latents.device)
        rows = places.of(self.latents[at[:, 0], at[:, 1]]).to(device).float()
        mean, std = (v.to(device).view(-1, 1, 1, 1) for v in (self.mean, self.std))
        return (rows - mean) / std

    @functools.cached_property
    def _by_count(self) -> tuple[list[int], list[int]]:
        """Clips of one object, and of two."""
        counts = [len(scene.bodies) for scene in self.scenes]
        one, two = ([i for i, n in enumerate(counts) if n == some] for some in (1, 2))
        return one or two, two or one

    def pick(self, rng: random.Random) -> tuple[int, int]:
        """A clip, and whether it is mirrored."""
        return rng.choice(self._by_count[rng.random() < _PAIRS]), rng.randrange(2)

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
    ) -> Tensor:
        with _positions(self.transformer, places):
            return self.transformer(
                noisy, sigma * 1000, self.encode(prompts, length), return_dict=False
            )[0]


class _positions:
    """Give the transformer's rotary embedding the true places of a subset of tokens."""

    def __init__(self, transformer: WanTransformer3DModel, places: Places) -> None:
        self.rope, self.places = transformer.rope, places

    def __enter__(self) -> None:
        def at_places(hidden_states: Tensor) -> tuple[Tensor, Tensor]:
            axes = (self.places.frames, self.places.rows, self.places.columns)
            grid = tuple(int(axis.max()) + 1 for axis in axes)
            whole = hidden_states.new_empty((*hidden_states.shape[:2], *grid))
            picked = []
            for table in type(self.rope).forward(self.rope, whole):
                table = table.unflatten(1, grid)
                for dim, axis in enumerate(axes, start=1):
                    table = table.index_select(dim, axis.to(table.device))
                picked.append(table.flatten(1, 3))
            return picked[0], picked[1]

        self.rope.forward = at_places

    def __exit__(self, *_: object) -> None:
        del self.rope.forward


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
        TrainingError: `latents` holds what another VAE made.
    """
    vae = open_vae(vae_source, device).eval()
    maker, whole = _fingerprint(vae), WholeClips(vae)
    if len(latents) and latents.about["vae"] != maker:
        raise TrainingError(f"{latents.folder} holds latents of another VAE: remove it first.")
    rendered = clips.scenes

    def encode(start: int, some: int) -> tuple[Sequence[Scene], np.ndarray]:
        scenes: Sequence[Scene]
        if start + some <= len(rendered):
            scenes = rendered[start : start + some]
            frames = torch.from_numpy(np.array(clips.rows()[start : start + some])).to(device)
        else:
            scenes, frames = render_training(
                start, some, int(DEFAULTS["num_frames"]), int(DEFAULTS["height"]), seed, device
            )
        return scenes, _encode(whole, frames, device)

    # The first are stored together, since the statistics of all are theirs.
    grow(
        *(latents, count, encode),
        lambda rows: _statistics(vae, rows) | {"vae": maker},
        least=_STATISTICS_OF,
        minutes=minutes,
        device=device,
    )


def _encode(vae: WholeClips, frames: Tensor, device: str) -> np.ndarray:
    with torch.no_grad(), autocast(device):
        both = [vae.encode(to_model(f)).mode() for f in (frames, frames.flip(3))]
    return torch.stack(both, dim=1).half().cpu().numpy()


def _statistics(vae: AutoencoderKLWan, rows: np.ndarray) -> dict[str, list[float]]:
    """Mean and std by channel: those that a shipped VAE came with, or else those of `rows`."""
    config = vae.config
    if any(config["latents_mean"]):
        return {"mean": list(config["latents_mean"]), "std": list(config["latents_std"])}
    values = rows.astype(np.float32)
    axes = (0, 1, 3, 4, 5)
    return {"mean": values.mean(axes).tolist(), "std": values.std(axes).tolist()}


def _fingerprint(vae: AutoencoderKLWan) -> str:
    """Tells encoders apart: latents of one are noise to a denoiser of another."""
    digest = hashlib.sha256()
    for p in vae.encoder.parameters():
        digest.update(p.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _pick_places(
    shape: tuple[int, int, int],
    num_frames: int,
    stride: int,
    rng: random.Random,
) -> Places:
    """Random frames and a grid of rows and columns that starts anywhere.

    The first frame is always one of them: it alone holds a single video frame, and rotary
    positions tell only how far frames are apart.
    """
    total = shape[0]
    num_frames = min(num_frames, total)
    frames = [0, *sorted(rng.sample(range(1, total), num_frames - 1))]
    rows, columns = (
        torch.arange(rng.randrange(min(stride, size)), size, stride) for size in shape[1:]
    )
    return Places(torch.tensor(frames), rows, columns)


def load_latents(store: Store, device: str = "cpu") -> LatentSet:
    """All latents: memory-mapped on a CPU, moved to a GPU as a whole."""
    rows, about = store.rows(), store.about
    on_gpu = torch.device(device).type == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is read-only, and so is all that reads it
        latents = torch.from_numpy(rows)
    mean, std = (torch.tensor(about[name]) for name in ("mean", "std"))
    return LatentSet(latents.to(device) if on_gpu else latents, store.scenes, mean, std)


def sample_sigma(batch: int, tokens: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Noise levels: logit-normal, shifted to more noise (SD3, arXiv 2403.03206).

    More tokens show the same object through more noise, so the shift grows with their root.
    """
    noise = torch.randn(batch, generator=generator, device=generator.device)
    u = torch.sigmoid(noise * 1.1)
    shift = _SHIFT * math.sqrt(tokens / _SHIFT_TOKENS)
    return shift * u / (1 + (shift - 1) * u)


def train_dit(
    latents: Store,
    checkpoint: Path,
    minutes: float,
    *,
    text: Path,
    start: Path | None = None,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    curriculum: tuple[Lesson, ...] | None = None,
    compile_blocks: bool = False,
) -> dict:
    """Train for `minutes` of wall time in all, resuming from `checkpoint`; torchrun shares it out.

    Where there is no checkpoint yet, it begins under the text encoder of the checkpoint `text`, or
    goes on from the shipped pipeline in `start`. As that may have been trained on combinations
    that are held out today, the record says under `before` which words it knew.

    The schedule is a fraction of the time, so a slow machine gets fewer steps, not a cut schedule.

    Raises:
        TrainingError: `start` knows other words than the grammar.
    """
    share = processes()
    rank, world = share.rank, share.world
    curriculum = curriculum or CURRICULA[torch.device(device).type]
    data = load_latents(latents, device)
    torch.manual_seed(seed)
    record: dict = {"seed": seed, "log": [], "seconds": 0.0, "steps": 0, "clips": 0}
    averages: dict[str, Tensor] = {}
    if checkpoint.exists():
        model, record, averages = _load(checkpoint)
        if record.get("rule") != rule():
            record["before"] = list(model.words)
    elif start is not None:
        model, record["before"] = _started_from(start)
    else:
        model = Denoiser()
        model.text_encoder.load_state_dict(load_text_encoder(text).state_dict())
    record |= model.record | {"max_sequence_length": TEXT_LENGTH, "rule": rule()}
    model.to(device).float()
    if torch.device(device).type == "cpu" and bf16_is_native():
        for block in model.transformer.blocks:
            block.attn1.set_processor(WrittenOutProcessor())
            block.attn2.set_processor(WrittenOutProcessor())
    # Momenta are not kept: a resumed run warms up within seconds.
    parameters = dict(model.named_parameters())
    ema = {n: averages.get(n, p).detach().clone().to(device) for n, p in parameters.items()}
    optimizers = build_optimizers(
        model, lr, is_matrix=lambda name, p: "blocks" in name and p.ndim == 2
    )
    if compile_blocks:
        for block in model.transformer.blocks:
            block.compile(dynamic=torch.device(device).type == "cpu")
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
        weights = [share for share, *_ in lesson.mix]
        _, num_frames, stride, batch = lessons.choices(lesson.mix, weights)[0]
        cooled = max(0.0, progress - _COOLING) / (1 - _COOLING)
        decay = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * cooled))
        warm = min(1.0, (record["steps"] - first_step + 1) / _WARM_STEPS)
        set_rate(optimizers, lesson.rate * decay * warm)
        # Mostly short, at times as long as WanPipeline's default, so that both read alike.
        length = lessons.choice((*[TEXT_LENGTH] * 14, 64, 512))
        some = _Draw(batch, num_frames, stride, length)
        loss = _loss(model, data, some, rng, generator)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        record["steps"] += 1
        record["clips"] += batch * world
        record["seconds"] = seconds
        recent.append(loss.detach())
        keep = min(0.998, (1 + record["steps"]) / (10 + record["steps"]))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), list(parameters.values()), 1 - keep)
        if rank == 0 and record["steps"] % 50 == 0:
            mean_loss = float(torch.stack(recent).mean())
            record["log"].append([record["steps"], round(seconds), round(mean_loss, 4)])
            print(
                f"dit step {record['steps']} {seconds:.0f} s clips {record['clips']} "
                f"loss {mean_loss:.4f}",
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


def _started_from(folder: Path) -> tuple[Denoiser, list[str] | None]:
    """The shipped weights of `folder`, and the words of those that the rule did not bind."""
    words = words_of(folder)
    if set(words) != set(vocabulary()):
        raise TrainingError(
            f"{folder} knows other words than the grammar, so it can't be gone on from: "
            "leave --pretrained out, and train from the start."
        )
    model = load_shipped(folder)
    lab = json.loads((folder / "lab.json").read_text())
    return model, lab.get("before") if lab.get("rule") == rule() else list(words)


def _loss(
    model: Denoiser, data: LatentSet, draw: _Draw, rng: random.Random, generator: torch.Generator
) -> Tensor:
    device = model.transformer.device
    picks = [data.pick(rng) for _ in range(draw.batch)]
    places = _pick_places(data.latents.shape[3:], draw.num_frames, draw.stride, rng)
    clean = data.clean(picks, places, str(device))
    prompts = ["" if rng.random() < 0.1 else write(data.scene(pick), rng) for pick in picks]
    noise = torch.randn(clean.shape, generator=generator, device=device)
    sigma = sample_sigma(draw.batch, clean[0, 0].numel(), generator)
    s = sigma.view(-1, 1, 1, 1, 1)
    with autocast(str(device)):
        predicted = model((1 - s) * clean + s * noise, sigma, prompts, places, draw.text_length)
    return (predicted.float() - (noise - clean)).pow(2).mean()


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
    """The trained VAE, with the latents' mean and std in its config for WanPipeline."""
    vae, about = open_vae(source), latents.about
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
        places = Places(*(torch.arange(n) for n in clean.shape[2:]))
        prompts = [write(scene, rng) for scene in scenes]
        with autocast(device):
            velocity = model(noisy, sigma, prompts, places, TEXT_LENGTH)
        return (noisy - s * velocity.float()) * std + mean

    return redraw
