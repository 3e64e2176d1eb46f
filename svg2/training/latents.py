"""Stage `encode`: latents of training clips, and reading them back."""

import functools
import hashlib
import itertools
import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from svg2.models.prompts import Scene
from svg2.training.data import (
    Store,
    TrainingError,
    check_staging,
    grow,
    place_training,
    render_training,
    staging_of,
)
from svg2.training.layout import Layout, layout_of
from svg2.training.pipeline import DEFAULTS
from svg2.training.vae import WholeClips, autocast, open_vae, to_model
from svg2.training.views import Places

_STATISTICS_OF = 48  # clips from whose latents mean and standard deviation are computed
_FRAMES = int(DEFAULTS["num_frames"])
_PAIRS = 0.7  # share of clips with two objects: they are harder to draw than one
# How much more often a clip with a spinning object is drawn than any other. Without this weight,
# all six wrong movements of 47 prompts were spins.
_SPIN_WEIGHT = 2.0


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
    maker, whole = fingerprint(vae), WholeClips(vae)
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


def fingerprint(vae: AutoencoderKLWan) -> str:
    """Tells encoders apart: latents of one are noise to a denoiser of another."""
    digest = hashlib.sha256()
    for p in vae.encoder.parameters():
        digest.update(p.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


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


def load_vae(source: Path, latents: Store) -> AutoencoderKLWan:
    """The trained VAE, with the latents' mean and std in its config for WanPipeline.

    Raises:
        TrainingError: it is not the one that made the latents.
    """
    vae, about = open_vae(source), latents.about
    if fingerprint(vae) != about["vae"]:
        raise TrainingError(
            f"{source} is not the autoencoder of {latents.folder}: encode, dit and decoder have "
            "to be run anew after it."
        )
    vae.register_to_config(latents_mean=about["mean"], latents_std=about["std"])
    return vae.eval()
