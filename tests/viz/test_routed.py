"""Routing by error on the page: its selection is Python's, and each block says why it is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from svg2.method.selection import METHODS
from svg2.trace.records import NO_GAIN, Record, Trace, selection_at
from tests.traces import make_synthetic_trace
from tests.viz.test_explorer import awkward_record, show
from viz import explorer_payload
from viz.masks import density

pytestmark = pytest.mark.browser

RUNS = (("svg2", 0.9), ("svg2-routed", 0.4), ("svg2-comp", 0.9))
ROUTED = 1


@pytest.fixture(scope="module")
def routed() -> Trace:
    """Three runs with the same clusters, of which one is routed by error."""
    return make_synthetic_trace(
        grid=(5, 6, 7), num_q=11, num_k=29, steps=4, runs=RUNS, min_keep_ratio=0.0
    )


def awkward_errors(record: Record, seed: int) -> Record:
    """Equal and absent errors, empty clusters, and thresholds that equal some of them."""
    rng = np.random.default_rng(seed)
    made = awkward_record(record, seed)
    gain = rng.normal(-9, 4, made.P.shape).astype(np.float16)
    gain = np.where(rng.random(gain.shape) < 0.2, gain[:, :1], gain)
    gain = np.where(rng.random(gain.shape) < 0.1, np.float16(NO_GAIN), gain)
    steps = np.sort(rng.choice(gain.ravel(), 201))[::-1].astype(np.float32)
    steps[:20], steps[190:] = 60_000, NO_GAIN - 1
    return replace(made, gain=gain, thresholds=steps)


@pytest.mark.parametrize("which", ["computed", "awkward"])
def test_the_selection_is_pythons(which, routed, open_page):
    shown = routed
    if which == "awkward":
        records = (awkward_errors(r, i) for i, r in enumerate(routed.records) if r.run == ROUTED)
        shown = replace(routed, records=tuple(records))
    page = open_page(shown)
    rng = np.random.default_rng(7)
    for record in (r for r in shown.records if r.run == ROUTED):
        halves = np.arange(41, 60, 2) / 400  # as near to one tick as to the next
        for top_p in [1.0, *(rng.integers(10, 200, 12) / 200), *halves]:
            kept = selection_at(record, top_p, 0.0)
            if top_p == RUNS[ROUTED][1]:
                kept = record.kept
            found = show(page, record, top_p)
            np.testing.assert_array_equal(np.reshape(found["kept"], kept.shape), kept)
            assert found["density"] == pytest.approx(density(record, kept), abs=1e-12)


def test_curves_pass_through_the_numbers_of_each_budget(routed, open_page):
    page = open_page(routed)
    worst = page.evaluate(
        """() => {
            const { record } = explorer.inspect();
            const { selectionAt, measure, curve } = explorer.math;
            const all = curve(record, 0);
            let worst = record.gain ? 0 : 1;
            for (let i = 1; i <= 200; i += 1) {
                const at = measure(record, selectionAt(record, i / 200, 0));
                const off = [at.density - all.density[i], at.keptMass - all.keptMass[i]];
                worst = Math.max(worst, ...off.map(Math.abs));
            }
            return worst;
        }"""
    )
    assert worst < 1e-12


def test_a_trace_opens_with_its_routed_run(routed, open_page):
    page = open_page(routed)
    assert page.evaluate("() => explorer.selection().run") == ROUTED
    assert page.locator(".badge").inner_text() == "measured"
    assert page.locator(".curvebox .line").first.get_attribute("d")
