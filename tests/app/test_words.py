"""What the page says, what lies on its shelf, and what its address may hold."""

from __future__ import annotations

import pytest

import app
from svg2.config import SVG2Config
from svg2.errors import RequestError
from svg2.models.finding import model_spec
from svg2.models.request import Request
from svg2.runs.dense_sparse import Progress
from svg2.runs.jobs import Studio, Wish


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
    ("progress", "runs", "percent"),
    [
        (Progress("dense", "denoise", 10, 20), ("dense", "svg2"), 25),
        (Progress("dense", "decode"), ("dense", "svg2"), 50),
        (Progress("svg2", "denoise", 10, 20), ("dense", "svg2"), 75),
        (Progress("svg2", "measure"), ("dense", "svg2"), 100),
        (Progress("svg2", "denoise", 10, 20), ("svg2",), 50),
    ],
)
def test_the_bar_covers_all_runs(progress: Progress, runs: tuple[str, ...], percent: int) -> None:
    done = app.share_done(progress, runs)
    assert f'aria-valuenow="{percent}"' in app.progress_bar(progress, done)


def test_the_bar_of_a_joint_model_never_runs_backwards() -> None:
    request = Request(prompt="a ball", model="hunyuanvideo")
    wish = Wish(request.resolve(model_spec("hunyuanvideo")), "svg2", SVG2Config())
    runs = app.runs_of(wish, with_dense=True)
    assert runs == ("stock", "dense", "svg2")
    assert app.runs_of(wish, with_dense=False) == ("svg2",)
    order = [
        Progress(run, stage, step, 2 if step or stage == "denoise" else 0)
        for run in runs
        for stage, step in [
            *(("warm up", 0), ("encode", 0), ("denoise", 0), ("denoise", 1), ("decode", 0)),
        ]
    ]
    shares = [app.share_done(progress, runs) for progress in order]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    names = [app.progress_parts(Progress(run, "encode"))[0] for run in runs]
    assert len(set(names)) == 3


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


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["--port", "70000"], "name a free port by --port"), (["--prot", "7861"], "unrecognized")],
)
def test_a_start_that_cannot_be_is_refused_in_a_sentence(argv, says, capsys):
    with pytest.raises(SystemExit) as refused:
        app.main(argv)
    assert says in f"{refused.value} {capsys.readouterr().err}"
