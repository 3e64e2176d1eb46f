"""What the page says, what lies on its shelf, and what its address may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

import app
from svg2.config import SVG2Config
from svg2.generate import Progress
from svg2.jobs import Studio, Wish
from svg2.request import RequestError
from svg2.trace import save_trace
from tests.traces import make_synthetic_trace


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
    assert f'aria-valuenow="{percent}"' in app.progress_bar(progress, wish, is_release)


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


def test_the_shelf_drops_the_longest_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_SHELVED", 2)
    trace = make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3, layers=1, heads=1)
    shelf = app.Shelf()
    first, second = shelf.put(trace, "upload"), shelf.put(trace, "upload")
    assert shelf.get(first.key) is first
    third = shelf.put(trace, "upload")
    assert shelf.get(second.key) is None
    assert shelf.get(first.key) is first
    assert shelf.get(third.key) is third


def test_a_run_taken_out_leaves_the_others_whole() -> None:
    trace = make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3, layers=1, heads=1)
    left = app.without_run(trace, 1)
    assert [run.method for run in left.runs] == ["svg2", "svg2-comp"]
    assert {record.run for record in left.records} == {0, 1}
    kept = [r.P.tobytes() for r in trace.records if r.run != 1]
    assert [r.P.tobytes() for r in left.records] == kept
    point = app.point_of(trace, 1)
    assert point["top_p"] == 0.7
    assert point["psnr_db"] == trace.runs[1].result["psnr_db"]


def test_a_broken_ready_made_trace_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trace = make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3, layers=1, heads=1)
    save_trace(trace, tmp_path / "b.npz")
    (tmp_path / "a.npz").write_bytes(b"not a trace")
    assert [shown.title for shown in app.read_traces(tmp_path)] == [
        f"{trace.request['prompt']} (svg2, svg2-comp)"
    ]
    assert "can't be read" in caplog.text


def test_the_address_gives_what_can_be_used(studio: Studio) -> None:
    query = {"seed": "7", "top_p": "0.5", "method": "magic", "width": "wide", "other": "x"}
    found, complaint = app.read_address(studio, query)
    assert found == {"seed": 7, "top_p": 0.5}
    assert complaint.startswith("In this page's address: Unknown method 'magic'")
    assert app.read_address(studio, {"width": "wide"})[1].endswith("width must be a number.")
    assert app.read_address(studio, {}) == ({}, "")
