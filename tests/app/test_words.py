"""What the page says, what lies on its shelf, and what its address may hold."""

from __future__ import annotations

import pytest

import app
from svg2.config import SVG2Config
from svg2.generate import Progress
from svg2.jobs import Studio, Wish
from svg2.request import RequestError


def test_progress_says_stage_step_and_time_left() -> None:
    assert app.progress_parts(Progress("dense", "denoise", 3, 20, 17.4)) == (
        "Dense run",
        "step 3 of 20",
        "about 17 s left",
    )
    assert app.progress_parts(Progress("svg2", "decode")) == ("SVG2", "decoding frames", "")
    assert app.progress_parts(Progress("", "load"))[:2] == ("Model", "loading")
    assert app.progress_parts(Progress("dense", "denoise", 1, 9, 185))[2] == "about 3 min 5 s left"


@pytest.mark.parametrize(
    ("progress", "is_release", "percent"),
    [
        (Progress("dense", "denoise", 10, 20), False, 25),
        (Progress("dense", "decode"), False, 50),
        (Progress("svg2", "denoise", 10, 20), False, 75),
        (Progress("svg2", "measure"), False, 100),
        (Progress("svg2", "denoise", 10, 20), True, 50),
    ],
)
def test_the_bar_covers_both_runs(progress: Progress, is_release: bool, percent: int) -> None:
    wish = Wish(None, "svg2", SVG2Config())  # type: ignore[arg-type]
    done = app.share_done(progress, wish, with_dense=not is_release)
    assert f'aria-valuenow="{percent}"' in app.progress_bar(progress, done)


def test_what_people_type_is_escaped() -> None:
    assert "<b>" not in app.say("<b>no</b>", "warn")
    assert "<b>" not in app.grammar_note("<b>paint</b> a zebra")


def test_prompts_outside_the_grammar_are_named() -> None:
    assert all(app.grammar_note(prompt) == "" for prompt in app.KNOWN.examples)
    note = app.grammar_note("a zebra reading a newspaper")
    assert "knows only its own grammar" in note
    assert "zebra" in note


def test_outcome_tells_speed_and_fidelity() -> None:
    assert app.outcome({"speedup": 1.5, "psnr_db": 31.26}) == (
        "Done: 1.50× as fast as dense here, 31.3 dB against dense."
    )
    assert "identical" in app.outcome({"speedup": 1.0, "psnr_db": None})


def test_errors_name_no_place_on_this_machine() -> None:
    assert app.plain(RequestError(f"Missing from {app.ROOT}/assets/models.")) == (
        "Missing from assets/models."
    )


def test_the_address_gives_what_can_be_used(studio: Studio) -> None:
    query = {"seed": "7", "top_p": "0.5", "method": "magic", "width": "wide", "other": "x"}
    found, complaint = app.read_address(studio, query)
    assert found == {"seed": 7, "top_p": 0.5}
    assert complaint.startswith("In this page's address: Unknown method 'magic'")
    assert app.read_address(studio, {"width": "wide"})[1].endswith("width must be a number.")
    assert app.read_address(studio, {}) == ({}, "")
