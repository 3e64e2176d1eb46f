"""Charts have scales: axes, ticks and legends; words for decibels and for the floor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.traces import make_synthetic_trace
from tests.viz.test_explorer import show
from viz import explorer_payload

pytestmark = pytest.mark.browser

ROOT = "document.getElementById('explorer').shadowRoot"


def texts(page, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def middles(page, selector: str, axis: str) -> list[float]:
    """Where ticks stand, as shares of the mask beside them."""
    size = {"x": "width", "y": "height"}[axis]
    board = page.locator("canvas.mask").nth(1).bounding_box()
    found = [tick.bounding_box() for tick in page.locator(selector).all()]
    return [(box[axis] + box[size] / 2 - board[axis]) / board[size] for box in found]


def test_the_budget_curve_has_both_axes(trace, open_page):
    page = open_page(trace, "#run=1", reduced_motion="reduce")
    assert texts(page, ".curvebox .range span") == ["100 %", "50 %", "0 %"]
    assert texts(page, ".curvebox .axiscolumns span") == ["0.2", "0.4", "0.6", "0.8", "1"]
    chart = page.locator(".curvebox svg").bounding_box()
    for tick in page.locator(".curvebox .axiscolumns span").all():
        page.evaluate("(p) => explorer.select({ top_p: p })", float(tick.inner_text()))
        cursor = page.locator(".curvebox .cursor").bounding_box()
        box = tick.bounding_box()
        assert cursor["x"] == pytest.approx(box["x"] + box["width"] / 2, abs=2)
        assert chart["x"] <= cursor["x"] <= chart["x"] + chart["width"] + 1
    assert texts(page, ".side > .legend .key") == ["density of this call", "kept mass"]


def test_density_maps_name_layers_steps_and_colours(trace, open_page):
    page = open_page(trace, "#run=1")
    run = trace.runs[0]
    steps, layers = (sorted({int(call[i]) + 1 for call in run.call}) for i in (0, 1))
    for ends, wanted in ((".layers", [layers[0], layers[-1]]), (".steps", [steps[0], steps[-1]])):
        first, word, last = texts(page, f".headmap:first-child {ends} span")
        assert [int(first), int(last)] == wanted
        assert word == {".layers": "layer", ".steps": "step"}[ends]
    scale = page.locator(".mapscale").inner_text()
    places = [tuple(call[:2]) for call in run.call]
    means = [  # over branches
        run.density[[other == place for other in places]].mean(0) for place in set(places)
    ]
    for value in (np.min(means), np.max(means)):
        assert f"{100 * value:.1f}".removesuffix(".0") in scale
    assert "recorded" in scale
    assert "on show" in scale


def test_a_mask_in_token_order_names_its_latent_frames(trace, open_page):
    page = open_page(trace, "#run=1", reduced_motion="reduce")
    frames = [str(t + 1) for t in range(trace.grid[0])]
    page.locator(".maskbox:nth-child(1) .axisrows span").first.wait_for()  # it is drawn
    assert texts(page, ".maskbox:nth-child(1) .axisrows span") == frames
    assert texts(page, ".maskbox:nth-child(1) .axiscolumns span") == frames
    assert "by latent frame" in page.locator(".maskbox:nth-child(1) .axisbelow").inner_text()
    page.evaluate("() => explorer.select({ sort: 0.5 })")
    page.wait_for_function(f"() => !{ROOT}.querySelector('.maskbox:nth-child(2) .axisrows span')")


@pytest.mark.parametrize("zoom", [False, True])
def test_a_sorted_mask_names_clusters_where_they_lie(zoom, trace, open_page):
    page = open_page(trace, "#run=1&step=6&layer=1&head=1", reduced_motion="reduce")
    page.evaluate("(zoom) => explorer.select({ side: 'q', cluster: 4, pair: 9, zoom })", zoom)
    page.wait_for_timeout(300)
    record = next(r for r in trace.records if (r.run, r.step, r.layer, r.head) == (0, 5, 0, 0))
    for selector, axis, sizes in (
        (".axisrows", "y", record.q_sizes),
        (".axiscolumns", "x", record.k_sizes),
    ):
        numbers = [int(n) - 1 for n in texts(page, f".maskbox:nth-child(2) {selector} span")]
        places = middles(page, f".maskbox:nth-child(2) {selector} span", axis)
        assert numbers == sorted(set(numbers))
        assert all(0 <= at <= 1 for at in places)
        if not zoom:
            ends = np.cumsum(sizes)
            wanted = (ends - sizes / 2)[numbers] / ends[-1]
            np.testing.assert_allclose(places, wanted, atol=0.01)
        else:
            assert {"axisrows": 4, "axiscolumns": 9}[selector[1:]] in numbers


def test_points_are_joined_by_budget_and_never_by_x(trace, open_page):
    """A run of a larger budget that came out faster lies further right and is joined second."""
    budgets = (0.3, 0.6, 0.9)
    runs = tuple(
        replace(
            trace.runs[0],
            config={**trace.runs[0].config, "top_p": p},
            result={**trace.runs[0].result, "speedup": speedup, "psnr_db": 20 + 20 * p},
        )
        for p, speedup in zip(budgets, (1.5, 1.2, 1.4), strict=True)
    )
    shown = replace(trace, runs=(runs[2], runs[0], runs[1]), records=())
    page = open_page(shown, "#run=1&axis=speedup", width=1280)
    path = page.locator(".joined").get_attribute("d")
    heights = [float(part.split()[1]) for part in path.replace("L", "M").split("M")[1:]]
    assert heights == sorted(heights, reverse=True)  # PSNR rises with the budget, so y falls
    across = [float(part.split()[0]) for part in path.replace("L", "M").split("M")[1:]]
    assert across != sorted(across)
    assert len(texts(page, ".chart .tick")) > 6


@pytest.mark.parametrize(
    ("psnr", "said"),
    [
        (18.0, "differs in many details"),
        (25.0, "differs plainly"),
        (30.0, "seen when compared"),
        (36.0, "hard to see"),
        (None, "no difference"),
    ],
)
def test_decibels_are_said_in_words(psnr, said, trace, open_page):
    run = replace(trace.runs[0], result={**trace.runs[0].result, "psnr_db": psnr})
    page = open_page(replace(trace, runs=(run, *trace.runs[1:])), "#run=1")
    assert page.locator(".metric", has_text="PSNR").locator(".note").inner_text().endswith(said)
    assert "25 dB differ plainly" in page.locator(".sparkbox").inner_text()


@pytest.mark.parametrize(
    ("ratio", "top_p", "binds"), [(0.4, 0.3, True), (0.4, 1.0, False), (0.0, 0.3, False)]
)
def test_the_floor_is_said_wherever_it_decides(ratio, top_p, binds, open_page):
    made = make_synthetic_trace(
        grid=(5, 6, 7),
        num_q=11,
        num_k=30,
        steps=4,
        runs=(("svg2", top_p),),
        min_keep_ratio=ratio,
    )
    page = open_page(explorer_payload(made), "#run=1")
    record = made.records[0]
    show(page, record, top_p)
    least = int(np.ceil(ratio * 30 - 1e-9))
    introduction = page.locator(".view.masks .side > p").first.inner_text()
    assert (f"at least {least} of them" in introduction) == (ratio > 0)
    mass = np.where(record.k_sizes > 0, record.P.astype(np.float64), 0)
    mass /= mass.sum(1, keepdims=True)
    before = np.cumsum(-np.sort(-mass), 1) + np.sort(-mass)
    needed = np.maximum(1, (before < top_p).sum(1)) if top_p < 1 else np.full(11, 30)
    rows = [q for q in range(11) if record.q_sizes[q] and needed[q] < least]
    assert bool(rows) == binds
    panel = page.locator(".view.masks .side").inner_text()
    assert (f"In {len(rows)} of " in panel) == binds
    for q in rows[:3]:
        page.evaluate("(cluster) => explorer.select({ side: 'q', cluster })", q)
        count = "One" if needed[q] == 1 else needed[q]
        said = f"{count} of them would reach top-p {top_p:g}; the {least} heaviest (40 %)"
        assert said in page.locator(".clusternote").inner_text()
    for q in set(range(11)) - set(rows):
        page.evaluate("(cluster) => explorer.select({ side: 'q', cluster })", q)
        assert "are always kept" not in page.locator(".clusternote").inner_text()


@pytest.mark.parametrize("width", [390, 520, 860, 1024, 1440])
def test_no_row_of_cards_has_a_hole(width, trace, open_page):
    page = open_page(trace, width=width)
    cards = page.locator(".metric").evaluate_all(
        "(all) => all.map((card) => [card.offsetTop, card.getBoundingClientRect().width])"
    )
    whole = page.locator(".metrics").bounding_box()["width"]
    for top in {top for top, _ in cards}:
        row = [width for other, width in cards if other == top]
        assert sum(row) == pytest.approx(whole, abs=2)


@pytest.mark.parametrize("mode", ["wipe", "difference", "blink"])
def test_no_mode_leaves_the_place_beside_it_empty(mode, trace, open_page):
    page = open_page(trace, f"#run=1&frame=4&compare={mode}", width=1440, reduced_motion="reduce")
    left, right = (page.locator(f".stage .{side} canvas") for side in ("dense", "sparse"))
    assert right.is_visible()
    assert left.bounding_box()["width"] == pytest.approx(right.bounding_box()["width"], abs=1)
    caption = page.locator(".stage .sparse figcaption").inner_text()
    assert ("× 8" in caption) == (mode != "difference")
    page.wait_for_function(
        """() => {
            const root = document.getElementById('explorer').shadowRoot;
            const canvas = root.querySelector('.stage .sparse canvas');
            const { width, height } = canvas;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            return data.some((v, i) => i % 4 < 3 && v > 0);
        }"""
    )
