"""A training that is packed and unpacked goes on from the same weights."""

import json

import pytest
import torch

from svg2.models.finding import BUILTIN_FOLDER
from svg2.models.prompts import rule
from svg2.training.__main__ import main
from svg2.training.data import TrainingError, load_checkpoint, save_checkpoint
from svg2.training.denoiser import load_denoiser, load_shipped
from svg2.training.parcel import _ranks, _weights, pack, unpack
from svg2.training.pipeline import TEXT_LENGTH

MOST_BYTES = 10_000_000


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
    told = {"max_sequence_length": TEXT_LENGTH, "rule": rule(), "log": [[0, 0, 1.0]]}
    record = model.record | told | {"steps": 7, "seconds": 61.0, "clips": 3}
    save_checkpoint(path, record, model=model.state_dict(), ema=ema)
    return path


def test_weights_come_back_and_the_training_goes_on(trained, tmp_path):
    parcel, back = tmp_path / "to" / "long.zip", tmp_path / "long.pt"
    pack(trained, BUILTIN_FOLDER, parcel)
    assert parcel.stat().st_size < MOST_BYTES
    unpack(parcel, BUILTIN_FOLDER, back)
    assert load_checkpoint(back)[1] == load_checkpoint(trained)[1]
    before, after = (dict(load_denoiser(path)[0].named_parameters()) for path in (trained, back))
    for name, p in before.items():
        assert torch.equal(after[name], p.bfloat16().float()), name
    states, _ = load_checkpoint(back)
    assert all(torch.equal(states["model"][name], x) for name, x in states["ema"].items())


def test_no_parcel_and_a_checkpoint_in_the_way_are_refused(trained, tmp_path):
    parcel = tmp_path / "long.zip"
    with pytest.raises(TrainingError, match="run `pack`"):
        unpack(parcel, BUILTIN_FOLDER, tmp_path / "long.pt")
    parcel.write_bytes(b"PK of an earlier kind")
    with pytest.raises(TrainingError, match="is no whole parcel"):
        unpack(parcel, BUILTIN_FOLDER, tmp_path / "long.pt")
    pack(trained, BUILTIN_FOLDER, parcel)
    with pytest.raises(TrainingError, match="remove it first"):
        unpack(parcel, BUILTIN_FOLDER, trained)


def test_a_parcel_that_counts_from_other_weights_is_refused(trained, tmp_path, monkeypatch):
    parcel = tmp_path / "long.zip"
    pack(trained, BUILTIN_FOLDER, parcel)
    other = load_shipped(BUILTIN_FOLDER)
    with torch.no_grad():
        other.transformer.proj_out.bias[0] += 0.01
    monkeypatch.setattr("svg2.training.parcel.load_shipped", lambda folder: other)
    with pytest.raises(TrainingError, match="counts from other weights"):
        unpack(parcel, BUILTIN_FOLDER, tmp_path / "long.pt")
    assert not (tmp_path / "long.pt").exists()


def test_every_number_of_bf16_has_a_place_in_their_order():
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    numbers = numbers[~numbers.isnan()]
    places = _ranks(numbers)
    assert len(set(places.tolist())) == len(numbers)
    in_order = numbers.float()[places.argsort()]
    assert torch.equal(in_order, in_order.sort().values)
    back = _weights(places).bfloat16()
    assert torch.equal(back.view(torch.int16), numbers.view(torch.int16))


def test_a_student_is_shipped_from_its_parcel_alone(trained, tmp_path):
    parcel, work, out = tmp_path / "distil.zip", tmp_path / "work", tmp_path / "out"
    pack(trained, BUILTIN_FOLDER, parcel)
    of_student = ["--weights", "distil", "--work", str(work)]
    main(["unpack", *of_student, "--parcel", str(parcel)])
    main(["ship", *of_student, "--out", str(out)])
    for part in ("vae", "text_encoder"):
        assert "_name_or_path" not in json.loads((out / part / "config.json").read_text())
    shipped = dict(load_shipped(out).transformer.named_parameters())
    for name, p in load_denoiser(trained)[0].transformer.named_parameters():
        assert torch.equal(shipped[name], p.bfloat16().float()), name
