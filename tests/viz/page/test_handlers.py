"""What each event of the page does, with no browser and no component."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from svg2.errors import Cancelled, ModelUnavailable, NotFinite, TooBusy, TraceError
from svg2.runs.jobs import Studio
from svg2.runs.progress import Progress
from svg2.trace.clip_settings import tags_of
from svg2.trace.file import trace_bytes
from svg2.trace.video import encode_mp4
from tests.large_traces import make_large_trace
from viz.page import handlers, words
from viz.page.address import CHOICES, SETTINGS
from viz.page.handlers import Page
from viz.page.open_traces import OpenTraces
from viz.page.visit import Visit


class Stub:
    """A runner whose runs report once and then end as it was told."""

    def __init__(self, ends_with: object) -> None:
        self.ends_with = ends_with
        self.is_cancelled = False
        self.started: list[tuple] = []

    def start(self, run, dense=None, policy=None) -> Stub:
        self.started.append((run, dense, policy))
        return self

    def cancel(self) -> None:
        self.is_cancelled = True

    def __iter__(self) -> Iterator[Progress]:
        yield Progress("dense", "denoise", 1, 4)

    def result(self):
        if isinstance(self.ends_with, Exception):
            raise self.ends_with
        return self.ends_with


@pytest.fixture
def page(studio: Studio, traces: OpenTraces) -> Page:
    return Page(studio, traces)


@pytest.fixture
def visit(studio: Studio, traces: OpenTraces) -> Visit:
    return Visit(next(iter(traces.ready_made.values())), studio.model)


def values(**given) -> list:
    """The form as its event sends it: what is left out is empty."""
    form = {"model": None, "preset": "published", "negative_prompt": "", **given}
    return [form.get(name) for name in (*SETTINGS, *CHOICES)]


def test_a_visitor_who_goes_away_leaves_no_run_behind(page: Page, studio: Studio) -> None:
    visit = Visit(None, studio.model)
    visit.pending = studio.run({"prompt": "a red ball", "num_inference_steps": 60})
    making = page.run_pending(visit)
    next(making)
    assert visit.is_comparing
    making.close()  # as Gradio does where the connection is lost
    assert not visit.is_comparing
    assert visit.execution is None


def test_a_closed_tab_cancels_its_run(page: Page, visit: Visit) -> None:
    tab = SimpleNamespace(session_hash="tab", query_params={"seed": "4", "top_p": "7"})
    update = page.arrive(visit, "", tab)
    assert update["seed"] == 4
    assert "Top-p must be a number" in update["status"]
    assert set(update) == {"seed", "status"}
    running = visit.execution = Stub(None)
    page.leave(SimpleNamespace(session_hash="another tab"))
    assert not running.is_cancelled
    page.leave(tab)
    assert running.is_cancelled
    page.leave(tab)  # a second unload finds nothing


def come(page: Page, visit: Visit, ticket: str, session: str) -> dict:
    return page.arrive(visit, ticket, SimpleNamespace(session_hash=session, query_params={}))


@pytest.mark.parametrize("leaves_first", [True, False])
def test_a_run_goes_on_while_a_phone_sleeps_and_is_shown_when_it_is_back(
    page: Page, studio: Studio, traces: OpenTraces, leaves_first: bool
) -> None:
    """Gradio loads the page again after a lost connection: in a new session, with its ticket."""
    visit = Visit(traces.ready_made["blue-cube"], studio.model)
    come(page, visit, "ticket-of-a-phone", "before")
    visit.pending = studio.run({"prompt": "a red ball", "num_inference_steps": 3})
    making = page.run_pending(visit)
    next(making)
    execution = visit.execution
    if leaves_first:
        page.leave(SimpleNamespace(session_hash="before"))
    making.close()
    assert not execution.is_cancelled
    other = Visit(None, studio.model)
    come(page, other, "ticket-of-another", "other")
    assert other.execution is None
    assert list(page.resume(other)) == [{}]

    back = Visit(traces.ready_made["red-ball"], studio.model)
    update = come(page, back, "ticket-of-a-phone", "after")
    assert update["explorer"]["value"]["src"] == "lab/blue-cube/payload"
    assert update["cancel"]["visible"] is True
    page.leave(SimpleNamespace(session_hash="before"))  # noticed late
    *_, last = page.resume(back)
    assert "Done:" in last["status"]
    assert back.open_trace.prompt == "a red ball"
    assert visit.execution is None
    assert back.execution is None
    assert not back.is_comparing


class Slow(Stub):
    """A run in the middle of a step: it reports once to whoever listens first."""

    def __iter__(self) -> Iterator[Progress]:
        for _ in self.started[:1]:
            self.started.clear()
            yield Progress("svg2-routed", "denoise", 3, 10)
        raise AssertionError("the next report is a long step away")


@pytest.mark.parametrize("is_release", [True, False])
def test_a_page_that_was_loaded_again_says_at_once_how_far_its_run_is(
    studio: Studio, traces: OpenTraces, visit: Visit, is_release: bool
) -> None:
    page = Page(studio, traces, Slow(None))
    come(page, visit, "ticket-of-a-tab", "before")
    run = studio.run({"prompt": "a red ball", "num_inference_steps": 10})
    if is_release:
        visit.pending_release = run
        making = page.run_release(visit)
    else:
        visit.pending = run
        making = page.run_pending(visit)
    before = next(making)
    making.close()
    back = Visit(None, studio.model)
    come(page, back, "ticket-of-a-tab", "after")
    resumed = page.resume(back)
    after = next(resumed)
    assert after["status"] == before["status"]
    assert "step 3 of 10" in after["status"]
    assert after["explorer"]["live"] == before["explorer"]["live"]
    assert after["explorer"]["live"]["release"] is is_release


def test_a_tab_that_does_not_come_back_has_its_run_cancelled(
    page: Page, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "GRACE_SECONDS", 0.05)
    come(page, visit, "ticket-of-a-phone", "tab")
    running = visit.execution = Stub(None)
    page.leave(SimpleNamespace(session_hash="tab"))
    assert not running.is_cancelled
    for _ in range(200):
        if running.is_cancelled:
            break
        threading.Event().wait(0.05)
    assert running.is_cancelled
    late = Visit(None, visit.model)
    come(page, late, "ticket-of-a-phone", "late")
    assert late.execution is None


def test_the_list_of_comparisons_names_what_is_open(
    page: Page, studio: Studio, visit: Visit
) -> None:
    for key in ("blue-cube", "red-ball"):
        assert page.choose_trace(visit, key)["ready"] == key
    assert page.choose_trace(visit, "gone")["ready"] == "red-ball"  # the open one stays
    visit.pending = studio.run({"prompt": "a red ball", "num_inference_steps": 2})
    *_, last = page.run_pending(visit)
    assert last["ready"] is None  # a run of one's own is not in the list


@pytest.mark.parametrize("ticket", ["", None, 7, "short", "x" * 500, ["ticket-of-a-phone"]])
def test_without_a_ticket_a_run_ends_with_its_tab(page: Page, visit: Visit, ticket) -> None:
    come(page, visit, ticket, "tab")
    running = visit.execution = Stub(None)
    page.leave(SimpleNamespace(session_hash="tab"))
    assert running.is_cancelled


def test_cancel_says_that_a_layer_is_still_to_end(
    page: Page, studio: Studio, visit: Visit
) -> None:
    visit.pending = studio.run({"prompt": "a red ball", "num_inference_steps": 60})
    making = page.run_pending(visit)
    next(making)
    said = page.stop(visit)
    assert "Stopping after this layer." in said["status"]
    assert said["explorer"]["live"]["text"] == "Stopping after this layer."
    assert said["cancel"]["interactive"] is False
    *_, last = making
    assert "Cancelled. What was shown before stays." in last["status"]


def test_a_release_during_a_run_is_refused_and_leaves_the_runs_own_words(
    page: Page, visit: Visit
) -> None:
    visit.is_comparing = True
    event = SimpleNamespace(run=0, method="svg2", top_p=0.5, trace=visit.open_trace.key)
    said = page.release_budget(visit, event)
    assert "A run is under way" in said["explorer"]["notice"]
    assert "status" not in said
    assert visit.pending_release is None


def test_a_release_on_a_trace_that_another_has_just_replaced_asks_for_one_more(
    page: Page, studio: Studio, traces: OpenTraces
) -> None:
    older, newer = list(traces.ready_made.values())[:2]
    visit = Visit(newer, studio.model)
    event = SimpleNamespace(run=0, method="svg2", top_p=0.5, trace=older.key)
    said = page.release_budget(visit, event)
    assert "measure the budget there" in said["explorer"]["notice"]
    assert visit.pending_release is None
    event.trace = newer.key
    page.release_budget(visit, event)
    assert visit.pending_release.config.top_p == 0.5


@pytest.mark.parametrize("again", [True, False])
def test_a_disturbed_run_is_made_again_with_its_dense_side(
    page: Page, studio: Studio, traces: OpenTraces, again: bool
) -> None:
    visit = Visit(list(traces.ready_made.values())[1], studio.model)
    event = SimpleNamespace(
        run=0, method="svg2", top_p=0.5, trace=visit.open_trace.key, again=again
    )
    page.release_budget(visit, event)
    run = visit.pending_release
    own = visit.open_trace.trace.runs[0].config["top_p"]
    assert run.config.top_p == (own if again else 0.5)
    visit.dense = SimpleNamespace(request=run.request)
    page.runner = Stub(TraceError("stopped here"))
    list(page.run_release(visit))
    ((_, dense, _),) = page.runner.started
    assert dense is (None if again else visit.dense)


def test_a_whole_run_takes_the_place_of_a_release(page: Page, visit: Visit) -> None:
    event = SimpleNamespace(run=0, method="svg2", top_p=0.5, trace=visit.open_trace.key)
    page.release_budget(visit, event)
    releasing = visit.execution = Stub(None)
    said = page.prepare(visit, *values(prompt="a zebra", method="svg2-comp"))
    assert releasing.is_cancelled
    assert visit.pending_release is None
    assert visit.pending.method.name == "svg2-comp"
    assert "Waiting for its turn." in said["status"]
    assert "grammar" not in said["note"]  # said of the built-in model alone
    assert "Gain or loss" in said["note"]
    assert list(page.run_release(visit)) == [{}]  # what was dropped runs no more


def test_a_prompt_outside_the_grammar_is_said_while_it_is_typed(page: Page) -> None:
    assert "New words to it: zebra" in page.hint("builtin", "a zebra")["note"]
    assert page.hint("builtin", words.KNOWN.examples[0]) == {"note": ""}
    assert page.hint("builtin", "") == {"note": ""}
    assert page.hint("wan2.1-1.3b", "a zebra") == {"note": ""}


def test_a_bad_form_changes_nothing_but_the_message(page: Page, visit: Visit) -> None:
    running = visit.execution = Stub(None)
    said = page.prepare(visit, *values(prompt="a ball", top_p=0))
    assert set(said) == {"status"}
    assert "Top-p must be a number above 0" in said["status"]
    assert visit.pending is None
    assert not running.is_cancelled


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("of an allocator"), "The run failed. What was shown before stays."),
        (KeyError("who knows"), "The run failed. What was shown before stays."),
        (OSError(errno.ENOSPC, "who knows"), "the disk of this server is full"),
        (OSError(errno.EACCES, "who knows"), "The run failed. What was shown before stays."),
        (TooBusy("16 runs wait here already."), "16 runs wait here already."),
        (ModelUnavailable("There is no such GPU here."), "There is no such GPU here."),
        (NotFinite("The latents became infinite."), "The latents became infinite."),
        (Cancelled(), "Cancelled. What was shown before stays."),
    ],
)
def test_whatever_ends_a_run_is_one_sentence_and_nothing_is_lost(
    studio: Studio, traces: OpenTraces, visit: Visit, error: Exception, sentence: str
) -> None:
    page = Page(studio, traces, Stub(error))
    visit.pending = studio.run({"prompt": "a red ball"})
    before = visit.open_trace
    *_, last = page.run_pending(visit)
    assert last["status"].count("<p") == 1
    assert sentence in last["status"]
    assert "who knows" not in last["status"]
    assert last["generate"]["interactive"] is True
    assert last["cancel"]["visible"] is False
    assert visit.open_trace is before
    assert last["explorer"]["value"] == visit.view()
    assert not visit.is_comparing


def test_a_result_that_cannot_be_shown_is_one_sentence_and_nothing_is_lost(
    studio: Studio, traces: OpenTraces, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args) -> None:
        raise TraceError("The trace has more than the 1000 frames that the page can show.")

    monkeypatch.setattr(Visit, "add", refuse)
    page = Page(studio, traces, Stub(SimpleNamespace(result={}, dense=None)))
    visit.pending = studio.run({"prompt": "a red ball"})
    *_, last = page.run_pending(visit)
    assert "more than the 1000 frames" in last["status"]
    assert last["generate"]["interactive"] is True
    assert not visit.is_comparing


def test_a_cancelled_run_keeps_its_dense_side_for_the_next(
    studio: Studio, traces: OpenTraces, visit: Visit
) -> None:
    run = studio.run({"prompt": "a red ball"})
    dense = SimpleNamespace(request=run.request)
    stub = Stub(Cancelled(dense))
    page = Page(studio, traces, stub)
    for _ in range(2):
        visit.pending = run
        *_, last = page.run_pending(visit)
        assert "The dense run is done and kept" in last["status"]
    assert [given for _, given, _ in stub.started] == [None, dense]


def test_a_broken_upload_leaves_what_is_open(page: Page, visit: Visit) -> None:
    before = visit.open_trace
    for data in (None, b"", b"no trace", trace_bytes(before.trace)[:-200]):
        said = page.receive_trace(visit, data)
        assert set(said) == {"status"}
        assert "The file is no trace" in said["status"]
    assert visit.open_trace is before
    said = page.receive_trace(visit, trace_bytes(before.trace))
    assert visit.open_trace.mode == "upload"
    assert visit.open_trace.key in said["links"]


def test_an_uploaded_clip_fills_the_form_and_leaves_what_is_open(page: Page, visit: Visit) -> None:
    before = visit.open_trace
    made = encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 8)
    said = page.receive_trace(visit, made)  # of another program
    assert set(said) == {"status"}
    assert "does not say what it was made with" in said["status"]
    asked = {"prompt": "a blue cube", "model": page.studio.model, "seed": 4}
    told = encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 8, tags=tags_of(asked))
    said = page.receive_trace(visit, told)
    assert (said["prompt"], said["seed"]) == ("a blue cube", 4)
    assert "as it was for this clip" in said["status"]
    assert visit.open_trace is before


def test_a_key_that_is_not_open_changes_nothing(page: Page, visit: Visit) -> None:
    before = visit.open_trace
    for key in ("nobody", None, ["red-ball"]):
        assert "prompt" not in page.choose_trace(visit, key)
        assert visit.open_trace is before
    update = page.follow_link(visit, SimpleNamespace(trace="blue-cube"))
    assert update["prompt"] == "a blue cube bouncing"
    assert update["ready"] == "blue-cube"


def test_another_model_brings_its_settings_and_leaves_the_seed(page: Page) -> None:
    update = page.pick_model("wan2.1-1.3b", "published")
    assert (update["width"], update["height"], update["num_frames"]) == (832, 480, 81)
    assert update["image"]["visible"] is False
    assert "seed" not in update
    assert page.pick_model("wan2.1-i2v-480p", "fast")["image"]["visible"] is True
    said = page.pick_model("/etc", "published")
    assert set(said) == {"about_model"}
    assert "no model" in said["about_model"]


@pytest.mark.parametrize(
    ("size", "shown"), [((300, 100), True), ((100, 300), True), ((192, 192), False)]
)
def test_how_the_start_image_is_cut_is_shown(page: Page, tmp_path, size, shown) -> None:
    path = str(tmp_path / "start.png")
    Image.new("RGB", size).save(path)
    update = page.show_cut(path, 192.0, 192.0)["image_cut"]
    assert ("are cut off" in update, "data:image/png" in update) == (shown, shown)


@pytest.mark.parametrize("form", [(None, 192, 192), ("a.png", None, 192), ("a.png", 192, 0)])
def test_an_unfinished_form_shows_no_cut(page: Page, form) -> None:
    assert page.show_cut(*form) == {"image_cut": ""}


def test_a_file_that_is_no_image_is_one_sentence(page: Page, tmp_path) -> None:
    path = tmp_path / "start.png"
    path.write_text("no image")
    assert "is not an image" in page.show_cut(str(path), 192, 192)["image_cut"]


def test_a_page_that_goes_takes_its_trace_along(
    page: Page, visit: Visit, traces: OpenTraces
) -> None:
    tab = SimpleNamespace(session_hash="tab", query_params={})
    page.arrive(visit, "", tab)
    page.receive_trace(visit, trace_bytes(visit.open_trace.trace))
    key = visit.open_trace.key
    assert traces.get(key) is not None
    freed: list[bool] = []
    traces.freed = lambda: freed.append(traces.get(key) is None)
    page.leave(tab)
    traces.freed = lambda: None
    assert freed == [True]
    event = SimpleNamespace(run=0, method="svg2", top_p=0.5, trace=key)
    said = page.release_budget(visit, event)  # of a page that lives on without its connection
    assert set(said) == {"status"}
    assert "no longer open" in said["status"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda: trace_bytes(make_large_trace(6000, 6000)), "16 million pairs"),
        (lambda: trace_bytes(make_large_trace(8, 8, (2, 1, 1024))), "at most 524288 are shown"),
    ],
)
def test_an_upload_that_would_take_too_much_is_one_sentence(
    page: Page, visit: Visit, data, sentence: str
) -> None:
    before = visit.open_trace
    said = page.receive_trace(visit, data())
    assert sentence in said["status"]
    assert said["status"].count("<p") == 1
    assert visit.open_trace is before
