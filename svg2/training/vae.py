"""Stage `vae`: train the video autoencoder on crops of rendered clips."""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float, UInt8
from torch import Tensor

from kernels import bf16_is_native
from svg2.models.prompts import Scene
from svg2.runs.distributed import processes
from svg2.training.data import Store, load_checkpoint, save_checkpoint
from svg2.training.muon import build_optimizers, set_rate
from svg2.training.ranks import average_gradients, shared_clock

LATENT_CHANNELS = 16
Redraw = Callable[
    [Tensor, Sequence[Scene]], Tensor
]  # takes latents of clips and their scenes, returns latents
_DETAILED_OF = 3
_ON_DEVICE_BYTES = 48 << 30  # clips up to this size move to a GPU as a whole
_BASE_DIM = 32
_LR = 2e-3


@dataclass(frozen=True)
class Crops:
    """Crops of one step: `batch` of them, of `num_frames` frames and `size` x `size` pixels."""

    batch: int
    num_frames: int
    size: int


CROPS = {"cpu": Crops(4, 9, 64), "cuda": Crops(32, 9, 96)}


def build_vae(base_dim: int = _BASE_DIM) -> AutoencoderKLWan:
    """An autoencoder with random weights: 17 frames of 192 x 192 become 9 x 24 x 24 tokens."""
    return AutoencoderKLWan(
        base_dim=base_dim,
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


def to_model(frames: UInt8[Tensor, "B F H W 3"]) -> Float[Tensor, "B 3 F H W"]:
    """uint8 frames as a video in the VAE's range -1 to 1."""
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


class CropSource:
    """Random space-time crops of a store's clips, half of them mirrored.

    Half of them are the most detailed of three crops, because most of a clip is plain ground and
    sky, and most of the error is at edges.
    """

    def __init__(self, store: Store, crops: Crops, rng: np.random.Generator, device: str) -> None:
        self.store, self.crops, self.rng, self.device = store, crops, rng, device
        self.rows: Tensor | np.ndarray = store.rows()
        self.scenes = store.scenes
        if torch.device(device).type == "cuda" and self.rows.nbytes <= _ON_DEVICE_BYTES:
            self.rows = torch.from_numpy(np.array(self.rows)).to(device)

    def draw(self) -> tuple[Float[Tensor, "B 3 F S S"], list[Scene]]:
        """Crops, and their scenes, mirrored if the crop is."""
        out, scenes = [], []
        for i in range(self.crops.batch):
            some = [self._crop() for _ in range(_DETAILED_OF if i % 2 else 1)]
            crop, scene = max(some, key=lambda of: _detail(of[0]))
            mirrored = self.rng.random() < 0.5
            out.append(crop.flip(2) if mirrored else crop)
            scenes.append(scene.mirrored() if mirrored else scene)
        return to_model(torch.stack(out).to(self.device)), scenes

    def _crop(self) -> tuple[UInt8[Tensor, "F S S 3"], Scene]:
        c, rng = self.crops, self.rng
        count, length, height, width, _ = self.rows.shape
        n, t = rng.integers(count), rng.integers(length - c.num_frames + 1)
        # A latent is 8 x 8 pixels. Crops on that grid have the phases of whole clips.
        y = 8 * rng.integers((height - c.size) // 8 + 1)
        x = 8 * rng.integers((width - c.size) // 8 + 1)
        crop = self.rows[n, t : t + c.num_frames, y : y + c.size, x : x + c.size]
        crop = torch.as_tensor(np.array(crop) if isinstance(crop, np.ndarray) else crop)
        return crop, self.scenes[n]


class WholeClips:
    """A VAE's encoder and decoder on all frames of a clip at once.

    diffusers saves memory with chunks of a clip and caches between them. All frames at once give
    the same values from fewer and larger convolutions, which are faster.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        for module in vae.modules():
            if isinstance(module, WanResample):
                module.forward = functools.partial(_resample, module)

    def encode(self, clips: Float[Tensor, "B 3 F H W"]) -> DiagonalGaussianDistribution:
        """The posterior of the latents."""
        patches = patchify(clips, self.vae.config.patch_size)
        return DiagonalGaussianDistribution(self.vae.quant_conv(self.vae.encoder(patches)))

    def decode(self, latents: Float[Tensor, "B C T Y X"]) -> Float[Tensor, "B 3 F H W"]:
        """Clips of latents. They are not clamped, so that the loss sees values outside -1 to 1."""
        patches = self.vae.decoder(self.vae.post_quant_conv(latents))
        return unpatchify(patches, self.vae.config.patch_size)


def _resample(
    module: WanResample, x: Tensor, feat_cache: list | None = None, feat_idx: list | None = None
) -> Tensor:
    """`WanResample` without caches: the same result as over chunks, with frame 0 alone."""
    if feat_cache is not None:
        return WanResample.forward(module, x, feat_cache, feat_idx)
    if module.mode == "upsample3d" and x.shape[2] > 1:
        # 2 C channels of T - 1 frames are C channels of 2 (T - 1) frames
        pairs = module.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
        x = torch.cat([x[:, :, :1], pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    frames = module.resample(x.transpose(1, 2).flatten(0, 1))
    x = frames.unflatten(0, (len(x), -1)).transpose(1, 2)
    if module.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], module.time_conv(x)], dim=2)
    return x


def _detail(crop: UInt8[Tensor, "F S S 3"]) -> float:
    """Mean change of brightness between neighbouring pixels of the crop's middle frame."""
    green = crop[len(crop) // 2, :, :, 1].float()
    return float(green.diff(dim=0).abs().mean() + green.diff(dim=1).abs().mean())


def psnr_of(vae: AutoencoderKLWan, clips: Float[Tensor, "B 3 F H W"]) -> float:
    """PSNR in dB between `clips` and their reconstruction from the posterior's mean."""
    with torch.no_grad():
        error = [
            (vae.decode(vae.encode(c[None]).latent_dist.mode()).sample.clamp(-1, 1) - c)
            .pow(2)
            .mean()
            .item()
            for c in clips
        ]
    return float(-10 * np.log10(np.mean(error) / 4))


def train_vae(
    store: Store,
    checkpoint: Path,
    minutes: float,
    *,
    start: Path | None = None,
    frozen_encoder: Path | None = None,
    redraw: Redraw | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict:
    """Train the autoencoder or its decoder, write `checkpoint` and return its record.

    A checkpoint is resumed. Under torchrun, all processes share the work. The schedule follows the
    time, so a slow machine makes fewer steps of the same schedule.

    Args:
        minutes: wall time in total, earlier calls included.
        start: checkpoint, or folder of a shipped pipeline, to continue from where there is no
            checkpoint yet.
        frozen_encoder: the same, but to train the decoder alone: its latents stay those that a
            denoiser was trained on.
        redraw: gives half of the latents the errors of a denoiser.
    """
    torch.manual_seed(seed)
    share = processes()
    rank, world = share.rank, share.world
    kind = torch.device(device).type
    record: dict = {"seed": seed, "log": [], "seconds": 0.0, "steps": 0}
    if checkpoint.exists():
        vae, record = open_vae(checkpoint, device), load_checkpoint(checkpoint)[1]
    elif (source := frozen_encoder or start) is not None:
        vae = open_vae(source, device)
    else:
        vae = build_vae().to(device)
    record["base_dim"] = vae.config["base_dim"]
    if frozen_encoder is not None:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizers = build_optimizers(vae, _LR, is_matrix=lambda _, p: p.ndim >= 4)
    whole = WholeClips(vae)
    rng = np.random.default_rng((seed, rank, record["steps"]))
    crops = CROPS[kind]
    drawn = CropSource(store, crops, rng, device)
    started, saved = time.monotonic() - record["seconds"], time.monotonic()
    first_step = record["steps"]
    errors: list[Tensor] = []
    while True:
        seconds = shared_clock(time.monotonic() - started, device)
        progress = seconds / (60 * minutes)
        if progress >= 1:
            break
        warm = min(1.0, (record["steps"] - first_step + 1) / 100)
        set_rate(optimizers, warm * float(0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress))))
        clips, scenes = drawn.draw()
        with autocast(device):
            with torch.set_grad_enabled(frozen_encoder is None):
                posterior = whole.encode(clips)
                latents = posterior.mode()
                if record["steps"] % 2:  # like the latents of a denoiser, not exact
                    latents = redraw(latents, scenes) if redraw else posterior.sample()
            output = whole.decode(latents)
        error = output.float() - clips
        mse = error.pow(2).mean()
        divergence = posterior.kl().mean() / latents[0].numel()
        loss = mse + 0.05 * error.abs().mean() + 3e-5 * divergence
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(vae)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
        record["steps"] += 1
        record["clips"] = record.get("clips", 0) + crops.batch * world
        record["seconds"] = seconds
        errors.append(mse.detach())
        if rank == 0 and record["steps"] % 100 == 0:
            psnr_db = float(-10 * np.log10(torch.stack(errors).mean().item() / 4))
            record["log"].append([record["steps"], round(record["seconds"]), round(psnr_db, 2)])
            print(
                f"vae step {record['steps']}, {record['seconds']:.0f} s, {psnr_db:.2f} dB",
                flush=True,
            )
            errors = []
        if rank == 0 and time.monotonic() - saved > 60:
            save_checkpoint(checkpoint, record, model=vae.state_dict())
            saved = time.monotonic()
    record["finished"] = True
    if rank == 0:
        save_checkpoint(checkpoint, record, model=vae.state_dict())
    return record


def autocast(device: str) -> AbstractContextManager:
    """Autocast to bf16 on hardware that multiplies in it, else fp32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" or bf16_is_native())


def open_vae(source: Path, device: str = "cpu") -> AutoencoderKLWan:
    """The VAE of a checkpoint, or of a folder with a shipped pipeline."""
    if source.is_dir():
        return AutoencoderKLWan.from_pretrained(source, subfolder="vae").to(device).float()
    states, record = load_checkpoint(source)
    vae = build_vae(record.get("base_dim", _BASE_DIM))
    vae.load_state_dict(states["model"])
    return vae.to(device)
