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
_STRIDE = 2  # video frames per latent frame after the first
# Share of clips with two objects. All wrong ones of 28 prompts had two, after 0.7 of the clips.
_PAIRS = 0.85
# How much more often a clip with a spinning object is drawn than any other. Without this weight,
# all six wrong movements of 47 prompts were spins.
_SPIN_WEIGHT = 2.0


def encode_clips(
    clips: Store,
    latents: Store,
    vae_source: Path,
    count: int,
    *,
    num_frames: int = _FRAMES,
    like: Store | None = None,
    seed: int = 0,
    device: str = "cpu",
    minutes: float = math.inf,
) -> None:
    """Encode training clips and their mirror images until `latents` holds `count`; resumes.

    Clips that are not in `clips` are rendered and not stored.

    Args:
        vae_source: checkpoint of the VAE, or folder of a shipped pipeline.
        num_frames: of each clip.
        like: store of latents of other clips whose mean and standard deviation are taken, so that
            one denoiser reads both.

    Raises:
        TrainingError: `latents` holds latents of another VAE, or one of the stores holds clips of
            another seed or staging.
    """
    check_staging(clips, num_frames, seed)
    check_staging(latents, num_frames, seed)
    vae = open_vae(vae_source, device).eval()
    maker, whole = fingerprint(vae), WholeClips(vae)
    if len(latents) and latents.about["vae"] != maker:
        raise TrainingError(f"{latents.folder} holds latents of another VAE: remove it first.")
    rendered = clips.scenes
    about = {"vae": maker, "seed": seed, "staging": staging_of(num_frames, seed)}
    if like is not None:
        about |= {name: like.about[name] for name in ("mean", "std")}

    def encode(start: int, some: int) -> tuple[Sequence[Scene], np.ndarray]:
        scenes: Sequence[Scene]
        if start + some <= len(rendered):
            scenes = rendered[start : start + some]
            frames = torch.from_numpy(np.array(clips.rows()[start : start + some])).to(device)
        else:
            scenes, frames = render_training(
                start, some, num_frames, int(DEFAULTS["height"]), seed, device
            )
        return scenes, _encode(whole, frames, device)

    # The first round is at least this large, because its statistics are used for all.
    grow(
        *(latents, count, encode),
        lambda rows: _statistics(vae, rows) | about,
        least=_STATISTICS_OF,
        minutes=minutes,
        device=device,
    )


def _encode(vae: WholeClips, frames: Tensor, device: str) -> np.ndarray:
    with torch.no_grad(), autocast(device):
        both = [vae.encode(to_model(f)).mode() for f in (frames, frames.flip(3))]
    return torch.stack(both, dim=1).half().cpu().numpy()


def _statistics(vae: AutoencoderKLWan, rows: np.ndarray) -> dict[str, list[float]]:
    """Mean per channel and one standard deviation: those of a shipped VAE, or else of `rows`.

    The standard deviation is one for all channels: in the VAE's units, an error changes the video
    about equally in each. With one per channel, a channel of fine grain would weigh as much as a
    channel of bodies.
    """
    config = vae.config
    if any(config["latents_mean"]):
        return {"mean": list(config["latents_mean"]), "std": list(config["latents_std"])}
    values = rows.astype(np.float32)
    axes = (0, 1, 3, 4, 5)
    std = float(np.sqrt(values.var(axes).mean()))
    return {"mean": values.mean(axes).tolist(), "std": [std] * values.shape[2]}


def fingerprint(vae: AutoencoderKLWan) -> str:
    """Hash of a VAE's encoder, which a denoiser's latents must come from."""
    digest = hashlib.sha256()
    for p in vae.encoder.parameters():
        digest.update(p.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class LatentSet:
    """Latents `[n, 2, C, T, Y, X]` of clips and their mirror images, and the clips' scenes."""

    latents: Tensor
    scenes: tuple[Scene, ...]
    mean: Tensor
    std: Tensor
    layout: Layout

    def clean(self, picks: list[tuple[int, int]], places: Places, device: str) -> Tensor:
        """Normalised latents `[n, C, 1, 1, N]` of picks (clip, is mirrored), at `places`."""
        at = torch.tensor(picks, device=self.latents.device)
        rows = places.of(self.latents[at[:, 0], at[:, 1]]).to(device).float()
        mean, std = (v.to(device).view(-1, 1, 1, 1) for v in (self.mean, self.std))
        return (rows - mean) / std

    @functools.cached_property
    def _by_count(self) -> tuple[tuple[list[int], list[float]], ...]:
        """Clips with one object and with two, each with cumulative weights for drawing."""
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
        """Draw a clip, and whether it is mirrored."""
        clips, often = self._by_count[rng.random() < _PAIRS]
        return rng.choices(clips, cum_weights=often)[0], rng.randrange(2)

    def scene(self, pick: tuple[int, int]) -> Scene:
        """The scene of a pick, mirrored if the pick is."""
        scene = self.scenes[pick[0]]
        return scene.mirrored() if pick[1] else scene


def load_latents(store: Store, device: str = "cpu") -> LatentSet:
    """All latents: memory-mapped on a CPU, or moved to a GPU as a whole.

    Raises:
        TrainingError: their clips have another seed or staging.
    """
    rows, about, scenes = store.rows(), store.about, store.scenes
    num_frames = _STRIDE * (rows.shape[3] - 1) + 1
    on_gpu = torch.device(device).type == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a read-only file; nothing writes to it
        latents = torch.from_numpy(rows)
    mean, std = (torch.tensor(about[name]) for name in ("mean", "std"))
    check_staging(store, num_frames, about["seed"])
    drawn = place_training(0, len(scenes), num_frames, about["seed"])
    layout = layout_of([placement for _, placement in drawn], rows.shape[3:])
    moved = latents.to(device) if on_gpu else latents
    return LatentSet(moved, scenes, mean, std, layout)


def load_vae(source: Path, latents: Store) -> AutoencoderKLWan:
    """The trained VAE, with mean and standard deviation of the latents in its config.

    A shipped one has them already, and needs no latents.

    Raises:
        TrainingError: another VAE made the latents.
    """
    vae = open_vae(source)
    if source.is_dir() and not len(latents):
        return vae.eval()
    about = latents.about
    if fingerprint(vae) != about["vae"]:
        raise TrainingError(
            f"{source} is not the autoencoder of {latents.folder}: encode, dit and decoder have "
            "to be run anew after it."
        )
    vae.register_to_config(latents_mean=about["mean"], latents_std=about["std"])
    return vae.eval()
