"""Stage `vae`: train the video autoencoder on crops of rendered clips."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor

from svg2.training.data import ClipSet, open_clips
from svg2.training.muon import build_optimizers, set_rate

LATENT_CHANNELS = 16


def build_vae() -> AutoencoderKLWan:
    """8x8x2 compression: 17 frames of 128 x 128 become 9 x 16 x 16 tokens."""
    return AutoencoderKLWan(
        base_dim=32,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        patch_size=4,
        in_channels=48,
        out_channels=48,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
        z_dim=LATENT_CHANNELS,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def to_model(frames: np.ndarray) -> Float[Tensor, "B 3 F H W"]:
    """uint8 [B, F, H, W, 3] to the VAE's range -1 to 1."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def random_crops(
    clips: ClipSet, batch: int, num_frames: int, size: int, rng: np.random.Generator
) -> Float[Tensor, "B 3 F S S"]:
    """Random space-time crops, half of them mirrored."""
    _, length, height, width, _ = clips.frames.shape
    out = np.empty((batch, num_frames, size, size, 3), dtype=np.uint8)
    for b in range(batch):
        n = rng.integers(clips.ready)
        t = rng.integers(length - num_frames + 1)
        # Latents are 8 x 8 pixels: crops on that grid see the phases that whole clips have.
        y = 8 * rng.integers((height - size) // 8 + 1)
        x = 8 * rng.integers((width - size) // 8 + 1)
        crop = clips.frames[n, t : t + num_frames, y : y + size, x : x + size]
        out[b] = crop[:, :, ::-1] if rng.random() < 0.5 else crop
    return to_model(out)


def psnr_of(vae: AutoencoderKLWan, clips: Float[Tensor, "B 3 F H W"]) -> float:
    """Reconstruction PSNR in dB over `clips`, from the posterior's mean."""
    with torch.no_grad():
        error = [
            (vae.decode(vae.encode(c[None]).latent_dist.mode()).sample - c).pow(2).mean().item()
            for c in clips
        ]
    return float(-10 * np.log10(np.mean(error) / 4))


def train_vae(
    clips_folder: Path,
    checkpoint: Path,
    minutes: float,
    *,
    frozen_encoder: Path | None = None,
    batch: int = 4,
    num_frames: int = 9,
    size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
) -> dict:
    """Train for `minutes` of wall time; writes `checkpoint` and returns its record.

    With `frozen_encoder`, start from that checkpoint and train its decoder alone: latents stay as
    a denoiser was trained on. The schedule is a fraction of the time, so a slow machine gets fewer
    steps, not a cut schedule.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = build_vae().to(device) if frozen_encoder is None else open_vae(frozen_encoder, device)
    if frozen_encoder is not None:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizers = build_optimizers(vae, lr, is_matrix=lambda _, p: p.ndim >= 4)
    record: dict = {"seed": seed, "log": [], "seconds": 0.0, "steps": 0}
    if checkpoint.exists():
        state = _load(checkpoint, device)
        vae.load_state_dict(state["model"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        record = json.loads(state["record"])
        rng = np.random.default_rng(seed + record["steps"])
    started, saved = time.monotonic() - record["seconds"], time.monotonic()
    errors: list[float] = []
    while True:
        progress = (time.monotonic() - started) / (60 * minutes)
        if progress >= 1:
            break
        warm = min(1.0, (record["steps"] + 1) / 100)
        set_rate(optimizers, warm * float(0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress))))
        clips = random_crops(open_clips(clips_folder), batch, num_frames, size, rng).to(device)
        with torch.set_grad_enabled(frozen_encoder is None):
            posterior = vae.encode(clips).latent_dist
            # Sampled latents in half the batches: a denoiser's are not exact either.
            latents = posterior.sample() if record["steps"] % 2 else posterior.mode()
        output = vae.decode(latents).sample
        mse = (output - clips).pow(2).mean()
        divergence = posterior.kl().mean() / latents[0].numel()
        loss = mse + 0.05 * (output - clips).abs().mean() + 3e-5 * divergence
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
        record["steps"] += 1
        record["seconds"] = time.monotonic() - started
        errors.append(mse.item())
        if record["steps"] % 100 == 0:
            psnr_db = float(-10 * np.log10(np.mean(errors) / 4))
            record["log"].append([record["steps"], round(record["seconds"]), round(psnr_db, 2)])
            print(
                f"vae step {record['steps']}, {record['seconds']:.0f} s, {psnr_db:.2f} dB",
                flush=True,
            )
            errors = []
        if time.monotonic() - saved > 60:
            _save(checkpoint, vae, optimizers, record)
            saved = time.monotonic()
    _save(checkpoint, vae, optimizers, record)
    return record


def open_vae(source: Path, device: str = "cpu") -> AutoencoderKLWan:
    """The VAE of a checkpoint, or of the folder of a shipped pipeline."""
    if source.is_dir():
        return AutoencoderKLWan.from_pretrained(source, subfolder="vae").to(device).float()
    vae = build_vae().to(device)
    vae.load_state_dict(_load(source, device)["model"])
    return vae


def _load(checkpoint: Path, device: str) -> dict:
    return torch.load(checkpoint, map_location=device, weights_only=True)


def _save(checkpoint: Path, vae, optimizers, record: dict) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_suffix(".part")
    state = {"model": vae.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state | {"record": json.dumps(record)}, part)
    part.replace(checkpoint)
