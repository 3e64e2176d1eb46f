"""One state: every view reads it and writes it, a link holds it, and a clock moves both clips."""

from __future__ import annotations

import re

import numpy as np
import pytest

from svg2.method.selection import METHODS
from svg2.trace.video import decode_mp4
from tests.viz.conftest import wait_for_clips
from tests.viz.test_explorer import pixels
from viz.explorer_page import explorer_js

pytestmark = pytest.mark.browser


DRAWN = """() => new Promise((done) =>
    requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))"""


@pytest.fixture
def page(trace, open_page):
    return open_page(trace, "#run=1", reduced_motion="reduce")


def state(page) -> dict:
    return page.evaluate("() => explorer.selection()")


def assert_every_view_follows(page, trace) -> None:
    """What each view says agrees with the one selection."""
    now = state(page)
    page.wait_for_timeout(120)
    for name in ("Step", "Layer", "Head"):
        assert page.get_by_label(name, exact=True).input_value() == str(now[name.lower()])
    shown = page.evaluate("() => explorer.inspect().density")
    density = re.sub(r"\.0 %$", " %", f"{100 * shown:.1f} %")
    assert page.locator(".placebar .summary strong").inner_text() == density
    for mask in page.locator("canvas.mask").all():
        assert f"{density} of token pairs kept" in mask.get_attribute("aria-label")
    assert page.locator(".readout dd").first.inner_text() == density
    assert page.locator(".budgetvalue").inner_text() == f"{now['top_p']:g}"

    run = trace.runs[now["run"]]
    title = METHODS[run.method].title
    name = f"{title} · top-p {run.config['top_p']:g}"
    assert page.locator(".runs [aria-pressed=true]").inner_text() == name
    caption = page.locator(".stage .sparse figcaption").inner_text()
    # beside a wipe and a blink stands the difference to the run, which names it too
    assert name in caption if now["compare"] in ("wipe", "blink") else caption.startswith(name)
    assert f"{run.result['psnr_db']:.1f} dB" in page.locator(".headline").inner_text()
    point = page.locator(".chart .point.current").get_attribute("aria-label")
    assert point.startswith(f"{title}, top-p {run.config['top_p']:g}:")

    frame = now["frame"]
    assert page.locator(".count").inner_text() == f"{frame + 1} / {len(run.psnr_frame)}"
    assert f"{run.psnr_frame[frame]:.1f} dB" in page.locator(".sparkbox .label").inner_text()
    lit = page.locator(".tile").evaluate_all("all => all.map((t) => t.classList.contains('now'))")
    assert lit.index(True) == (frame + 1) // 2
    assert sum(lit) == 1

    pinned = page.get_by_label("Pinned cluster", exact=True).input_value()
    if now["cluster"] is None:
        assert pinned == ""
    else:
        word = {"q": "Query", "k": "Key"}[now["side"]]
        assert pinned == str(now["cluster"] + 1)
        note = page.locator(".clusternote").inner_text()
        assert note.startswith(f"{word} cluster {pinned} (pinned)")
    if now["pair"] is not None:
        q, k = now["cluster"] + 1, now["pair"] + 1
        q, k = (q, k) if now["side"] == "q" else (k, q)
        reading = page.locator(".masks .reading").inner_text()
        assert reading.startswith(f"query cluster {q} (")
        assert f"key cluster {k} (" in reading


def click(page, selector: str, x: float, y: float, nth: int = 0) -> None:
    target = page.locator(selector).nth(nth)
    box = target.bounding_box()
    target.click(position={"x": box["width"] * x, "y": box["height"] * y})
    page.mouse.move(0, 0)


WRITERS = {
    "picker, mouse": lambda p: p.get_by_role("button", name="Previous recorded layer").click(),
    "picker, keyboard": lambda p: p.get_by_label("Step", exact=True).press("ArrowUp"),
    "density map, mouse": lambda p: click(p, ".headmap canvas", 0.05, 0.9, 1),
    "density map, keyboard": lambda p: p.locator(".headboard").press("ArrowLeft"),
    "frames, mouse": lambda p: click(p, ".tile canvas", 0.5, 0.6, 3),
    "frames, keyboard": lambda p: p.locator(".tiles").press("n"),
    "side note, mouse": lambda p: (
        p.locator(".tiles").press("n"),
        p.locator(".chip").first.click(),
        p.mouse.move(0, 0),
    ),
    "side note, keyboard": lambda p: p.get_by_label("Pinned cluster").fill("3"),
    "token-order mask, mouse": lambda p: click(p, "canvas.mask", 0.3, 0.7, 0),
    "sorted mask, mouse": lambda p: click(p, "canvas.mask", 0.3, 0.7, 1),
    "sorted mask, keyboard": lambda p: p.locator(".board").press("ArrowDown"),
    "budget, keyboard": lambda p: p.get_by_label("Budget top-p").press("ArrowLeft"),
    "budget, mouse": lambda p: click(p, "input.budget", 0.4, 0.5),
    "trade-off, mouse": lambda p: p.locator(".chart .point").nth(1).click(),
    "trade-off, keyboard": lambda p: p.locator(".chart .point").nth(2).press("Enter"),
    "run, mouse": lambda p: p.locator(".runs button").nth(2).click(),
    "run, keyboard": lambda p: p.locator(".runs button").nth(1).press("Enter"),
    "transport, mouse": lambda p: p.get_by_role("button", name="Next frame").click(),
    "transport, keyboard": lambda p: p.get_by_label("Frame", exact=True).press("ArrowRight"),
    "PSNR of each frame, mouse": lambda p: click(p, ".sparkbox svg", 0.7, 0.5),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_each_view_drives_all_views(writer, page, trace):
    before = state(page)
    WRITERS[writer](page)
    page.locator("body").press("Shift")  # a field that was filled commits when left
    page.evaluate("() => document.getElementById('explorer').shadowRoot.activeElement?.blur()")
    assert state(page) != before
    if "budget" in writer:
        page.locator(".answer").wait_for()  # with no model it comes to rest at a measured run
    assert_every_view_follows(page, trace)


def test_the_sorted_mask_is_walked_and_zoomed_by_keyboard(page, trace):
    board = page.locator(".board")
    board.press("ArrowRight")
    first = state(page)
    assert first["side"] == "q"
    board.press("ArrowRight")
    assert state(page)["pair"] > first["pair"]
    record = next(r for r in trace.records if (r.run, r.step, r.layer, r.head) == (0, 5, 0, 0))
    q_sizes, k_sizes = record.q_sizes, record.k_sizes
    small = np.maximum.outer(q_sizes, k_sizes) < record.q_labels.size / 6
    small &= np.minimum.outer(q_sizes, k_sizes) > 0
    wanted = next(c for c in range(len(q_sizes)) if small[c].any())
    while state(page)["cluster"] != wanted:
        board.press("ArrowUp" if state(page)["cluster"] > wanted else "ArrowDown")
    while not small[wanted, state(page)["pair"]]:
        board.press("ArrowRight" if small[wanted, state(page)["pair"] :].any() else "ArrowLeft")
    board.press("Enter")
    assert state(page)["zoom"] is True
    page.get_by_text("Permuted: sorted by cluster, zoomed").wait_for()
    now = state(page)
    page.wait_for_timeout(200)
    drawn = pixels(page, ".maskbox:nth-child(2) canvas.mask", 9)
    kept = record.kept[now["cluster"], now["pair"]]
    middle = drawn[4, 4]  # the block that is zoomed to lies in the middle
    assert (middle[2] - middle[0] > 100) == kept
    board.press("Escape")
    assert state(page)["zoom"] is False
    assert state(page)["cluster"] is None


def test_the_sorting_starts_and_ends_exact(trace, open_page):
    page = open_page(trace, "#run=1&step=6&layer=1&head=1&frame=1", reduced_motion="no-preference")
    ends = [pixels(page, f".maskbox:nth-child({n}) canvas.mask", 256) for n in (1, 2)]
    page.get_by_role("button", name="Play the sorting").click()
    seen = set()
    for _ in range(60):
        seen.add(state(page)["sort"])
        page.wait_for_timeout(60)
        if len(seen) > 3 and state(page)["sort"] == 1:
            break
    assert len(seen) > 3  # it moved through orders in between
    assert state(page)["sort"] == 1
    page.wait_for_timeout(100)
    drawn = pixels(page, ".maskbox:nth-child(2) canvas.mask", 256)
    np.testing.assert_array_equal(drawn, ends[1])
    page.evaluate("() => explorer.select({ sort: 0 })")
    page.wait_for_timeout(100)
    drawn = pixels(page, ".maskbox:nth-child(2) canvas.mask", 256)
    np.testing.assert_array_equal(drawn, ends[0])


def test_no_sorting_moves_under_reduced_motion(page):
    page.get_by_role("button", name="Back to token order").click()
    assert state(page)["sort"] == 0
    page.get_by_role("button", name="Sort by cluster").click()
    assert state(page)["sort"] == 1


def test_a_link_restores_the_exact_state(page, trace, open_page):
    page.evaluate(
        """() => {
            explorer.select({ run: 2, step: 1, layer: 1, head: 1, frame: 9, top_p: 0.635 });
            explorer.select({ side: 'k', cluster: 7, pair: 3, hover: null, lit: 'members' });
            explorer.select({ compare: 'wipe', wipe: 0.31, opacity: 0.35, axis: 'attention' });
            explorer.select({ zoom: true, against: 0 });
        }"""
    )
    before = state(page)
    assert before["pair"] == 3
    page.wait_for_timeout(700)
    link = page.evaluate("() => explorer.link()")
    assert page.url == link  # the address follows by itself
    other = open_page(trace, "#" + link.split("#")[1], fresh=True, reduced_motion="reduce")
    assert state(other) == before
    assert_every_view_follows(other, trace)
    assert other.locator(".lab > .notice").is_hidden()


def test_copy_link_gives_it_or_shows_it(page):
    page.get_by_role("button", name="Copy link to this view").click()
    page.locator(".headbuttons [role=status]", has_text=re.compile("copied|Copy it")).wait_for()
    if page.locator(".linktext").is_visible():
        assert page.locator(".linktext").input_value() == page.evaluate("() => explorer.link()")


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("#layer=99&head=2", "layer 99"),
        ("#run=77", "run 77"),
        ("#top_p=seven&frame=3", "“top_p=seven” can't be read"),
        ("#compare=<b>&step=-1", "“compare=<b>” can't be read"),
        ("#cluster=4000", "cluster 4000"),
        ("#frame=500", "frame 500"),
    ],
)
def test_a_broken_link_falls_back_and_says_so(link, words, trace, open_page):
    page = open_page(trace, link, reduced_motion="reduce")
    notice = page.locator(".lab > .notice")
    notice.wait_for()
    assert words in notice.inner_text()
    assert "nearest is shown" in notice.inner_text()
    assert_every_view_follows(page, trace)


def test_a_new_hash_in_the_same_tab_is_followed(page, trace):
    page.evaluate("() => { location.hash = 'run=3&layer=2&cluster=2&side=q'; }")
    page.wait_for_function("() => explorer.selection().run === 2")
    assert (state(page)["layer"], state(page)["cluster"]) == (1, 1)
    assert_every_view_follows(page, trace)


def test_the_tour_asks_eight_questions_by_keyboard(page, trace):
    page.get_by_role("button", name="Take the tour").press("Enter")
    titles = []
    for step in range(8):
        assert page.locator(".tour .small").first.inner_text() == f"Tour, {step + 1} of 8"
        titles.append(page.locator(".tour h3").inner_text())
        assert page.locator(".pointed").count() == 1
        assert_every_view_follows(page, trace)
        page.keyboard.press("ArrowRight")
    assert len(set(titles)) == 8
    assert page.locator(".tour").is_hidden()
    page.get_by_role("button", name="Take the tour").press("Enter")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".tour .small").first.inner_text() == "Tour, 1 of 8"
    page.keyboard.press("Escape")
    assert page.locator(".tour").is_hidden()
    focused = page.evaluate(
        "() => document.getElementById('explorer').shadowRoot.activeElement.textContent"
    )
    assert focused == "Take the tour"


def test_the_glossary_opens_on_hover_and_focus(page):
    word = page.locator(".view .term", has_text="top-p").first
    tip = page.locator(".tip")
    assert tip.is_hidden()
    word.hover()
    assert "The budget." in tip.inner_text()
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    word.focus()
    assert "The budget." in tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_both_clips_stay_in_step_over_thirty_seconds_of_loops(trace, open_page):
    page = open_page(trace, "#run=1&frame=1", fresh=True, reduced_motion="reduce")
    wait_for_clips(page)
    page.clock.install()
    page.evaluate("() => explorer.select({ playing: true, speed: 1 })")
    clips = {"dense": decode_mp4(trace.dense_mp4), "sparse": decode_mp4(trace.runs[0].mp4)}
    count = len(clips["dense"])
    shown = []
    for _ in range(30):
        page.clock.run_for(1000)
        found = {}
        for name, frames in clips.items():
            drawn = pixels(page, f".stage .{name} canvas", 24)
            rows, columns = (
                np.floor((np.arange(24) + 0.5) * n / 24).astype(int) for n in frames.shape[1:3]
            )
            picked = frames[:, rows][:, :, columns].astype(int)
            found[name] = int(np.argmin(np.abs(picked - drawn).mean(axis=(1, 2, 3))))
        apart = abs(found["dense"] - found["sparse"])
        assert min(apart, count - apart) <= 1
        shown.append(found["dense"])
    assert len(set(shown)) > count / 3  # it did play


def test_wipe_and_difference_follow_the_frame(trace, open_page):
    page = open_page(trace, "#run=1&frame=1&compare=wipe&wipe=0.5", reduced_motion="reduce")
    wait_for_clips(page)
    dense, sparse = (decode_mp4(m).astype(int) for m in (trace.dense_mp4, trace.runs[0].mp4))
    for frame in (2, 11):
        page.evaluate("(frame) => explorer.select({ frame, compare: 'wipe' })", frame)
        page.evaluate(DRAWN)
        drawn = pixels(page, ".stage .dense canvas", 24)
        rows, columns = (
            np.floor((np.arange(24) + 0.5) * n / 24).astype(int) for n in dense.shape[1:3]
        )
        a, b = (clip[frame][rows][:, columns] for clip in (dense, sparse))
        assert np.abs(drawn[:, :11] - a[:, :11]).mean() < 4
        assert np.abs(drawn[:, 13:] - b[:, 13:]).mean() < 4
        page.evaluate("() => explorer.select({ compare: 'difference' })")
        page.evaluate(DRAWN)
        drawn = pixels(page, ".stage .dense canvas", 24)
        wanted = np.minimum(255, 8 * np.abs(a - b))
        # a level of difference in the browser's decoder is eight here
        assert np.abs(drawn - wanted).mean() < 20
        assert np.corrcoef(drawn.ravel(), wanted.ravel())[0, 1] > 0.8


def test_two_sparse_runs_stand_side_by_side(trace, open_page):
    page = open_page(trace, "#run=1&frame=5", reduced_motion="reduce")
    names = page.locator(".runs button").all_inner_texts()
    beside = page.get_by_label("Clip on the left")
    assert beside.locator("option").all_inner_texts() == ["Dense", *names[1:]]
    beside.select_option(label=names[2])
    wait_for_clips(page)
    captions = page.locator(".stage figcaption")
    for caption, run in zip(captions.all(), (2, 0), strict=True):
        seconds = trace.runs[run].result["svg2_seconds"]
        assert caption.inner_text().startswith(names[run])
        assert f"{seconds:.1f} s" in caption.inner_text() or f"{seconds:.0f} s" in (
            caption.inner_text()
        )
    clips = [decode_mp4(trace.runs[run].mp4).astype(int) for run in (2, 0)]
    rows, columns = (
        np.floor((np.arange(24) + 0.5) * n / 24).astype(int) for n in clips[0].shape[1:3]
    )
    a, b = (clip[4][rows][:, columns] for clip in clips)
    page.locator(".outlinenote input").uncheck()  # it would be drawn over the clip on the right
    page.evaluate(DRAWN)
    far = np.abs(a - b).mean()
    for side, wanted, other in (("dense", a, b), ("sparse", b, a)):
        drawn = pixels(page, f".stage .{side} canvas", 24)
        assert np.abs(drawn - wanted).mean() < 4
        assert np.abs(drawn - wanted).mean() < np.abs(drawn - other).mean() - 0.2 * far
    page.evaluate("() => explorer.select({ compare: 'wipe', wipe: 0.5 })")
    page.evaluate(DRAWN)
    drawn = pixels(page, ".stage .dense canvas", 24)
    assert np.abs(drawn[:, :11] - a[:, :11]).mean() < 4
    assert np.abs(drawn[:, 13:] - b[:, 13:]).mean() < 4
    label = page.locator(".stage .dense canvas").get_attribute("aria-label")
    assert names[2] in label
    assert names[0] in label
    assert "dense" not in label.lower()


def test_no_run_stands_beside_itself(trace, open_page):
    page = open_page(trace, "#run=1&against=3", reduced_motion="reduce")
    assert state(page)["against"] == 2
    page.evaluate("() => explorer.select({ run: 2 })")
    assert state(page)["against"] is None
    assert page.get_by_label("Clip on the left").input_value() == ""


def test_a_link_to_a_run_beside_that_is_not_there_shows_dense(trace, open_page):
    page = open_page(trace, "#run=1&against=9", reduced_motion="reduce")
    assert state(page)["against"] is None
    assert "run 9" in page.locator(".lab > .notice").inner_text()


def test_every_glossary_word_that_is_used_has_a_meaning():
    source = explorer_js()
    meanings = source.split("const WORDS = {", 1)[1].split("\n};", 1)[0]
    used = set(re.findall(r'\bterm\("([^"]+)"', source))
    assert len(used) > 10
    known = set(re.findall(r'^  "?([\w -]+?)"?:', meanings, re.MULTILINE))
    assert used <= known


def test_every_control_is_reached_by_tab(trace, open_page):
    page = open_page(trace, "#run=1", fresh=True, reduced_motion="reduce")
    page.evaluate("() => explorer.select({ cluster: 1, pair: 2, compare: 'wipe', tour: 3 })")
    page.wait_for_timeout(300)
    reached, total = page.evaluate(
        """async () => {
            const root = document.getElementById('explorer').shadowRoot;
            const all = [...root.querySelectorAll('button, select, input, [tabindex="0"]')]
                .filter((e) => e.checkVisibility() && !e.disabled);
            all.forEach((e) => { e.dataset.control = '1'; });
            window.reached = new Set();
            root.addEventListener('focusin', (e) => {
                if (e.target.dataset.control) window.reached.add(e.target);
            });
            document.activeElement?.blur();
            return [window.reached.size, all.length];
        }"""
    )
    assert (reached, total > 60) == (0, True)
    for _ in range(total + 5):
        page.keyboard.press("Tab")
    missed = page.evaluate(
        """() => [...document.getElementById('explorer').shadowRoot
            .querySelectorAll('[data-control]')]
            .filter((e) => e.isConnected && !window.reached.has(e))
            .map((e) => e.outerHTML.slice(0, 90))"""
    )
    assert missed == []


def test_nothing_is_said_by_colour_alone(page):
    found = page.evaluate(
        """() => {
            const root = document.getElementById('explorer').shadowRoot;
            const shapes = [...root.querySelectorAll('.legend .method path')]
                .map((p) => p.getAttribute('d'));
            const dash = (selector) =>
                getComputedStyle(root.querySelector(selector)).strokeDasharray;
            const lines = ['.curvebox .line:not(.second)', '.curvebox .line.second'];
            return { shapes, dashes: lines.map(dash) };
        }"""
    )
    assert len(set(found["shapes"])) == len(found["shapes"]) == 2  # a shape a method
    assert len(set(found["dashes"])) == 2  # a dash a line
    board = page.locator(".board")
    for _ in range(3):  # a block says in words what its colour says
        board.press("ArrowRight")
        reading = page.locator(".masks .reading strong").inner_text()
        kept = page.evaluate(
            """() => {
                const { kept, record } = explorer.inspect();
                const { cluster, pair } = explorer.selection();
                return kept[cluster * record.K + pair];
            }"""
        )
        assert reading == ("kept" if kept else "skipped")
