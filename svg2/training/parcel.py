"""Stages `pack` and `unpack`: a training of `long` or `distil` in few megabytes, to go on with.

A parcel is a zip of how far each averaged weight, rounded to bf16 as `ship` rounds it, lies from
that of the shipped pipeline, counted in numbers of bf16; with a hash of that pipeline's weights,
and the record. What is shipped from it is the same to the bit. Momenta are not in it, as in no
checkpoint.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from svg2.training.data import TrainingError, save_checkpoint
from svg2.training.denoiser import load_denoiser, load_shipped

_ABOUT = "about.json"
_BYTES = ("high", "low")  # of the numbers apart: apart they pack better


def pack(checkpoint: Path, shipped: Path, parcel: Path) -> None:
    """Write `parcel`: how far the averaged weights of `checkpoint` are from those of `shipped`."""
    trained, record = load_denoiser(checkpoint)
    base = _base(shipped)
    parcel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(parcel, "w", zipfile.ZIP_LZMA) as file:
        about = {"record": record, "shipped": _hash(base)}
        file.writestr(_ABOUT, json.dumps(about))
        for name, p in trained.named_parameters():
            apart = _ranks(p.detach()) - _ranks(base[name])  # modulo 2^16
            if not apart.any():
                continue
            # Small numbers of either sign to small ones without: 0, -1, 1, -2, 2.
            small = (apart << 1 ^ apart >> 15).view(np.uint16)
            for part, values in zip(_BYTES, (small >> 8, small), strict=True):
                file.writestr(f"{name}.{part}", values.astype(np.uint8).tobytes())


def unpack(parcel: Path, shipped: Path, checkpoint: Path) -> None:
    """Write the checkpoint that `parcel` was made of, its averaged weights as the weights too.

    Raises:
        TrainingError: there is a checkpoint already, no parcel, another file in its place, or a
            parcel that counts from others than the weights of `shipped`.
    """
    if checkpoint.exists():
        raise TrainingError(f"{checkpoint} exists: remove it first, or go on from it.")
    if not parcel.exists():
        raise TrainingError(f"{parcel} does not exist: run `pack` where the training is.")
    if not zipfile.is_zipfile(parcel):
        raise TrainingError(f"{parcel} is no whole parcel: name a file that `pack` wrote.")
    model, base = load_shipped(shipped), _base(shipped)
    model.load_state_dict(base)
    with zipfile.ZipFile(parcel) as file:
        about = json.loads(file.read(_ABOUT))
        if about["shipped"] != _hash(base):
            raise TrainingError(f"{parcel} counts from other weights than those of {shipped}.")
        moved = {name.rpartition(".")[0] for name in file.namelist() if name != _ABOUT}
        for name, p in model.named_parameters():
            if name not in moved:
                continue
            high, low = (
                np.frombuffer(file.read(f"{name}.{part}"), np.uint8).astype(np.uint16)
                for part in _BYTES
            )
            small = high << 8 | low
            apart = (small >> 1).view(np.int16) ^ -(small & 1).view(np.int16)
            p.data = _weights(_ranks(p.detach()) + apart).view(p.shape)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    save_checkpoint(checkpoint, about["record"], model=model.state_dict(), ema=parameters)


def _ranks(weight: Tensor) -> ndarray:
    """The place of each weight among the numbers of bf16, 0 for +0 and -1 for -0; int16."""
    bits = weight.bfloat16().flatten().view(torch.int16).numpy()
    return np.where(bits < 0, ~(bits & 0x7FFF), bits)


def _weights(ranks: ndarray) -> Tensor:
    """The weights at these places, in one row, as fp32."""
    bits = np.where(ranks < 0, ~ranks | -0x8000, ranks).astype(np.int16)
    return torch.from_numpy(bits).view(torch.bfloat16).float()


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
