"""Requests: invalid ones are refused, valid ones get the model's defaults."""

import math

import pytest

from svg2.errors import RequestError
from svg2.models.finding import model_spec
from svg2.models.request import MAX_PROMPT_CHARS, Request

_WAN_1_3B = model_spec("wan2.1-1.3b")
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": " \n\t"},
        {"prompt": "x" * 10_000},
        {"prompt": "x" * (MAX_PROMPT_CHARS + 1)},
        {"prompt": "a \udcff ball"},
        {"prompt": "a \0 ball"},
        {"prompt": None},
        {"negative_prompt": "x" * 10_000},
        {"negative_prompt": None},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"seed": "0"},
        {"seed": True},
        *({name: value} for name in ("height", "width") for value in (0, -16, 10**9, NAN, "64")),
        *({"num_frames": value} for value in (0, -1, 10**9, 2.5, INF)),
        *({"num_inference_steps": value} for value in (0, -1, 10**6, NAN)),
        *({"guidance_scale": value} for value in (-1, 1000, NAN, INF, "4", True)),
        {"dtype": "fp64"},
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"device": "cuda:"},
        {"device": "cpu:1"},
    ],
)
def test_values_out_of_every_models_range_are_refused_in_one_sentence(fields):
    with pytest.raises(RequestError) as caught:
        Request(**({"prompt": "a red ball"} | fields))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    assert message.endswith(".")


@pytest.mark.parametrize(
    "fields",
    [
        {"height": 100},
        {"width": 24},
        {"num_frames": 16},
        {"height": 4096, "width": 4096, "num_frames": 81},
    ],
)
def test_sizes_that_the_model_does_not_support_are_refused(fields):
    with pytest.raises(RequestError):
        _WAN_1_3B.resolve(Request("a red ball", **fields))


def test_resolving_fills_the_models_defaults_and_keeps_what_was_asked():
    request = _WAN_1_3B.resolve(Request("a red ball", height=64.0, seed=3))
    assert (request.height, request.width, request.num_frames) == (64, 832, 81)
    assert (request.num_inference_steps, request.guidance_scale) == (50, 5.0)
    assert request.seed == 3
    assert _WAN_1_3B.resolve(request) == request
    assert request.to_dict()["prompt"] == "a red ball"


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, 2**63])
@pytest.mark.parametrize("name", ["seed", "height", "num_frames", "num_inference_steps"])
def test_huge_whole_numbers_are_refused_in_words(name, value):
    with pytest.raises(RequestError, match=f"{name} must be a whole number"):
        Request("a red ball", **{name: value})


def test_the_largest_seed_is_kept_to_the_last_digit():
    assert Request("a red ball", seed=2**63 - 1).seed == 2**63 - 1
