"""Where in the model one looks, in a trace that records other heads in each layer."""

import dataclasses

import pytest

from tests.viz.test_state import click, state

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def uneven(trace):
    """Layer 1 has both heads recorded in its first step, later the second; layer 2 the first."""
    records = tuple(
        r
        for r in trace.records
        if r.head == 1 - r.layer or (r.layer == 0 and r.step == trace.records[0].step)
    )
    return dataclasses.replace(trace, records=records)


def heads_of(trace, run, step, layer):
    return sorted(r.head for r in trace.records if (r.run, r.step, r.layer) == (run, step, layer))


def test_the_menu_of_heads_is_that_of_the_layer(uneven, open_page):
    page = open_page(uneven, "#run=1", reduced_motion="reduce")
    steps = sorted({r.step for r in uneven.records if r.run == 0})
    for step in steps:
        for layer in (0, 1):
            page.get_by_label("Step", exact=True).select_option(label=str(step + 1))
            page.get_by_label("Layer", exact=True).select_option(label=str(layer + 1))
            options = page.get_by_label("Head", exact=True).locator("option:not([disabled])")
            wanted = heads_of(uneven, 0, step, layer)
            assert [int(o.get_attribute("value")) for o in options.all()] == wanted
            assert state(page)["head"] in wanted
            has_more = page.get_by_role("button", name="Next recorded head").is_enabled()
            assert has_more == (state(page)["head"] < wanted[-1])


def test_a_cell_without_a_record_names_the_nearest_and_opens_it(uneven, open_page):
    page = open_page(uneven, "#run=1", reduced_motion="reduce")
    cells = page.locator(".headmap canvas").first  # of the first head
    box = cells.bounding_box()
    cells.scroll_into_view_if_needed()
    cells.hover(position={"x": box["width"] * 0.98, "y": box["height"] * 0.1})
    last = max(r.step for r in uneven.records if r.run == 0)
    assert heads_of(uneven, 0, last, 0) == [1]
    told = page.locator(".mapbox .small", has_text="not recorded").inner_text()
    assert f"a click opens the nearest, step {last + 1}, layer 1, head 2" in told
    click(page, ".headmap canvas", 0.98, 0.1)
    assert {k: state(page)[k] for k in ("step", "layer", "head")} == {
        "step": last,
        "layer": 0,
        "head": 1,
    }


def test_arrow_keys_pass_from_layer_to_layer_through_heads_of_their_own(uneven, open_page):
    page = open_page(uneven, "#run=1", reduced_motion="reduce")
    first = min(r.step for r in uneven.records if r.run == 0)
    page.evaluate("(step) => explorer.select({ step, layer: 0, head: 1 })", first)
    board = page.locator(".headboard")
    board.press("ArrowDown")
    assert (state(page)["layer"], state(page)["head"]) == (1, 0)
    board.press("ArrowUp")
    assert state(page)["layer"] == 0
    assert state(page)["head"] == 0
    page.locator(".tiles").press("h")
    assert state(page)["head"] == 1


def test_a_run_and_a_layer_asked_from_outside_are_shown_at_the_nearest_recorded_head(
    uneven, open_page
):
    other = max(r.run for r in uneven.records)
    records = tuple(r for r in uneven.records if r.run != other or r.head == 0)
    thinner = dataclasses.replace(uneven, records=records)
    page = open_page(thinner, "#run=1")
    last = max(r.step for r in records)
    page.evaluate("(step) => explorer.select({ step, layer: 0 })", last)
    assert state(page)["head"] == 1
    page.evaluate("() => explorer.select({ layer: 1 })")
    assert (state(page)["layer"], state(page)["head"]) == (1, 0)
    page.evaluate("() => explorer.select({ layer: 0 })")
    page.evaluate("(run) => explorer.select({ run })", other)
    shown = state(page)
    assert shown["head"] in heads_of(thinner, other, shown["step"], shown["layer"])
