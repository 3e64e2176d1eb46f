"""Methods on the page: known ones, unknown ones, and those whose rule it cannot repeat."""

from __future__ import annotations

import numpy as np
import pytest

from svg2.trace.records import selection_at
from tests.viz.test_explorer import show
from viz import explorer_payload

pytestmark = pytest.mark.browser

OTHER_BUDGET = 0.5


def with_methods(trace, **rules) -> dict:
    """The trace's payload with the registry of these methods alone, each with its rule."""
    payload = explorer_payload(trace)
    known = {method["name"]: method for method in payload["methods"]}
    payload["methods"] = [{**known[name], "rule": rule} for name, rule in rules.items()]
    return payload


def record_of(trace, run: int):
    return next(r for r in trace.records if (r.run, r.step, r.layer, r.head) == (run, 5, 1, 0))


def test_a_rule_that_the_browser_cannot_repeat_leaves_the_measured_mask(trace, open_page):
    methods = {"svg2": None, "svg2-comp": "top_p"}
    page = open_page(with_methods(trace, **methods), "#run=1", reduced_motion="reduce")
    record = record_of(trace, 0)
    measured = show(page, record, 0.9)
    notice = page.locator(".placebar .notice")
    assert notice.is_hidden()
    curve = page.locator(".curvebox .line").first
    assert not curve.get_attribute("d")

    page.locator(".readout dd").nth(3).filter(has_text="%").wait_for()  # counted call by call
    overall = page.locator(".readout dd").nth(3).inner_text()
    shown = show(page, record, OTHER_BUDGET)
    np.testing.assert_array_equal(np.reshape(shown["kept"], record.kept.shape), record.kept)
    assert (shown["density"], shown["measured"]) == (measured["density"], False)
    assert notice.inner_text() == (
        "This page cannot repeat the selection of SVG2 at top-p 0.5: the mask is the measured one,"
        " of top-p 0.9."
    )
    assert page.locator(".badge").inner_text() == "not run"
    assert page.locator(".chart .whatif").count() == 0
    assert page.locator(".readout dd").nth(3).inner_text() == overall

    page.locator(".runs button").nth(2).click()  # of a method that can be redone
    assert notice.is_hidden()
    other = record_of(trace, 2)
    shown = show(page, other, OTHER_BUDGET)
    kept = selection_at(other, OTHER_BUDGET, 0.1)
    np.testing.assert_array_equal(np.reshape(shown["kept"], kept.shape), kept)
    assert notice.is_hidden()
    assert page.locator(".badge").inner_text() == "what-if"
    assert curve.get_attribute("d")


def test_a_method_that_the_registry_lacks_goes_by_its_name_and_is_not_redone(trace, open_page):
    page = open_page(with_methods(trace, svg2="top_p"), "#run=3", reduced_motion="reduce")
    names = page.locator(".runs button").all_inner_texts()
    assert names == ["SVG2 · top-p 0.9", "SVG2 · top-p 0.7", "svg2-comp · top-p 0.9"]
    methods = {m["name"]: m for m in page.evaluate("() => explorer.inspect().methods")}
    assert list(methods) == ["svg2", "svg2-comp"]
    assert methods["svg2-comp"]["symbol"] == "circle"
    assert methods["svg2-comp"]["rule"] is None
    record = record_of(trace, 2)
    shown = show(page, record, OTHER_BUDGET)
    np.testing.assert_array_equal(np.reshape(shown["kept"], record.kept.shape), record.kept)


def test_a_payload_without_a_registry_is_redone_by_top_p(trace, open_page):
    payload = explorer_payload(trace)
    del payload["methods"]
    page = open_page(payload, "#run=1", reduced_motion="reduce")
    assert page.locator(".runs button").first.inner_text() == "svg2 · top-p 0.9"
    record = record_of(trace, 0)
    shown = show(page, record, OTHER_BUDGET)
    kept = selection_at(record, OTHER_BUDGET, 0.1)
    assert (kept != record.kept).any()
    np.testing.assert_array_equal(np.reshape(shown["kept"], kept.shape), kept)
