"""A view saved as a picture: what it holds, how large it is, and what it says."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.viz.conftest import wait_for_clips
from tests.viz.test_header import with_run

pytestmark = pytest.mark.browser

VIEWS = {
    # columns and width of each part, in CSS pixels; the picture has twice as many
    "compare": (2, 480),
    "clusters": (5, 240),
    "masks": (2, 560),
    "gain": (1, 800),
    "tradeoff": (1, 800),
}
MARGIN, GAP = 28, 16


def saved(page, view: str, button: str = "Save picture") -> bytes:
    with page.expect_download() as download:
        page.locator(f"[data-view={view}]").get_by_role("button", name=button).click()
    assert (
        download.value.suggested_filename == f"svg2-{view}.{'svg' if 'SVG' in button else 'png'}"
    )
    return open(download.value.path(), "rb").read()


@pytest.fixture(scope="module")
def timed(trace):
    return with_run(trace)


@pytest.fixture
def page(timed, open_page):
    page = open_page(timed, "#run=1&frame=3", reduced_motion="reduce", width=1440)
    wait_for_clips(page)
    page.wait_for_timeout(400)
    return page


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_saved_whole_at_twice_its_size(view, page):
    picture = Image.open(io.BytesIO(saved(page, view)))
    columns, cell = VIEWS[view]
    assert picture.width == 2 * max(640, 2 * MARGIN + columns * cell + (columns - 1) * GAP)
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    paper = pixels[0, 0]
    inked = np.abs(pixels - paper).sum(-1) > 60
    rows = np.flatnonzero(inked.any(1))
    assert rows[0] < 2 * 60  # the title stands on top
    assert picture.height - rows[-1] < 2 * 60  # and the lines below
    middle = inked[2 * (MARGIN + 26 + GAP) : -2 * 100]
    assert middle.mean() > (0.005 if view == "tradeoff" else 0.05)


@pytest.mark.parametrize(
    ("view", "label", "name"),
    [("clusters", "density map", "density"), ("masks", "budget curve", "budget")],
)
def test_the_smaller_charts_are_saved_too(view, label, name, page):
    with page.expect_download() as download:
        page.locator(f"[data-view={view}]").get_by_role("button", name=f"Save {label}").click()
    assert download.value.suggested_filename == f"svg2-{name}.png"
    pixels = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    body = pixels[2 * (MARGIN + 26 + GAP) : -2 * 100]
    accent = (np.abs(body - (47, 86, 208)).sum(-1) < 40).sum()
    assert accent > 300  # the strongest cell, or the curve of density
    assert (np.abs(body - pixels[0, 0]).sum(-1) > 60).mean() > 0.01


@pytest.mark.parametrize("width", [390, 1000, 1440])
@pytest.mark.parametrize("axis", ["density", "compute", "attention", "speedup"])
def test_no_word_of_a_chart_is_cut_in_its_picture(axis, width, timed, open_page):
    page = open_page(timed, f"#run=1&axis={axis}", width=width)
    page.wait_for_timeout(200)
    outside = page.evaluate("""() => [...document.getElementById('explorer').shadowRoot
        .querySelectorAll('.chart text, .timechart text')].filter((text) => {
            const { width, height } = text.ownerSVGElement.viewBox.baseVal;
            const { left, right, top, bottom } = text.getBoundingClientRect();
            const frame = text.ownerSVGElement.getBoundingClientRect();
            return left < frame.left - 0.5 || right > frame.left + width + 0.5
                || top < frame.top - 2 || bottom > frame.top + height + 4;
        }).map((text) => text.textContent)""")
    assert outside == []


@pytest.mark.parametrize("shares", [(0.2, 0.36, 0.25), (0.044, 0.044, 0.09), (1.0, 1.0, 1.0)])
def test_the_lines_and_the_page_name_one_share(shares, trace, open_page):
    names = ("density", "density_run", "compute_density")
    page = open_page(with_run(trace, **dict(zip(names, shares, strict=True))))
    share = page.locator(".metric", has_text="Computed").locator("dd").first.inner_text()
    said = page.evaluate("() => explorer.inspect().pictureLines")[1].split(" · ")
    assert f"{share} of all pairs computed" in said
    point = page.locator("[data-view=tradeoff] .point.current")
    assert f", {share} computed, " in point.get_attribute("aria-label")


@pytest.mark.parametrize("mode", ["side", "wipe", "difference", "blink"])
def test_no_words_run_into_each_other_or_out_of_the_picture(mode, trace, open_page):
    page = open_page(trace, f"#run=2&against=1&compare={mode}", reduced_motion="reduce")
    wait_for_clips(page)
    pixels = np.asarray(Image.open(io.BytesIO(saved(page, "compare"))).convert("RGB")).astype(int)
    inked = np.abs(pixels - pixels[0, 0]).sum(-1) > 60
    assert not inked[:, -2 * MARGIN + 8 :].any()
    first_clip = np.flatnonzero(inked[:, 2 * MARGIN : 2 * (MARGIN + 480)].mean(1) > 0.9)[0]
    gap = inked[
        2 * (MARGIN + 2 * 30) : first_clip, 2 * (MARGIN + 480) + 2 : 2 * (MARGIN + 480 + GAP) - 2
    ]
    assert not gap.any()


def test_where_nothing_is_drawn_nothing_is_saved(trace, open_page):
    page = open_page(with_run(trace, stages={"dense_attention": None}))
    view = page.locator("[data-view=gain]")
    view.get_by_role("button", name="Save picture").click()
    assert view.locator(".save [role=status]").inner_text() == "Nothing is drawn here."


def test_a_mask_is_saved_without_moire(page):
    """Every pixel of the mask is a square of equal size, so no pattern comes in."""
    picture = np.asarray(Image.open(io.BytesIO(saved(page, "masks"))).convert("RGB")).astype(int)
    canvas = page.locator("canvas.mask").first
    bins = canvas.evaluate("(c) => c.width")
    small = np.array(
        canvas.evaluate(
            "(c) => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        )
    ).reshape(bins, bins, 4)[..., :3]
    top, left, side = 2 * (MARGIN + 26 + 16 + 25), 2 * (MARGIN + 42), 2 * (560 - 42)  # axes
    centres = ((np.arange(bins) + 0.5) * side / bins).astype(int)
    found = picture[top + centres][:, left + centres]
    close = np.abs(found - small).sum(-1) < 12
    assert close.mean() > 0.9  # lines between frames and clusters lie over the rest


def pixels_of(canvas, count: int) -> np.ndarray:
    """The clip's own pixels, `count` in a row, on a canvas that shows each as a square."""
    width, rows = canvas.evaluate(
        """(c, count) => {
            const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            const step = Math.floor(c.width / count), rows = [];
            for (let y = step >> 1; y < c.height; y += step) {
                const row = [];
                for (let x = step >> 1; x < c.width; x += step) {
                    const at = 4 * (y * c.width + x);
                    row.push(Array.from(data.subarray(at, at + 3)));
                }
                rows.push(row);
            }
            return [c.width, rows];
        }""",
        count,
    )
    assert width % count == 0
    return np.array(rows, dtype=float)


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_a_clip_is_saved_without_moire_whatever_the_page_s_width(width, timed, open_page):
    """Where two neighbouring pixels differ much, each takes its exact share of the picture."""
    page = open_page(timed, "#run=1&frame=3", width=width, reduced_motion="reduce")
    wait_for_clips(page)
    page.wait_for_timeout(300)
    picture = np.asarray(Image.open(io.BytesIO(saved(page, "compare"))).convert("RGB"))
    count = timed.request["width"]
    source = pixels_of(page.locator(".stage .dense canvas"), count).sum(-1)
    span = 960 / count
    left, top = 2 * MARGIN, 2 * (MARGIN + 26 + GAP + 25)
    wrong = []
    for y in range(source.shape[0]):
        row = picture[int(top + (y + 0.5) * span), left : left + 960].astype(float).sum(-1)
        for x in np.flatnonzero(np.abs(np.diff(source[y])) > 150):
            a, b = source[y, x], source[y, x + 1]
            first, last = round((x + 0.5) * span), round((x + 1.5) * span)
            share = ((row[first:last] - b) / (a - b)).sum()
            wrong.append(abs(share - ((x + 1) * span - first)))
    assert len(wrong) > 30
    assert np.median(wrong) < 0.1
    assert np.quantile(wrong, 0.95) < 0.3


def test_the_chart_is_saved_as_svg_with_its_colours(page):
    text = saved(page, "tradeoff", "Save SVG").decode()
    assert text.startswith("<svg")
    assert "PSNR, dB" in text
    assert "rgb(63, 111, 216)" in text  # the marks of SVG2
    assert "tabindex" not in text
    assert "SVG2 + compensation" not in text
    assert ">SVG2</text>" in text  # the legend goes with the chart


@pytest.mark.parametrize(
    ("view", "title"), [("tradeoff", "Trade-off"), ("gain", "Where the time")]
)
def test_an_svg_stands_on_a_slide_by_itself(view, title, page):
    text = saved(page, view, "Save SVG").decode()
    said = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert said[0].startswith(title)
    lines = " ".join(page.evaluate("() => explorer.inspect().pictureLines"))
    for part in ("“", "seed", "top-p 0.9", "dB against dense", "SVG2 Lab"):
        assert part in lines
        assert any(part in one for one in said)
    assert "NaN" not in text
    root = ElementTree.fromstring(text)
    assert {root.get("width"), root.get("height")} == set(root.get("viewBox").split()[2:])


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"cluster": None}, ""),
        ({"side": "q", "cluster": 3}, "pinned query cluster 4"),
        ({"side": "k", "cluster": 3}, "pinned key cluster 4"),
        (
            {"side": "q", "cluster": 3, "pair": 5},
            "pinned the block of query cluster 4 and key cluster 6",
        ),
        (
            {"side": "q", "cluster": 3, "pair": 5, "zoom": True},
            "zoomed to the block of query cluster 4 and key cluster 6",
        ),
    ],
)
def test_a_picture_names_pin_zoom_and_budget(patch, said, page):
    page.evaluate("(patch) => explorer.select(patch)", patch)
    lines = page.evaluate("() => explorer.inspect().pictureLines")
    assert lines[2].startswith("step 6, layer 2, head 1, top-p 0.9")
    assert said in lines[2]
    page.evaluate("() => explorer.select({ top_p: 0.6 })")
    lines = page.evaluate("() => explorer.inspect().pictureLines")
    assert "what-if top-p 0.6" in lines[2]


def test_the_lines_name_run_place_and_origin(page):
    lines = page.evaluate("() => explorer.inspect().pictureLines")
    assert "“" in lines[0]
    assert "17 frames of" in lines[0]
    assert "SVG2 · top-p 0.9" in lines[1]
    assert "dB against dense" in lines[1]
    assert lines[2].startswith("step 6, layer 2, head 1, top-p 0.9 · ")
    assert lines[2].endswith("SVG2 Lab")
