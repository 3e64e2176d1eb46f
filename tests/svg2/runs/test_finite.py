"""Values that are infinite or NaN end a run in a sentence, and write nothing."""

import copy
import math
import re

import pytest
import torch

from svg2 import cli
from svg2.errors import NotFinite
from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs import progress
from svg2.runs.compare import compare
from svg2.runs.dense_sparse import generate_sparse
from svg2.runs.progress import Watch
from svg2.runs.run import Run

BROKEN_WEIGHTS = {
    "last layer": ("transformer.proj_out.weight", math.inf, "latents"),
    "a bias": ("transformer.proj_out.bias", math.nan, "latents"),
    "keys": ("transformer.blocks.1.attn1.to_k.weight", math.inf, "latents"),
    "values": ("transformer.blocks.2.attn1.to_v.weight", -math.inf, "latents"),
    "prompt": ("text_encoder.encoder.final_layer_norm.weight", math.nan, "latents"),
    "first layer of the VAE": ("vae.decoder.conv_in.weight", math.nan, "frames"),
    "last layer of the VAE": ("vae.decoder.conv_out.bias", math.inf, "frames"),  # clamped to white
    "last layer of the VAE, below": ("vae.decoder.conv_out.bias", -math.inf, "frames"),
}


@pytest.fixture(scope="module")
def loaded(model):
    return load_pipeline(model_spec(model), "fp32", "cpu")


@pytest.fixture
def pipe(loaded):
    return copy.deepcopy(loaded)


def run_of(model, **changes):
    return Run.of(Request("a red ball", model=model, device="cpu", **changes))


def break_weight(pipe, name, value):
    part, _, weight = name.partition(".")
    with torch.no_grad():
        dict(getattr(pipe, part).named_parameters())[weight].view(-1)[0] = value


def refused(*arguments, **names):
    """The message of a run that is refused."""
    with pytest.raises(NotFinite) as caught:
        compare(*arguments, **names)
    return str(caught.value)


@pytest.mark.parametrize(("name", "value", "what"), BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS)
def test_a_broken_weight_stops_the_dense_run(model, pipe, name, value, what):
    break_weight(pipe, name, value)
    seen = []
    message = refused(run_of(model), pipe, watch=Watch(seen.append, preview=True))
    assert "fp32" in message
    assert "weights anew" in message
    if what == "latents":
        assert message.startswith("The latents became infinite or not a number in step 1 of the")
        assert {(p.run, p.step) for p in seen if p.step} == {("dense", 1)}
        assert "decode" not in {p.stage for p in seen}
    else:
        assert message.startswith("The frames became infinite or not a number")


VALUES = (math.nan, math.inf, -math.inf)
STEPS = (("dense", 3), ("svg2", 2), ("svg2", 4))


@pytest.mark.parametrize(
    ("side", "at", "value"),
    [
        pytest.param(*step, value, marks=() if i == j else pytest.mark.nightly)
        for i, step in enumerate(STEPS)
        for j, value in enumerate(VALUES)
    ],
)
def test_the_first_step_that_is_not_finite_is_named(model, pipe, side, at, value, monkeypatch):
    monkeypatch.setattr(progress, "GLIMPSE_SECONDS", 0.0)
    seen = []

    def overflow(module, inputs, out):
        is_there = bool(seen) and (seen[-1].run, seen[-1].step) == (side, at - 1)
        return torch.full_like(out, value) if is_there and seen[-1].stage == "denoise" else out

    hook = pipe.transformer.proj_out.register_forward_hook(overflow)
    processor = pipe.transformer.blocks[0].attn1.processor
    message = refused(run_of(model), pipe, watch=Watch(seen.append, preview=True))
    assert f"in step {at} of the {side} run, which computes in fp32" in message
    assert (seen[-1].run, seen[-1].step) == (side, at), "no step after it"
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.vae.decoder._forward_hooks
    assert pipe.transformer.blocks[0].attn1.processor is processor
    hook.remove()
    assert compare(run_of(model), pipe).result["density"] > 0, "the pipeline is as it was"


@pytest.mark.parametrize(
    ("dtype", "scale", "advice"),
    [
        ("fp16", 1e6, "choose the precision bf16 or fp32"),
        ("bf16", 1e38, "choose the precision fp32"),
    ],
)
def test_an_overflow_in_a_narrow_precision_names_wider_ones(model, dtype, scale, advice):
    pipe = load_pipeline(model_spec(model), dtype, "cpu")
    hook = pipe.transformer.proj_out.register_forward_hook(lambda *a: a[2] * scale * scale)
    message = refused(run_of(model, dtype=dtype), pipe)
    hook.remove()
    assert f"computes in {dtype}" in message
    assert advice in message


def test_the_sparse_side_alone_is_checked_too(model, pipe):
    break_weight(pipe, "transformer.proj_out.bias", math.nan)
    with pytest.raises(NotFinite, match="step 1 of the svg2 run"):
        generate_sparse(pipe, run_of(model))


@pytest.mark.parametrize("name", ["transformer.proj_out.weight", "vae.decoder.conv_out.bias"])
def test_the_command_line_ends_in_one_sentence_without_files(
    model, pipe, name, tmp_path, monkeypatch, capsys
):
    break_weight(pipe, name, math.inf)
    monkeypatch.setattr("svg2.runs.call.load_pipeline", lambda *_: pipe)
    commands = {
        "compare": ["--top-p", "0.9"],
        "sweep": ["--top-p", "0.5", "--methods", "svg2"],
    }
    for command, more in commands.items():
        asked = [command, "--model", model, "--prompt", "a red ball", "--out", str(tmp_path)]
        assert cli.main([*asked, *more]) == 1
        printed = capsys.readouterr()
        assert re.search(r"^svg2: The (latents|frames) became .*\.$", printed.err, re.MULTILINE)
        assert printed.out == ""
        assert "Traceback" not in printed.err
    assert not any(tmp_path.iterdir())
