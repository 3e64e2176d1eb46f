"""What the address of the page may hold, and what a clip fills the form with."""

from __future__ import annotations

import numpy as np
import pytest

from svg2.config import SVG2Config
from svg2.errors import InputError
from svg2.models.request import Request
from svg2.runs.jobs import Studio
from svg2.runs.limits import Limits
from svg2.trace.clip_settings import tags_of
from svg2.trace.video import encode_mp4
from viz.page.address import CHOICES, SETTINGS, WRITE_ADDRESS, read_address, read_clip
from viz.page.layout import Controls


def test_the_address_gives_what_can_be_used(studio: Studio) -> None:
    query = {"seed": "7", "top_p": "0.5", "method": "magic", "width": "wide", "other": "x"}
    found, complaint = read_address(studio, query)
    assert found == {"seed": 7, "top_p": 0.5}
    assert complaint.startswith("In this page's address: Unknown method 'magic'")
    assert read_address(studio, {"width": "wide"})[1].endswith("width must be a number.")
    assert read_address(studio, {}) == ({}, "")


def test_an_address_of_an_earlier_version_is_read(studio: Studio) -> None:
    query = {
        "prompt": "a red ball",
        "method": "svg2-comp",
        "top_p": "0.85",
        "num_q_clusters": "5",
        "num_k_clusters": "11",
        "seed": "3",
        "num_inference_steps": "6",
        "num_frames": "5",
        "height": "32",
        "width": "64",
        "guidance_scale": "2.5",
    }
    found, complaint = read_address(studio, query)
    assert complaint == ""
    assert {name: str(value) for name, value in found.items()} == query


def test_limits_hold_for_all_of_an_address_together(studio: Studio) -> None:
    limited = Studio(studio.model, Limits(work=0.2))
    few = {"num_inference_steps": "20", "width": "32", "height": "32"}
    assert read_address(limited, few) == ({name: int(few[name]) for name in few}, "")
    many = {"num_inference_steps": "200", "width": "128", "height": "64"}
    found, complaint = read_address(limited, many)
    assert "times the work of a default video" in complaint
    assert found == {name: int(many[name]) for name in many}  # to be mended in the form
    assert read_address(limited, {}) == ({}, "")
    assert read_address(Studio("no such model"), {}) == ({}, "")


def test_every_setting_is_a_control_and_no_file_or_model_is_written() -> None:
    assert set(SETTINGS) | set(CHOICES) <= set(Controls.__dataclass_fields__)
    assert not any(f"'{name}'" in WRITE_ADDRESS for name in CHOICES)


def clip(studio: Studio, config: SVG2Config | None = None, **asked) -> bytes:
    """A clip as the page offers it for download."""
    request = Request(**{"prompt": "a red ball", "model": studio.model, "seed": 5, **asked})
    tags = tags_of(vars(request), config and config.to_dict())
    return encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 8, tags=tags)


def test_a_clip_fills_the_form(studio: Studio) -> None:
    config = studio.spec.config_of().replace(top_p=0.4, num_k_clusters=9)
    found, left_out = read_clip(studio, clip(studio, config, width=64, negative_prompt="blur"))
    assert left_out == []
    assert set(found) == {*SETTINGS, *CHOICES} - {"image"}
    assert (found["prompt"], found["negative_prompt"]) == ("a red ball", "blur")
    assert (found["seed"], found["width"]) == (5, 64)
    assert (found["method"], found["top_p"]) == (config.method, 0.4)
    run = studio.run(found)  # the form as it would be sent
    assert run.config == config
    assert run.request.num_frames == studio.spec.num_frames


def test_what_the_page_has_no_field_for_is_named(studio: Studio) -> None:
    config = studio.spec.config_of().replace(warmup_fraction=0.7, density=0.2)
    given = clip(studio, config, image="/somewhere/start.png")
    found, left_out = read_clip(studio, given)
    assert left_out == ["its image", "density 0.2", "warmup_fraction 0.7"]
    assert not {"warmup_fraction", "density", "image"} & set(found)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"width": 48 + 1}, "width must be a multiple"),
        ({"model": "/home/somebody/model"}, "choose one of its list"),
    ],
)
def test_a_clip_that_cannot_be_made_here_is_a_sentence(studio: Studio, asked, says) -> None:
    with pytest.raises(InputError, match=says):
        read_clip(studio, clip(studio, **asked))
