"""A training that is packed and unpacked goes on from the same weights."""

import pytest
import torch

from svg2.models.finding import BUILTIN_FOLDER
from svg2.training.data import TrainingError, load_checkpoint, save_checkpoint
from svg2.training.denoiser import load_denoiser, load_shipped
from svg2.training.parcel import pack, unpack

MOST_BYTES = 8 << 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint whose weights moved by a hundredth, each row by another part of it."""
    model = load_shipped(BUILTIN_FOLDER)
    draw = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if not name.startswith("text_encoder"):
            rows = torch.rand(len(p), *[1] * (p.ndim - 1), generator=draw)
            p.data += 0.01 * rows * torch.randn(p.shape, generator=draw)
    ema = {name: p.detach() for name, p in model.named_parameters()}
    path = tmp_path_factory.mktemp("work") / "long.pt"
    record = model.record | {"steps": 7, "seconds": 61.0, "clips": 3, "log": [[0, 0, 1.0]]}
    save_checkpoint(path, record, model=model.state_dict(), ema=ema)
    return path


def test_weights_come_back_and_the_training_goes_on(trained, tmp_path):
    parcel, back = tmp_path / "to" / "long.safetensors", tmp_path / "long.pt"
    pack(trained, BUILTIN_FOLDER, parcel)
    assert parcel.stat().st_size < MOST_BYTES
    unpack(parcel, BUILTIN_FOLDER, back)
    assert load_checkpoint(back)[1] == load_checkpoint(trained)[1]
    before, after = (dict(load_denoiser(path)[0].named_parameters()) for path in (trained, back))
    shipped = dict(load_shipped(BUILTIN_FOLDER).named_parameters())
    for name, p in before.items():
        if not name.startswith("guide"):
            moved = (p - shipped[name]).abs().max()
            assert (after[name] - p).abs().max() <= 0.51 / 127 * moved
    torch.testing.assert_close(
        after["guide.read.1.weight"], before["guide.read.1.weight"], atol=4e-4, rtol=0
    )
    states, _ = load_checkpoint(back)
    assert all(torch.equal(states["model"][name], x) for name, x in states["ema"].items())


def test_no_parcel_and_a_checkpoint_in_the_way_are_refused(trained, tmp_path):
    parcel = tmp_path / "long.safetensors"
    with pytest.raises(TrainingError, match="run `pack`"):
        unpack(parcel, BUILTIN_FOLDER, tmp_path / "long.pt")
    pack(trained, BUILTIN_FOLDER, parcel)
    with pytest.raises(TrainingError, match="remove it first"):
        unpack(parcel, BUILTIN_FOLDER, trained)


def test_a_parcel_that_counts_from_other_weights_is_refused(trained, tmp_path, monkeypatch):
    parcel = tmp_path / "long.safetensors"
    pack(trained, BUILTIN_FOLDER, parcel)
    other = load_shipped(BUILTIN_FOLDER)
    with torch.no_grad():
        other.transformer.proj_out.bias[0] += 0.01
    monkeypatch.setattr("svg2.training.parcel.load_shipped", lambda folder: other)
    with pytest.raises(TrainingError, match="counts from other weights"):
        unpack(parcel, BUILTIN_FOLDER, tmp_path / "long.pt")
    assert not (tmp_path / "long.pt").exists()
