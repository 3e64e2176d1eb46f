"""What the page says."""

from __future__ import annotations

import numpy as np
import pytest

from svg2.errors import RequestError
from svg2.method.selection import METHODS
from svg2.models.request import Request
from svg2.runs.jobs import Studio
from svg2.runs.progress import Progress
from svg2.runs.run import Run
from tests.traces import make_synthetic_trace
from viz.page import words
from viz.page.open_traces import READY_MADE, OpenTrace


def test_progress_says_stage_step_and_time_left() -> None:
    assert words.progress_parts(Progress("dense", "denoise", 3, 20, 17.4)) == (
        "Dense run",
        "step 3 of 20",
        "about 17 s left",
    )
    assert words.progress_parts(Progress("svg2", "decode")) == ("SVG2", "decoding frames", "")
    assert words.progress_parts(Progress("", "load"))[:2] == ("Model", "loading")
    late = Progress("dense", "denoise", 1, 9, 185)
    assert words.progress_parts(late)[2] == "about 3 min 5 s left"


def test_every_method_is_named_by_its_title_in_progress() -> None:
    assert words.progress_parts(Progress("svg2-comp", "decode"))[0] == "SVG2 + compensation"
    for name, method in METHODS.items():
        assert words.progress_parts(Progress(name, "decode"))[0] == method.title


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
    done = words.share_done(progress, runs)
    assert f'aria-valuenow="{percent}"' in words.progress_bar(progress, done)


def test_the_bar_of_a_joint_model_never_runs_backwards() -> None:
    run = Run.of(Request(prompt="a ball", model="hunyuanvideo"))
    runs = words.runs_of(run, with_dense=True)
    assert runs == ("stock", "dense", "svg2")
    assert words.runs_of(run, with_dense=False) == ("svg2",)
    order = [
        Progress(name, stage, step, 2 if step or stage == "denoise" else 0)
        for name in runs
        for stage, step in [
            *(("warm up", 0), ("encode", 0), ("denoise", 0), ("denoise", 1), ("decode", 0)),
        ]
    ]
    shares = [words.share_done(progress, runs) for progress in order]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    names = [words.progress_parts(Progress(name, "encode"))[0] for name in runs]
    assert len(set(names)) == 3


def test_what_people_type_is_escaped() -> None:
    assert "<b>" not in words.say("<b>no</b>", "warn")
    assert "<b>" not in words.grammar_note("<b>paint</b> a zebra")


def test_prompts_outside_the_grammar_are_named() -> None:
    assert all(words.grammar_note(prompt) == "" for prompt in words.KNOWN.examples)
    note = words.grammar_note("a zebra reading a newspaper")
    assert "knows only its own grammar" in note
    assert "zebra" in note


def test_outcome_tells_speed_and_fidelity() -> None:
    assert words.outcome({"speedup": 1.5, "psnr_db": 31.26}) == (
        "Done: 1.50× as fast as dense here, 31.3 dB against dense."
    )
    assert "identical" in words.outcome({"speedup": 1.0, "psnr_db": None})


def test_errors_name_no_place_on_this_machine() -> None:
    assert words.plain(RequestError(f"Missing from {words.ROOT}/assets/models.")) == (
        "Missing from assets/models."
    )
    assert (words.ROOT / "app.py").is_file()


def test_a_model_that_went_away_is_listed_with_what_is_missing(tmp_path) -> None:
    studio = Studio(str(tmp_path / "gone"))
    assert words.model_title(studio, studio.model) == studio.model
    assert "Unknown model" in words.model_list(studio)


def test_models_that_cannot_run_here_are_one_folded_line() -> None:
    studio = Studio("builtin")
    shown, _, hidden = words.model_list(studio).partition("<details>")
    assert shown.count("runs here") == shown.count("<li>") >= 1
    assert "runs here" not in hidden
    others = hidden.count("<li>")
    assert shown.count("<li>") + others == len(list(studio.models))
    if others:  # on a machine with a large GPU all may run
        assert f"<summary>{others} model{'s' if others > 1 else ''} of the menu can't" in hidden


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"speedup": 0.8621}, "Done: 16% slower than dense here, identical to dense."),
        ({"speedup": 1.0}, "Done: 1.00× as fast as dense here, identical to dense."),
        (
            {"speedup": 2.4, "is_disturbed": True},
            "Done: timing disturbed, so no speedup is given, identical to dense.",
        ),
    ],
)
def test_outcome_says_slower_in_words_and_no_disturbed_number(result, said) -> None:
    assert words.outcome({"psnr_db": None, **result}) == said


def test_a_race_shows_both_sides_with_their_own_clocks() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    sparse = Progress("svg2", "denoise", 2, 4, seconds=3.0, density=(1.0, 0.3))
    dense = Progress("dense", "denoise", 3, 4, 9.0, picture, (1.0,) * 3, 6.0, beside=sparse)
    live = words.live_of(dense, 0.5)
    names = [(side["name"], side["step"], side["seconds"]) for side in live["sides"]]
    assert names == [("Dense run", 3, 6.0), ("SVG2", 2, 3.0)]
    assert "preview" in live["sides"][0]
    assert live["density"] == [1.0, 0.3]  # of the sparse side, whoever reports
    assert words.share_done(dense, ("dense", "svg2")) == (3 / 4 + 2 / 4) / 2
    assert words.share_done(dense, ("stock", "dense", "svg2")) == (1 + 3 / 4 + 2 / 4) / 3


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("num_frames must be odd, not 4.", "Frames must be odd, not 4."),
        (
            "num_q_clusters is 500, and this video has only 96 tokens.",
            "Query clusters is 500, and this video has only 96 tokens.",
        ),
        (
            "This needs fewer num_frames. top_p may stay.",
            "This needs fewer frames. Top-p may stay.",
        ),
        ("'my_num_frames' is unknown.", "'my_num_frames' is unknown."),
    ],
)
def test_fields_are_named_as_on_the_page(raised, said) -> None:
    assert words.plain(RequestError(raised)) == said


@pytest.mark.parametrize(("psnr_db", "warned"), [(19.0, True), (30.0, False)])
def test_a_run_is_told_what_its_budget_did_to_ready_made_clips(
    studio: Studio, psnr_db: float, warned: bool
) -> None:
    run = studio.run({"prompt": "a red ball", "top_p": 0.5})
    trace = make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3)
    made = {"model": studio.model, "method": run.config.method, "psnr_db": psnr_db}
    trace.runs[0].result.update(made | {"config": {"top_p": 0.6, "density": None}})
    note = words.before_run(run, [OpenTrace(trace, READY_MADE, "one")])
    assert ("At top-p 0.6" in note and 'role="alert"' in note) == warned
    assert "not measured" in note


def test_what_to_distrust_stands_behind_the_outcome() -> None:
    result = {"speedup": 1.5, "psnr_db": 19.0, "warnings": ["Key clusters collapsed."]}
    assert words.outcome(result).endswith("19.0 dB against dense. Key clusters collapsed.")
