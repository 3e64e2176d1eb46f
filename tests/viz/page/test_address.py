"""What the address of the page may hold."""

from __future__ import annotations

from svg2.runs.jobs import Studio
from svg2.runs.limits import Limits
from viz.page.address import CHOICES, SETTINGS, WRITE_ADDRESS, read_address
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
