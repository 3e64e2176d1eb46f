"""The tour: what it says is of the run on show, and its card covers nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.traces import make_synthetic_trace
from tests.viz.test_header import with_run
from viz import explorer_payload

pytestmark = pytest.mark.browser


def told(page) -> str:
    return page.locator(".tour [aria-live] p").inner_text()


def test_a_pinned_key_cluster_is_not_spoken_of_as_a_query_cluster(trace, open_page):
    page = open_page(trace, "#run=1&side=k&cluster=29&tour=3", reduced_motion="reduce")
    assert told(page) == "k-means groups tokens whose queries are alike, wherever they lie."
    page.evaluate("() => explorer.select({ side: 'q', cluster: 1 })")
    assert "Lit is query cluster 2 of layer 2: " in told(page)
    page.evaluate("() => explorer.select({ cluster: null })")
    assert "Lit is" not in told(page)


def mirrored(record):
    """The same clusters under other numbers: the last comes first."""
    last = len(record.P) - 1
    return replace(
        record,
        q_labels=(last - record.q_labels).astype(np.uint16),
        P=record.P[::-1].copy(),
        kept=record.kept[::-1].copy(),
        q_rgb=record.q_rgb[::-1].copy(),
    )


def test_each_run_has_a_cluster_of_its_own_in_the_tour(trace, open_page):
    records = tuple(mirrored(r) if r.run == 1 else r for r in trace.records)
    page = open_page(replace(trace, records=records), "#run=1", reduced_motion="reduce")
    chosen = []
    for run in (0, 1):
        page.locator(".runs button").nth(run).click()
        page.get_by_role("button", name="Take the tour").click()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        chosen.append(page.evaluate("() => explorer.selection().cluster"))
        page.keyboard.press("Escape")
    assert chosen[0] + chosen[1] == len(trace.records[0].P) - 1


def test_the_tour_shows_a_thing_and_no_strip_of_background(open_page):
    """A strip at the rim jumps from side to side; a blob goes its way through all frames."""
    grid = (9, 12, 12)
    small = make_synthetic_trace(grid=grid, num_q=3, num_k=5, steps=3, layers=1, heads=1)
    labels = np.zeros(grid, np.uint16)
    for t in range(grid[0]):
        labels[t, 4:, 0 if t < 3 else -1] = 1
        labels[t, 3:6, t // 2 + 2 : t // 2 + 5] = 2
    shown = replace(
        small, records=tuple(replace(r, q_labels=labels.ravel()) for r in small.records)
    )
    page = open_page(shown, "#run=1&tour=2", reduced_motion="reduce")
    page.get_by_role("button", name="Next", exact=True).click()
    assert page.evaluate("() => explorer.selection().cluster") == 2
    assert "81 tokens in 9 of 9 latent frames" in told(page)


def test_the_tour_says_what_was_measured(trace, open_page):
    page = open_page(trace, "#run=1&tour=1", fresh=True, reduced_motion="reduce")
    share = page.locator(".metric", has_text="Computed").locator("dd").first.inner_text()
    assert f"on the right {share} of them over the whole run" in told(page)
    whole = replace(trace.runs[0], result={**trace.runs[0].result, "density_run": 1.0})
    page.evaluate(
        "(payload) => explorer.load(payload)",
        explorer_payload(replace(trace, runs=(whole, *trace.runs[1:]))),
    )
    page.get_by_role("button", name="Take the tour").click()
    page.locator(".runs button").first.click()
    assert "on the right 100 % of them" in told(page)


def test_what_letting_go_does_is_said_as_it_is(trace, open_page):
    page = open_page(trace, "#run=1", reduced_motion="reduce")
    page.get_by_role("button", name="Take the tour").click()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "goes to the nearest run that was made" in told(page)  # no model stands behind a file


SPOKEN_OF = [
    *(".stage", ".tiles", ".tiles", ".tiles", ".board", ".board"),
    *(".timechart", "[data-view=tradeoff] .chart"),
]


@pytest.mark.parametrize("width", [390, 700, 1024, 1440])
def test_the_card_stands_above_what_it_speaks_of(width, trace, open_page):
    page = open_page(with_run(trace), "#run=1", width=width, reduced_motion="reduce")
    page.get_by_role("button", name="Take the tour").click()
    card = page.locator(".tour")
    for step, selector in enumerate(SPOKEN_OF):
        assert page.locator(".tour .small").inner_text() == f"Tour, {step + 1} of 8"
        box, shown = card.bounding_box(), page.locator(selector).first.bounding_box()
        assert -1 <= box["y"] < 400  # in sight
        assert box["y"] + box["height"] <= shown["y"] < 900
        bar = page.locator(".placebar").bounding_box()
        if width > 1000:  # there the bar stays on top
            assert bar["y"] + bar["height"] <= box["y"] + 1 or bar["y"] > box["y"]
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        page.keyboard.press("ArrowRight")
    assert card.is_hidden()


@pytest.mark.parametrize("leave", ["Escape", "Done"])
def test_the_tour_leaves_all_as_it_was(leave, trace, open_page):
    link = "#run=3&step=2&layer=2&frame=4&cluster=3&pair=2&side=k&top_p=0.5&sort=0&axis=compute"
    page = open_page(trace, link, reduced_motion="reduce")
    before = page.evaluate("() => explorer.selection()")
    page.get_by_role("button", name="Take the tour").click()
    page.mouse.move(0, 0)  # or a word may come under it, whose note Escape closes first
    for _ in range(7):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("() => explorer.selection()") != before
    if leave == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Done").click()
    assert page.evaluate("() => explorer.selection()") == before
    assert page.locator(".pointed").count() == 0


def test_the_tour_plays_the_sorting_itself(trace, open_page):
    page = open_page(trace, "#run=1", reduced_motion="no-preference")
    page.get_by_role("button", name="Take the tour").click()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("() => explorer.selection().sort < 1")
    page.wait_for_function("() => explorer.selection().sort === 1")
    assert "Watch the scattered pairs" in told(page)


def test_why_time_gains_less_is_a_step_of_its_own(trace, open_page):
    shown = with_run(trace, speedup=1.2, compute_density=0.4)
    page = open_page(shown, "#run=1&tour=7", fresh=True, reduced_motion="reduce")
    assert page.locator(".tour h3").inner_text() == "Why does time gain less than work?"
    assert "Attention is 70 % of the dense loop, and only that can shrink." in told(page)
    page = open_page(
        with_run(trace, stages={"dense_attention": None}), "#run=1&tour=7", reduced_motion="reduce"
    )
    assert told(page) == "Where the seconds of this run went was not measured."
