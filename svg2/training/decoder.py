"""Stage `decoder`: latents with the errors of the denoiser, to train the decoder on."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from svg2.models.prompts import Scene
from svg2.runs.distributed import processes
from svg2.training.data import Store
from svg2.training.denoiser import load_denoiser
from svg2.training.pipeline import TEXT_LENGTH
from svg2.training.text import write
from svg2.training.vae import Redraw, autocast
from svg2.training.views import all_places

_REDRAWN_FROM = 0.4  # the highest noise level from which latents are drawn anew


def redraw_with(
    checkpoint: Path,
    latents: Store,
    *,
    seed: int = 0,
    device: str = "cpu",
) -> Redraw:
    """A function that adds a little noise to latents and removes it in one denoising step.

    The result has errors like those of sampled latents, and the decoder learns to correct them.

    Args:
        checkpoint: of the denoiser.
        latents: store whose mean and standard deviation the denoiser was trained with.
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
