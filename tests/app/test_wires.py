"""The wires of the page, called as Gradio calls them, with no browser."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import app
from svg2.runs.jobs import Studio
from viz.shelf import Shelf


def wire(page, name: str) -> Callable:
    return next(block.fn for block in page.fns.values() if block.name == name)


def test_a_visitor_who_goes_away_leaves_no_run_behind(studio: Studio, shelf: Shelf) -> None:
    page = app.build_page(studio, shelf)
    visit = app.Visit(None, studio.model)
    visit.wish = studio.wish({"prompt": "a red ball", "num_inference_steps": 60})
    making = wire(page, "run_wish")(visit)
    next(making)
    assert visit.is_making_both
    making.close()  # as Gradio does where the connection is lost
    assert not visit.is_making_both
    assert visit.job is None


def test_cancel_says_that_a_step_is_still_to_end(studio: Studio, shelf: Shelf) -> None:
    page = app.build_page(studio, shelf)
    visit = app.Visit(next(iter(shelf.ready_made.values())), studio.model)
    visit.wish = studio.wish({"prompt": "a red ball", "num_inference_steps": 60})
    making = wire(page, "run_wish")(visit)
    next(making)
    said = {part.elem_id: value for part, value in wire(page, "stop")(visit).items()}
    assert "Stopping after this step." in said["status"]
    assert said["explorer"]["live"]["text"] == "Stopping after this step."
    assert said["cancel"]["interactive"] is False
    *_, last = making
    assert any("Cancelled" in str(value) for value in last.values())


def test_a_release_during_a_run_is_refused_and_leaves_the_runs_own_words(
    studio: Studio, shelf: Shelf
) -> None:
    page = app.build_page(studio, shelf)
    visit = app.Visit(next(iter(shelf.ready_made.values())), studio.model)
    visit.is_making_both = True
    event = SimpleNamespace(run=0, method="svg2", top_p=0.5, trace=visit.shown.key)
    said = {part.elem_id: value for part, value in wire(page, "released")(visit, event).items()}
    assert "A run is under way" in said["explorer"]["notice"]
    assert "status" not in said
    assert visit.release is None


def test_a_release_on_a_trace_that_another_has_just_replaced_asks_for_one_more(
    studio: Studio, shelf: Shelf
) -> None:
    page = app.build_page(studio, shelf)
    older, newer = list(shelf.ready_made.values())[:2]
    visit = app.Visit(newer, studio.model)
    event = SimpleNamespace(run=0, method="svg2", top_p=0.5, trace=older.key)
    said = {part.elem_id: value for part, value in wire(page, "released")(visit, event).items()}
    assert "let go of the slider again" in said["explorer"]["notice"]
    assert visit.release is None
    event.trace = newer.key
    wire(page, "released")(visit, event)
    assert visit.release.config.top_p == 0.5


def test_uploads_do_not_stay_for_good(studio: Studio, shelf: Shelf) -> None:
    look_each, keep = app.build_page(studio, shelf).delete_cache
    assert look_each <= 3600
    assert keep <= 24 * 3600
