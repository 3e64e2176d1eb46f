"""Stages `pack` and `unpack`: a training of `long` or `distil` in few megabytes, to go on with.

A parcel holds how far each averaged weight moved from the shipped pipeline, in 8 bits, a hash of
that pipeline's weights, and the record. Momenta are not in it, as in no checkpoint.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from svg2.training.data import TrainingError, save_checkpoint
from svg2.training.denoiser import load_denoiser, load_shipped

_LEVELS = 127
_STEP = "step of "  # before a weight's name: the size of one level in each of its rows


def pack(checkpoint: Path, shipped: Path, parcel: Path) -> None:
    """Write `parcel`: what the averaged weights of `checkpoint` are beyond those of `shipped`.

    A weight is off by at most half a level: 1/254 of the furthest that any in its row moved.
    """
    trained, record = load_denoiser(checkpoint)
    base = _base(shipped)
    moved: dict[str, Tensor] = {}
    for name, p in trained.named_parameters():
        change = (p.detach() - base[name]).float()
        if not change.any():
            continue
        furthest = change.flatten(1).abs().amax(1) if change.ndim > 1 else change.abs().amax()
        steps = (furthest / _LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        moved[name] = (change / _by_row(steps, change)).round().to(torch.int8)
        moved[_STEP + name] = steps
    parcel.parent.mkdir(parents=True, exist_ok=True)
    save_file(moved, parcel, {"record": json.dumps(record), "shipped": _hash(base)})


def unpack(parcel: Path, shipped: Path, checkpoint: Path) -> None:
    """Write the checkpoint that `parcel` was made of, its averaged weights as the weights too.

    Raises:
        TrainingError: there is a checkpoint already, no parcel, or one that counts from others
            than the weights of `shipped`.
    """
    if checkpoint.exists():
        raise TrainingError(f"{checkpoint} exists: remove it first, or go on from it.")
    if not parcel.exists():
        raise TrainingError(f"{parcel} does not exist: run `pack` where the training is.")
    with safe_open(parcel, "pt") as file:
        about = file.metadata()
    moved, base = load_file(parcel), _base(shipped)
    if about["shipped"] != _hash(base):
        raise TrainingError(f"{parcel} counts from other weights than those of {shipped}.")
    model = load_shipped(shipped)
    model.load_state_dict(base)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for name, level in moved.items():
        if not name.startswith(_STEP):
            parameters[name] += level * _by_row(moved[_STEP + name], level)
    save_checkpoint(
        checkpoint, json.loads(about["record"]), model=model.state_dict(), ema=parameters
    )


def _by_row(steps: Tensor, weight: Tensor) -> Tensor:
    """The steps, so that each multiplies its row of `weight`; a vector has one for all."""
    return steps.view(-1, *[1] * (weight.ndim - 1))


def _base(shipped: Path) -> dict[str, Tensor]:
    """Weights that a change counts from: those of `shipped`, and 0 for the guide."""
    model = load_shipped(shipped)
    model.guide.load_state_dict(
        {name: torch.zeros_like(x) for name, x in model.guide.state_dict().items()}
    )
    return model.state_dict()


def _hash(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].float().numpy().tobytes())
    return digest.hexdigest()
