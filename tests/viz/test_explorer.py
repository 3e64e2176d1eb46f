"""The explorer in a real browser: its numbers are Python's, one selection drives every view."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from svg2.trace.records import Record, Trace, selection_at
from svg2.trace.video import decode_mp4
from tests.traces import make_synthetic_trace
from tests.viz.conftest import wait_for_clips
from viz.frames import FADE
from viz.masks import block_density, density, tile_waste

pytestmark = pytest.mark.browser

ACCENT = np.array([0x2F, 0x56, 0xD0])
SKIPPED = np.array([0xEC, 0xEE, 0xF2])
MAX_BINS = 256


def awkward_record(template: Record, seed: int) -> Record:
    """Masses with ties, zeros and subnormals, and key clusters that hold no token."""
    rng = np.random.default_rng(seed)
    num_q, num_k = template.P.shape
    mass = rng.random((num_q, num_k)) ** rng.integers(1, 12)
    mass = np.where(rng.random(mass.shape) < 0.2, mass[:, :1], mass)
    mass = np.where(rng.random(mass.shape) < 0.1, 0, mass)
    mass = (mass / mass.sum(axis=1, keepdims=True)).astype(np.float16)
    labels = rng.integers(0, max(1, num_k - seed % 7), len(template.k_labels)).astype(np.uint16)
    return replace(template, k_labels=labels, P=mass)


@pytest.fixture(scope="module")
def awkward(trace: Trace) -> Trace:
    """The first run with records that k-means and softmax would hardly make."""
    records = [r for r in trace.records if r.run == 0]
    records = [awkward_record(r, seed) for seed, r in enumerate(records)]
    records = [
        replace(r, kept=selection_at(r, trace.runs[0].config["top_p"], 0.1)) for r in records
    ]
    return replace(trace, runs=trace.runs[:1], records=tuple(records))


def show(page, record: Record, top_p: float) -> dict:
    """Point the explorer at a record and read what it draws."""
    return page.evaluate(
        """([place, top_p]) => {
            explorer.select({ ...place, top_p });
            const { kept, density, keptMass, measured } = explorer.inspect();
            return { kept: Array.from(kept), density, keptMass, measured };
        }""",
        [
            {name: getattr(record, name) for name in ("run", "step", "layer", "branch", "head")},
            top_p,
        ],
    )


@pytest.mark.parametrize("which", ["synthetic", "awkward", "joint"])
def test_the_selection_is_pythons(which, trace, awkward, open_page):
    joint = replace(trace, n_text=37)  # prompt tokens attend with the video's
    shown = {"synthetic": trace, "awkward": awkward, "joint": joint}[which]
    page = open_page(shown)
    rng = np.random.default_rng(7)
    for record in (r for r in shown.records if r.run == 0):
        ticks = [1.0, *(rng.integers(10, 200, 12) / 200)]
        for top_p in ticks:
            kept = selection_at(record, top_p, 0.1)
            if top_p == shown.runs[0].config["top_p"]:
                kept = record.kept
            found = show(page, record, top_p)
            np.testing.assert_array_equal(np.reshape(found["kept"], kept.shape), kept)
            exact = density(record, kept, shown.n_text)
            assert found["density"] == pytest.approx(exact, abs=1e-12)


def test_at_the_measured_budget_the_methods_own_mask_is_drawn(trace, open_page):
    odd = trace.records[0]
    own = odd.kept.copy()
    own[0] = ~own[0]  # as a method in other arithmetic might have chosen
    page = open_page(replace(trace, records=(replace(odd, kept=own),), runs=trace.runs[:1]))
    found = show(page, odd, trace.runs[0].config["top_p"])
    assert found["measured"]
    np.testing.assert_array_equal(np.reshape(found["kept"], own.shape), own)


def test_the_least_share_of_clusters_is_not_rounded_up(open_page):
    shown = make_synthetic_trace(
        grid=(3, 8, 8), num_q=4, num_k=100, steps=3, layers=1, heads=1, min_keep_ratio=0.07
    )
    page = open_page(shown)
    for record in (r for r in shown.records if r.run == 0):
        kept = selection_at(record, 0.05, 0.07)
        assert kept.sum(axis=1).min() == 7  # 0.07 · 100 is a little more than 7 in a computer
        found = show(page, record, 0.05)
        np.testing.assert_array_equal(np.reshape(found["kept"], kept.shape), kept)


@pytest.mark.parametrize("n_text", [0, 37])
def test_curves_pass_through_the_numbers_of_each_budget(n_text, trace, open_page):
    page = open_page(replace(trace, n_text=n_text))
    worst = page.evaluate(
        """() => {
            const { record } = explorer.inspect();
            const { selectionAt, measure, curve } = explorer.math;
            const all = curve(record, 0.1);
            let worst = 0;
            for (let i = 10; i <= 200; i += 1) {
                const at = measure(record, selectionAt(record, i / 200, 0.1));
                const off = [at.density - all.density[i], at.keptMass - all.keptMass[i]];
                worst = Math.max(worst, ...off.map(Math.abs));
            }
            return worst;
        }"""
    )
    assert worst < 1e-12


def pixels(page, selector: str, cells: int) -> np.ndarray:
    """The colour at the middle of each of cells×cells squares of a canvas."""
    data = page.evaluate(
        """([selector, cells]) => {
            const canvas = document.getElementById('explorer').shadowRoot.querySelector(selector);
            const { width, height } = canvas;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            const found = [];
            for (let y = 0; y < cells; y += 1) {
                for (let x = 0; x < cells; x += 1) {
                    const row = Math.floor(((y + 0.5) * height) / cells);
                    const at = 4 * (row * width + Math.floor(((x + 0.5) * width) / cells));
                    found.push(data[at], data[at + 1], data[at + 2]);
                }
            }
            return btoa(String.fromCharCode(...new Uint8Array(found.slice(0, 60000))))
                + '|' + btoa(String.fromCharCode(...new Uint8Array(found.slice(60000, 120000))))
                + '|' + btoa(String.fromCharCode(...new Uint8Array(found.slice(120000))));
        }""",
        [selector, cells],
    )
    raw = b"".join(base64.b64decode(part) for part in data.split("|"))
    return np.frombuffer(raw, np.uint8).reshape(cells, cells, 3).astype(int)


@pytest.mark.parametrize("top_p", [0.35, 0.72, 0.9])
def test_the_masks_on_the_canvas_are_the_block_densities(top_p, trace, open_page):
    page = open_page(trace, reduced_motion="reduce")
    record = next(r for r in trace.records if (r.run, r.step, r.layer, r.head) == (0, 5, 1, 1))
    show(page, record, top_p)
    page.wait_for_timeout(400)
    kept = record.kept if top_p == 0.9 else selection_at(record, top_p, 0.1)
    for place, order in ((1, "original"), (2, "permuted")):
        share = block_density(record, kept, MAX_BINS, order)[..., None]
        expected = SKIPPED + (ACCENT - SKIPPED) * share**FADE
        drawn = pixels(page, f".maskbox:nth-child({place}) canvas.mask", MAX_BINS)
        np.testing.assert_allclose(drawn, expected, atol=1.5)
        tiles = tile_waste(record, kept, 64, order)
        row = page.locator(f".tiletable [data-row={'original' if place == 1 else 'fixed'}]")
        assert f"{tiles.touched:,} of {tiles.total:,} tiles" in row.inner_text()
        assert f"{tiles.waste:.0%}".replace("%", " %") in row.inner_text()


LATE_FRAMES = """([name, first, last]) => {
    const make = window.createImageBitmap;
    let calls = 0;
    window.createImageBitmap = (...given) => {
        calls += 1;
        if (calls < first || calls > last) return make(...given);
        return Promise.reject(new DOMException('The image source is not usable.', name));
    };
}"""


@pytest.mark.parametrize(
    ("name", "first", "last", "plays"),
    [
        ("InvalidStateError", 1, 1, True),
        ("InvalidStateError", 5, 9, True),
        ("DataError", 5, 5, False),
    ],
)
def test_a_frame_that_comes_after_its_seek_is_waited_for(
    trace, open_page, name, first, last, plays
):
    page = open_page(trace, fresh=True, reduced_motion="reduce")
    page.context.add_init_script(f"({LATE_FRAMES})({json.dumps([name, first, last])})")
    page.reload()
    page.wait_for_selector(".metrics", state="attached")
    refusal = page.get_by_text("This browser can't play the clips")
    if plays:
        wait_for_clips(page)
        assert refusal.count() == 0
    else:
        refusal.first.wait_for()


def test_both_clips_show_the_same_frame_of_their_own(trace, open_page):
    page = open_page(trace, reduced_motion="reduce")
    page.evaluate("() => explorer.select({ run: 0 })")
    wait_for_clips(page)
    box = page.locator(".stage .dense canvas").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(56 / 48, rel=0.01)
    clips = {".dense": decode_mp4(trace.dense_mp4), ".sparse": decode_mp4(trace.runs[0].mp4)}
    side = 24  # squares of two or more pixels of these 48×56 clips: their middles are compared
    for frame in (0, 7, 16):
        page.evaluate("(frame) => explorer.select({ frame })", frame)
        page.wait_for_timeout(80)
        for selector, frames in clips.items():
            drawn = pixels(page, f".stage {selector} canvas", side)
            rows, columns = (
                np.floor((np.arange(side) + 0.5) * n / side).astype(int) for n in frames.shape[1:3]
            )
            picked = frames[:, rows][:, :, columns].astype(int)
            errors = np.abs(picked - drawn).mean(axis=(1, 2, 3))
            assert int(np.argmin(errors)) == frame
            assert errors[frame] < 4


def test_a_hostile_prompt_is_inert(trace, open_page):
    hostile = '</script><img src=x onerror="window.hacked=1"><b>bold</b> {{value}} ${alert(1)}'
    bad_run = replace(trace.runs[0], method="<i>svg2</i>")
    page = open_page(
        replace(
            trace,
            request={**trace.request, "prompt": hostile},
            provenance={**trace.provenance, "hardware": hostile},
            runs=(bad_run, *trace.runs[1:]),
        )
    )
    assert page.locator(".prompt q").inner_text() == hostile
    assert page.evaluate("() => window.hacked") is None
    root = "document.getElementById('explorer').shadowRoot"
    assert (
        page.evaluate(f"() => {root}.querySelectorAll('.body :is(img, b, i:not(.swatch))').length")
        == 0
    )


def test_pickers_grey_and_name_what_is_not_recorded(trace, open_page):
    page = open_page(trace)
    options = page.get_by_label("Step", exact=True).locator("option").all()
    by_text = {o.inner_text(): o.is_disabled() for o in options}
    assert by_text == {
        "2": False,
        "3 (not recorded)": True,
        "4 (not recorded)": True,
        "5 (not recorded)": True,
        "6": False,
    }


def test_one_selection_by_mouse_and_by_keyboard(trace, open_page):
    page = open_page(trace, "#run=1", reduced_motion="reduce")
    selection = lambda: page.evaluate("() => explorer.selection()")  # noqa: E731
    assert (selection()["step"], selection()["layer"], selection()["head"]) == (5, 1, 0)

    tiles = page.get_by_role("group", name="Latent frames")
    tiles.focus()
    page.keyboard.press("ArrowUp")
    assert selection()["layer"] == 0
    page.keyboard.press("ArrowDown")
    assert selection()["layer"] == 1
    page.keyboard.press("ArrowRight")
    assert selection()["frame"] == 1
    page.keyboard.press("[")
    assert selection()["step"] == 1
    page.keyboard.press("h")
    assert selection()["head"] == 1
    page.keyboard.press("k")
    assert selection()["side"] == "k"

    canvas = page.locator(".tile canvas").nth(4)
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.58})
    chosen = selection()
    record = next(r for r in trace.records if (r.run, r.step, r.layer, r.head) == (0, 1, 1, 1))
    assert chosen["cluster"] == record.k_labels.reshape(trace.grid)[4, 3, 3]
    page.mouse.move(0, 0)
    note = page.locator(".clusternote").inner_text()
    assert f"Key cluster {chosen['cluster'] + 1}" in note
    readers = int(record.kept[:, chosen["cluster"]].sum())
    assert f"Kept by {readers} of 11 query clusters" in note
    assert page.get_by_label("Pinned cluster", exact=True).input_value() == str(
        chosen["cluster"] + 1
    )
    page.keyboard.press("Escape")
    assert selection()["cluster"] is None

    page.get_by_role("button", name="SVG2 + compensation · top-p 0.9").click()
    assert selection()["run"] == 2
    page.locator(".chart .point").first.focus()
    page.keyboard.press("Enter")
    assert selection()["run"] == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the focus stayed on the chart
    assert selection()["run"] == 1


def test_the_note_stays_under_the_pointer_and_keeps_the_focus(trace, open_page):
    page = open_page(trace, reduced_motion="reduce")
    page.evaluate("() => explorer.select({ side: 'q', cluster: 0 })")
    chip = page.locator(".chip").first
    name = chip.get_attribute("aria-label")
    chip.hover()
    page.wait_for_timeout(100)
    assert page.locator(".chip").first.get_attribute("aria-label") == name
    page.locator(".chip").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("() => explorer.selection()")["side"] == "k"
    assert page.locator(".clusternote button:focus").count() == 1


def test_the_slider_answers_from_the_keyboard_and_says_what_it_is(trace, open_page):
    page = open_page(trace, fresh=True)
    page.wait_for_timeout(300)
    slider = page.get_by_label("Budget top-p")
    # A release would move to a measured run after 0.4 s, which a busy machine takes for one look.
    slider.evaluate(
        "(s) => s.addEventListener('change', (e) => e.stopImmediatePropagation(), true)"
    )
    assert page.locator(".badge").inner_text() == "measured"
    page.evaluate("() => explorer.select({ top_p: 0.715 })")
    for _ in range(3):
        slider.press("ArrowLeft")
    assert page.locator(".budgetvalue").inner_text() == "0.7"
    assert page.locator(".badge").inner_text() == "what-if"
    said = re.compile(r"what-if top-p 0.7: about \d+ ± \d+ dB")
    page.locator(".whatiftext", has_text=said).wait_for()  # once all calls are summed up
    assert page.locator(".chart .offby").count() == 1
    assert page.locator(".chart .whatif").count() == 1
    page.get_by_role("button", name="Back to the measured 0.9").click()
    assert page.locator(".badge").inner_text() == "measured"
    assert page.locator(".chart .whatif").count() == 0


def test_without_a_model_a_release_moves_to_the_nearest_measured_run(trace, open_page):
    page = open_page(trace, "#run=1")
    slider = page.get_by_label("Budget top-p")
    page.evaluate("() => explorer.select({ top_p: 0.765 })")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    answer = page.get_by_text("top-p 0.75 stays a what-if. Moved to the nearest measured run")
    answer.wait_for()
    assert "SVG2 · top-p 0.7" in answer.inner_text()
    assert page.locator(".runs [aria-pressed=true]").inner_text() == "SVG2 · top-p 0.7"
    assert page.locator(".badge").inner_text() == "measured"
    page.evaluate("() => explorer.select({ top_p: 0.885 })")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.get_by_text("Measured already: SVG2 · top-p 0.9").wait_for()
    assert page.evaluate("() => explorer.selection().run") == 0


def test_a_trace_without_records_still_compares(trace, open_page):
    page = open_page(replace(trace, records=()))
    assert page.get_by_text("holds no recorded clusters").is_visible()
    assert page.get_by_role("heading", name="Trade-off").is_visible()
    assert page.locator(".mask").count() == 0


def test_a_run_that_was_not_recorded_shows_another_and_says_so(trace, open_page):
    page = open_page(replace(trace, records=tuple(r for r in trace.records if r.run == 0)))
    page.get_by_role("button", name="SVG2 + compensation · top-p 0.9").click()
    assert (
        "were not recorded; these are of SVG2 · top-p 0.9"
        in page.locator(".placebar").inner_text()
    )


@pytest.mark.parametrize("width", [390, 1024, 1440])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_sticks_out(width, theme, trace, open_page):
    page = open_page(trace, width=width, theme=theme)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    shown = page.evaluate(
        "() => document.getElementById('explorer').shadowRoot.querySelector('.lab').dataset.theme"
    )
    assert shown == theme


def test_every_control_has_a_name(trace, open_page):
    page = open_page(trace)
    show(page, trace.records[0], 0.8)
    page.evaluate("() => explorer.select({ cluster: 1, compare: 'wipe' })")
    nameless = page.evaluate(
        """() => [...document.getElementById('explorer').shadowRoot
            .querySelectorAll('button, select, input, canvas, [role=button]')]
            .filter((e) => !e.closest('[aria-hidden=true]'))
            .filter((e) => !e.getAttribute('aria-label') && !e.textContent.trim())
            .filter((e) => !e.labels?.length)
            .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
