"""Stage `dit`: train the text encoder and the transformer on the latents of rendered clips.

Any subset of a clip's tokens, at their own places, is a fair sample. So training starts on some
frames of the clip and every second row and column, which is many clips a minute and enough to
learn what goes where, and ends on all tokens, always at the positions at which the model samples.
"""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from svg2.training.data import open_clips
from svg2.training.grammar import Scene, describe
from svg2.training.muon import build_optimizers, set_rate
from svg2.training.pipeline import build_text_encoder, build_tokenizer, build_transformer
from svg2.training.vae import open_vae, to_model

_SHIFT = 2.0
_COOLING = 0.7  # share of the time after which the learning rate falls


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


CURRICULUM = (
    Lesson(0.4, ((0.7, 3, 2, 8), (0.3, 9, 2, 3))),
    Lesson(0.75, ((0.6, 3, 1, 2), (0.4, 9, 2, 3)), 0.8),
    Lesson(1.0, ((0.7, 5, 1, 1), (0.3, 9, 1, 1)), 0.6),
)


@dataclass(frozen=True)
class Places:
    """The latent frames, rows and columns of a subset of a clip's tokens."""

    frames: Tensor
    rows: Tensor
    columns: Tensor

    def of(self, latents: Tensor) -> Tensor:
        """The subset of `latents` [n, C, T, Y, X]."""
        subset = latents.index_select(2, self.frames).index_select(3, self.rows)
        return subset.index_select(4, self.columns)


@dataclass(frozen=True)
class LatentSet:
    """Normalised latents [n, C, T, Y, X] in float16, and the scene of each clip."""

    latents: np.ndarray
    scenes: tuple[Scene, ...]


class Denoiser(nn.Module):
    """Text encoder and transformer, which train together."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(len(self.tokenizer))
        self.transformer = build_transformer()

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


def encode_clips(clips_folder: Path, vae_source: Path, target: Path, device: str = "cpu") -> None:
    """Encode all rendered clips and their mirror images; writes latents, their mean and std."""
    clips = open_clips(clips_folder)
    vae = open_vae(vae_source, device).eval()
    done = []
    with torch.no_grad():
        for i in range(clips.ready):
            clip = to_model(np.stack([clips.frames[i], clips.frames[i][:, :, ::-1]])).to(device)
            done.append(vae.encode(clip).latent_dist.mode().cpu())
    latents = torch.cat(done)
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    latents = (latents - mean[:, None, None, None]) / std[:, None, None, None]
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        target,
        latents=latents.numpy().astype(np.float16),
        mean=mean.numpy(),
        std=std.numpy(),
        scenes=np.array([json.dumps(vars(s)) for s in clips.scenes]),
    )


def _pick_places(
    shape: tuple[int, int, int], num_frames: int, stride: int, rng: random.Random
) -> Places:
    """Random frames and a grid of rows and columns that starts anywhere.

    Half the time the first frame is one of them, which alone holds a single video frame.
    """
    total = shape[0]
    num_frames = min(num_frames, total)
    if rng.random() < 0.5:
        frames = [0, *sorted(rng.sample(range(1, total), num_frames - 1))]
    else:
        frames = sorted(rng.sample(range(total), num_frames))
    rows, columns = (
        torch.arange(rng.randrange(min(stride, size)), size, stride) for size in shape[1:]
    )
    return Places(torch.tensor(frames), rows, columns)


_MIRROR = {"right": "left", "left": "right"}


def load_latents(path: Path) -> LatentSet:
    with np.load(path, allow_pickle=False) as data:
        latents = data["latents"]
        scenes = [Scene(**json.loads(str(s))) for s in data["scenes"]]
    both = []
    for scene in scenes:
        mirrored = Scene(**(vars(scene) | {"motion": _MIRROR.get(scene.motion, scene.motion)}))
        both += [scene, mirrored]
    return LatentSet(latents, tuple(both))


def sample_sigma(batch: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Noise levels: logit-normal, shifted to more noise (SD3, arXiv 2403.03206)."""
    u = torch.sigmoid(torch.randn(batch, generator=generator) * 1.1)
    return _SHIFT * u / (1 + (_SHIFT - 1) * u)


def train_dit(
    latents_path: Path,
    checkpoint: Path,
    minutes: float,
    *,
    start: Path | None = None,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    curriculum: tuple[Lesson, ...] = CURRICULUM,
) -> dict:
    """Train for `minutes` of wall time, resuming from `checkpoint`; under torchrun, in parallel.

    Where there is no checkpoint yet, `start` may name a shipped pipeline to go on from.

    The schedule is a fraction of the time, so a slow machine gets fewer steps, not a cut schedule.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = dist.get_world_size() if dist.is_initialized() else 1
    data = load_latents(latents_path)
    torch.manual_seed(seed)
    model = Denoiser()
    if start is not None:
        model.transformer = WanTransformer3DModel.from_pretrained(start, subfolder="transformer")
        model.text_encoder = UMT5EncoderModel.from_pretrained(start, subfolder="text_encoder")
    model.to(device).float()
    ema = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizers = build_optimizers(
        model, lr, is_matrix=lambda name, p: "blocks" in name and p.ndim == 2
    )
    record: dict = {"seed": seed, "log": [], "seconds": 0.0, "steps": 0, "clips": 0}
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema = state["ema"]
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        record = json.loads(state["record"])
    generator = torch.Generator().manual_seed(seed + 1000 * rank + record["steps"])
    rng = random.Random(f"{seed}/{rank}/{record['steps']}")
    # The same on all ranks, so that they take as long.
    lessons = random.Random(f"{seed}/lessons/{record['steps']}")
    started, saved = time.monotonic() - record["seconds"], time.monotonic()
    recent: list[float] = []
    while True:
        seconds = _agree(time.monotonic() - started, device)
        progress = seconds / (60 * minutes)
        if progress >= 1:
            break
        lesson = next(part for part in curriculum if progress < part.until)
        weights = [share for share, *_ in lesson.mix]
        _, num_frames, stride, batch = lessons.choices(lesson.mix, weights)[0]
        cooled = max(0.0, progress - _COOLING) / (1 - _COOLING)
        decay = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * cooled))
        set_rate(optimizers, lesson.rate * decay * min(1.0, (record["steps"] + 1) / 100))
        loss = _loss(model, data, num_frames, stride, batch, rng, generator, device)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(model, world)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        record["steps"] += 1
        record["clips"] += batch * world
        record["seconds"] = seconds
        recent.append(loss.item())
        keep = min(0.998, (1 + record["steps"]) / (10 + record["steps"]))
        with torch.no_grad():
            for name, p in model.named_parameters():
                ema[name].lerp_(p, 1 - keep)
        if rank == 0 and record["steps"] % 50 == 0:
            record["log"].append(
                [record["steps"], round(seconds), round(float(np.mean(recent)), 4)]
            )
            print(
                f"dit step {record['steps']} {seconds:.0f} s clips {record['clips']} "
                f"loss {np.mean(recent):.4f}",
                flush=True,
            )
            recent = []
        if rank == 0 and time.monotonic() - saved > 120:
            _save(checkpoint, model, ema, optimizers, record)
            saved = time.monotonic()
    if rank == 0:
        _save(checkpoint, model, ema, optimizers, record)
    return record


def _loss(model, data, num_frames, stride, batch, rng, generator, device) -> Tensor:
    picks = [rng.randrange(len(data.scenes)) for _ in range(batch)]
    places = _pick_places(data.latents.shape[2:], num_frames, stride, rng)
    clean = places.of(torch.from_numpy(data.latents[picks])).float().to(device)
    prompts = ["" if rng.random() < 0.1 else describe(data.scenes[i], rng) for i in picks]
    # Mostly short, at times as long as WanPipeline's default, so that both read alike.
    length = rng.choice((24, 24, 24, 64, 512))
    noise = torch.randn(clean.shape, generator=generator).to(device)
    sigma = sample_sigma(batch, generator).to(device)
    s = sigma.view(-1, 1, 1, 1, 1)
    predicted = model((1 - s) * clean + s * noise, sigma, prompts, places, length)
    return (predicted - (noise - clean)).pow(2).mean()


def _agree(seconds: float, device: str) -> float:
    """All ranks take the clock of the first, so that they stop at the same step."""
    if not dist.is_initialized():
        return seconds
    clock = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.broadcast(clock, 0)
    return float(clock)


def _average_gradients(model: nn.Module, world: int) -> None:
    if world == 1:
        return
    grads = [p.grad for p in _with_grads(model)]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def _with_grads(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.grad is not None)


def _save(checkpoint: Path, model, ema, optimizers, record: dict) -> None:
    part = checkpoint.with_suffix(".part")
    state = {"model": model.state_dict(), "ema": ema, "record": json.dumps(record)}
    torch.save(state | {"optimizers": [o.state_dict() for o in optimizers]}, part)
    part.replace(checkpoint)


def load_denoiser(checkpoint: Path) -> tuple[Denoiser, dict]:
    """The averaged weights of a checkpoint, and its record."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Denoiser()
    model.load_state_dict(state["model"])
    for name, p in model.named_parameters():
        p.data.copy_(state["ema"][name])
    return model.eval(), json.loads(state["record"])


def load_vae(source: Path, latents_path: Path) -> AutoencoderKLWan:
    """The trained VAE, with the latents' mean and std in its config for WanPipeline."""
    vae = open_vae(source)
    with np.load(latents_path, allow_pickle=False) as data:
        vae.register_to_config(
            latents_mean=data["mean"].tolist(), latents_std=data["std"].tolist()
        )
    return vae.eval()
