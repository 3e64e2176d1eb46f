"""What opens, what stays when something else can't, and what the page around says of a run."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from tests.viz.conftest import wait_for_clips
from viz import explorer_payload

pytestmark = pytest.mark.browser

LOAD = "(payload) => explorer.load(payload)"
ROOT = "document.getElementById('explorer').shadowRoot"


@pytest.fixture
def page(trace, open_page):
    return open_page(trace, "#run=1", reduced_motion="reduce")


@pytest.fixture
def own_page(trace, open_page):
    """A page that a test may leave as it likes."""
    return open_page(trace, "#run=1", fresh=True, reduced_motion="reduce")


def test_a_trace_that_cannot_be_opened_leaves_the_last_one_working(own_page, trace):
    page = own_page
    broken = copy.deepcopy(explorer_payload(trace))
    for record in broken["records"]:
        record["kept"]["dtype"] = "float64"
    assert page.evaluate(
        "(broken) => explorer.loadBase64(btoa(JSON.stringify(broken))).then((ok) => !ok)", broken
    )
    page.get_by_text("could not be opened. What was shown before stays.").wait_for()
    assert page.locator(".view").count() == 5
    head = page.evaluate("() => explorer.selection().head")
    page.locator(".tiles").press("h")
    assert page.evaluate("() => explorer.selection().head") != head
    page.locator(".runs button").nth(1).click()
    assert "top-p 0.7" in page.locator(".stage .sparse").inner_text()


def test_a_new_run_is_shown_where_it_put_another_out(own_page, trace):
    page = own_page
    newer = replace(trace.runs[1], config={**trace.runs[1].config, "top_p": 0.65})
    full = replace(trace, runs=(*trace.runs[1:], newer), records=())
    page.evaluate(LOAD, explorer_payload(full))
    assert page.evaluate("() => explorer.selection().run") == 2
    assert "top-p 0.65" in page.locator(".runs [aria-pressed=true]").inner_text()


def test_no_more_than_two_sparse_clips_stay_decoded(own_page, trace):
    page = own_page
    page.evaluate(
        """() => {
            window.letGo = 0;
            const close = ImageBitmap.prototype.close;
            ImageBitmap.prototype.close = function () { window.letGo += 1; close.call(this); };
        }"""
    )
    frames = len(trace.runs[0].psnr_frame)
    painted = f"""() => {{
        const canvas = {ROOT}.querySelector('.stage .sparse canvas');
        return canvas.getContext('2d').getImageData(20, 20, 1, 1).data[3] === 255;
    }}"""
    for run in (0, 1, 2):
        page.evaluate("(run) => explorer.select({ run })", run)
        wait_for_clips(page)
    assert page.evaluate("() => window.letGo") == frames
    page.evaluate("() => explorer.select({ run: 0 })")  # and comes back
    page.wait_for_function(painted)


def test_a_blink_that_a_link_opens_blinks(trace, open_page):
    page = open_page(trace, "#run=1&frame=1&compare=blink", reduced_motion="reduce")
    # Seen from inside the page: on a busy machine a look from outside can miss every other phase.
    seen = page.locator(".stage .dense figcaption").evaluate(
        """(caption) => new Promise((done) => {
            const seen = [];
            const look = () => {
                const text = caption.innerText;
                const name = ['SVG2 · top-p 0.9', 'Dense'].find((n) => text.includes(n)) ?? text;
                if (seen.at(-1) !== name) seen.push(name);
                if (seen.length === 3) done(seen);
            };
            const kinds = { childList: true, subtree: true, characterData: true };
            new MutationObserver(look).observe(caption, kinds);
            look();
        })"""
    )
    assert seen in (
        ["Dense", "SVG2 · top-p 0.9", "Dense"],
        ["SVG2 · top-p 0.9", "Dense", "SVG2 · top-p 0.9"],
    )
    label = page.locator(".stage .dense canvas").get_attribute("aria-label")
    assert label == "Dense clip and SVG2 · top-p 0.9 in turns"


def test_density_maps_follow_the_theme(page):
    paint = f"""() => {{
        const canvas = {ROOT}.querySelector('.densitymap');
        return Array.from(canvas.getContext('2d').getImageData(0, 0, 40, 40).data).join();
    }}"""
    page.wait_for_timeout(300)
    before = page.evaluate(paint)
    page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
    page.wait_for_timeout(300)
    assert page.evaluate(paint) != before


def receive(page, value: dict) -> None:
    page.evaluate("(value) => explorer.receive(value)", value)


def test_why_a_release_starts_no_run_is_said_beside_the_slider_and_taken_back(page):
    answer = page.locator(".masks .answer")
    running = {"live": {"text": "Dense run, step 3 of 20.", "done": 0.2, "stage": "denoise"}}
    receive(page, {"can_run": True, **running})
    receive(page, {"can_run": True, "notice": "A run is under way."})
    assert page.locator(".live", has_text="step 3 of 20").is_visible()  # and goes on
    assert answer.inner_text() == "A run is under way."
    receive(page, {"can_run": True, **running})  # as long as that run goes on
    assert answer.is_visible()
    receive(page, {"can_run": True})
    assert answer.is_hidden()


def test_a_preview_names_its_step_and_goes_with_it(trace, open_page):
    page = open_page(
        trace, fresh=True, bypass_csp=True
    )  # a file alone shows no pictures of a live run
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    live = {"text": "Dense run", "done": 0.2, "stage": "denoise", "step": 4, "num_steps": 9}
    figure = page.locator(".livefigure")
    receive(page, {"live": {**live, "preview": picture}})
    assert "after step 4, decoded alone" in figure.inner_text()
    receive(page, {"live": {**live, "step": 5}})
    assert "after step 4" in figure.inner_text()
    receive(page, {"live": {"text": "Loading", "done": 0.5, "stage": "encode", "step": 0}})
    assert figure.is_hidden()


def test_a_race_shows_both_sides_and_how_far_one_is_ahead(trace, open_page):
    page = open_page(trace, fresh=True, bypass_csp=True)
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="

    def side(name, step, seconds, **more):
        place = {"step": step, "num_steps": 9, "stage": f"step {step} of 9"}
        return {"name": name, "seconds": seconds, **place, **more}

    def race(dense, sparse):
        live = {"text": "Dense run", "done": 0.2, "stage": "denoise", "step": 3, "num_steps": 9}
        receive(page, {"live": {**live, "sides": [dense, sparse]}})

    sides, gap = page.locator(".liveside"), page.locator(".livegap")
    race(side("Dense run", 3, 9.0, preview=picture), side("SVG2", 2, 3.0))
    assert sides.nth(0).inner_text().split("\n") == ["Dense run", "step 3 of 9, 9.0 s"]
    assert sides.nth(0).locator("img").is_visible()
    assert sides.nth(1).locator("img").is_hidden()
    assert gap.is_hidden()
    bars = page.locator(".liveside .livebar i")
    filled = [bars.nth(i).evaluate("(bar) => parseFloat(bar.style.width)") for i in (0, 1)]
    assert filled == pytest.approx([100 * 3 / 9, 100 * 3 / 27], abs=0.1)  # of 27 s at this pace
    race(side("Dense run", 3, 9.0), side("SVG2", 3, 4.5))
    assert gap.inner_text() == "After step 3: 4.5 s ahead, 2.00× so far"
    assert sides.nth(0).locator("img").is_visible()  # until the next picture
    race(side("Dense run", 4, 12.0), side("SVG2", 3, 4.5))
    assert gap.inner_text().startswith("After step 3")
    race(side("Dense run", 4, 12.0), side("SVG2", 4, 13.0))
    assert gap.inner_text() == "After step 4: 1.0 s behind, 0.92× so far"
    receive(page, {})
    assert page.locator(".live").is_hidden()


@pytest.mark.parametrize("mode", ["wipe", "difference", "blink", "side"])
def test_the_one_canvas_is_named_for_what_it_shows(mode, page):
    page.evaluate("(compare) => explorer.select({ compare: 'side' })")
    page.evaluate("(compare) => explorer.select({ compare })", mode)
    label = page.locator(".stage .dense canvas").get_attribute("aria-label")
    assert (label == "Dense clip") == (mode == "side")
    assert ("SVG2 · top-p 0.9" in label) == (mode != "side")


def test_a_word_is_described_only_while_its_note_is_open(page):
    described = page.locator("[aria-describedby=glossary]")
    assert described.count() == 0
    page.locator(".view .term", has_text="top-p").first.focus()
    assert described.count() == 1
    page.locator(".view .term", has_text="mask").first.focus()
    assert described.all_inner_texts() == ["mask"]
    page.keyboard.press("Escape")
    assert described.count() == 0


def test_what_a_cluster_lights_is_chosen_without_losing_the_focus(page):
    page.evaluate("() => explorer.select({ side: 'q', cluster: 0, lit: 'attended' })")
    page.get_by_role("button", name="Its own tokens").press("Enter")
    assert page.evaluate("() => explorer.selection().lit") == "members"
    assert page.locator(".clusternote button:focus").inner_text() == "Its own tokens"


def test_the_page_reads_every_link_that_it_writes(page, trace, open_page):
    page.evaluate("() => explorer.select({ top_p: 0.02, wipe: 1 / 3 })")
    link = page.evaluate("() => explorer.link()")
    other = open_page(trace, "#" + link.split("#")[1], fresh=True, reduced_motion="reduce")
    assert other.evaluate("() => explorer.selection().top_p") == 0.02
    assert other.locator(".lab > .notice").is_hidden()
