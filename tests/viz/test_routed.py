"""Routing by error on the page: its selection is Python's, and each block says why it is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from svg2.method.selection import METHODS
from svg2.trace.records import NO_GAIN, Record, Trace, selection_at
from tests.traces import make_synthetic_trace
from tests.viz.test_explorer import ACCENT, SKIPPED, awkward_record, pixels, show
from viz import explorer_payload
from viz.masks import density

pytestmark = pytest.mark.browser

RUNS = (("svg2", 0.9), ("svg2-routed", 0.4), ("svg2-comp", 0.9))
ROUTED = 1
MISSED = np.array([0xC2, 0x57, 0x0C])


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


def routed_record(trace: Trace, head: int = 0) -> Record:
    return next(r for r in trace.records if (r.run, r.step, r.head) == (ROUTED, 3, head))


def pin(page, q: int, k: int, top_p: float) -> list[str]:
    """The sentences about a block at a budget."""
    page.evaluate(
        "([cluster, pair, top_p]) => explorer.select({ side: 'q', cluster, pair, top_p })",
        [q, k, top_p],
    )
    return page.locator(".why li").all_inner_texts()


@pytest.mark.parametrize("top_p", [RUNS[ROUTED][1], 0.7])
def test_each_block_says_why_it_was_kept_or_skipped(top_p, routed, open_page):
    page = open_page(routed, reduced_motion="reduce")
    record = routed_record(routed)
    show(page, record, top_p)
    kept = selection_at(record, top_p, 0.0)
    used = (record.q_sizes > 0)[:, None] & (record.k_sizes > 0)
    heaviest = np.where(record.k_sizes > 0, record.P, -1).argmax(axis=1)
    threshold = record.thresholds[round(200 * top_p)]
    lone = kept & (np.arange(kept.shape[1]) != heaviest[:, None])
    for q, k in [(0, heaviest[0]), *np.argwhere(lone)[:2], *np.argwhere(used & ~kept)[:2]]:
        verdict, mass, error, cost, others = pin(page, int(q), int(k), top_p)
        if k == heaviest[q]:
            assert verdict == "Kept as the heaviest of its row: that one always is."
        else:
            word = "Kept for its predicted error" if kept[q, k] else "Skipped: other blocks"
            assert verdict.startswith(word)
        share = 100 * float(record.P[q, k])
        least = "less than 0.01" if 0 < share < 0.01 else f"{share:.2f}".removesuffix(".00")
        assert mass.startswith(f"Mass: {least} % of what query cluster {q + 1} attends to, ")
        ratio = float(np.exp(np.float64(record.gain[q, k]) - threshold))
        said = error.removeprefix("Predicted error per key: ").split("×")[0]
        if 0.01 <= ratio <= 1000:
            assert float(said) == pytest.approx(ratio, rel=0.06)
        rank = 1 + int((record.gain[used] > record.gain[q, k]).sum())
        assert f"{rank}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(rank, '') }" in error.split(", ")[1]
        assert f"of the {used.sum()} blocks of this head" in error
        pairs = int(record.q_sizes[q] * record.k_sizes[k])
        assert cost.startswith(f"Cost: {pairs:,} query–key pair")
        for run in (0, 2):
            other = next(r for r in routed.records if r.position == (run, *record.position[1:]))
            name = f"{METHODS[RUNS[run][0]].title} · top-p 0.9"
            keeping, _, skipping = others.partition(" keep it")
            assert (name in keeping and bool(skipping)) == bool(other.kept[q, k])
    note = page.locator(".clusternote").inner_text()
    assert f"× key cluster {k + 1}: {verdict}" in note


def test_runs_with_other_clusters_are_left_out(routed, open_page):
    records = tuple(
        replace(r, k_labels=r.k_labels[::-1].copy()) if r.run == 0 else r for r in routed.records
    )
    page = open_page(replace(routed, records=records), reduced_motion="reduce")
    show(page, routed_record(routed), 0.4)
    *_, others = pin(page, 0, 0, 0.4)
    assert "SVG2 + compensation · top-p 0.9" in others
    assert "SVG2 · top-p 0.9" not in others


def test_top_p_gives_its_own_reasons(routed, open_page):
    page = open_page(routed, "#run=1", reduced_motion="reduce")
    place = routed_record(routed).position[1:]
    record = next(r for r in routed.records if r.position == (0, *place))
    show(page, record, 0.9)
    order = np.argsort(-record.P[0].astype(np.float64), kind="stable")
    first, second, last = (pin(page, 0, int(order[i]), 0.9) for i in (0, 1, -1))
    assert first[0].startswith("Kept as the heaviest")
    if record.kept[0, order[1]]:
        assert second[0].startswith("Kept for its mass: the heavier blocks of its row hold ")
    assert last[0].startswith("Skipped for its mass: ")
    assert not any("Predicted error" in line for line in first)
    assert page.locator(".maskbar button:visible").all_inner_texts() == ["Kept", "Mass"]


def test_the_mask_by_error_tells_strong_blocks_from_weak_ones(routed, open_page):
    page = open_page(routed, reduced_motion="reduce")
    record = routed_record(routed)
    show(page, record, 0.4)
    page.get_by_role("button", name="Error", exact=True).click()
    assert "tint=error" in page.evaluate("() => explorer.link()")
    assert "predicted error per key" in page.locator(".maskbar .legend").inner_text()
    page.wait_for_timeout(300)
    side = len(record.q_labels)
    drawn = pixels(page, ".maskbox:nth-child(2) canvas.mask", side)
    q_at, k_at = (np.sort(labels) for labels in (record.q_labels, record.k_labels))
    gain = record.gain.astype(np.float64)
    used = (record.q_sizes > 0)[:, None] & (record.k_sizes > 0)
    level = 255 * np.clip(1 + (gain - gain[used].max()) / np.log(1000), 0, 1)
    on = np.where(record.kept, 40 + level * 215 / 255, 0)[q_at][:, k_at] / 255
    off = np.where(record.kept, 0, level)[q_at][:, k_at] / 255
    colour = SKIPPED + on[..., None] * (ACCENT - SKIPPED) + off[..., None] * (MISSED - SKIPPED)
    np.testing.assert_allclose(drawn, colour, atol=2)


def test_a_run_with_a_density_is_named_by_it_and_not_redone(routed, open_page):
    asked = replace(routed.runs[ROUTED], config={**routed.runs[ROUTED].config, "density": 0.06})
    page = open_page(
        replace(routed, runs=(routed.runs[0], asked, routed.runs[2])), reduced_motion="reduce"
    )
    title = METHODS["svg2-routed"].title
    assert page.locator(".runs [aria-pressed=true]").inner_text() == f"{title} · density 6 %"
    assert page.locator(".budgetvalue").inner_text() == "density 6 %"
    assert "density 6 %" in page.locator(".chart .point.current").text_content()
    record = routed_record(routed)
    shown = show(page, record, 0.7)
    np.testing.assert_array_equal(np.reshape(shown["kept"], record.kept.shape), record.kept)
    notice = page.locator(".placebar .notice").inner_text()
    assert "the mask is the measured one, of density 6 %." in notice
    page.get_by_role("button", name="Back to the measured density 6 %").click()
    kept = np.argwhere(record.kept)[1]
    sentences = pin(page, *map(int, kept), RUNS[ROUTED][1])
    assert "the least that was kept for it in this head" in sentences[2]
    slider = page.get_by_label("Budget top-p")
    slider.press("ArrowLeft")
    page.get_by_text("was not run.").wait_for()
    assert page.locator(".badge").inner_text() == "measured"


def test_words_follow_the_method(routed, open_page):
    page = open_page(routed, reduced_motion="reduce")
    masks, clusters = page.locator(".masks .side"), page.locator("[data-view=clusters] .side")
    assert "The budget, top-p, says how many" in masks.inner_text()
    assert "seen at the query centroid" in masks.inner_text()
    page.locator(".runs button").first.click()
    assert "reaches top-p" in masks.inner_text()
    assert "estimate from centroids" in masks.inner_text()
    assert "k-means groups" in clusters.inner_text()


def test_blocks_by_place_are_not_called_alike(routed, open_page):
    placed = replace(routed.runs[0], method="position")
    shown = explorer_payload(replace(routed, runs=(placed, *routed.runs[1:])))
    page = open_page(shown, "#run=1&tour=3", reduced_motion="reduce")
    side = page.locator("[data-view=clusters] .side").inner_text()
    assert METHODS["position"].line in side
    assert "k-means" not in side
    assert "block of neighbouring tokens" in page.locator(".tour").inner_text()
