"""What stands beside the clips: the masks in small, and a cluster outlined on the sparse one."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from svg2.trace.file import load_trace
from svg2.trace.video import decode_mp4
from tests.viz.conftest import wait_for_clips
from viz.frames import FADE, KEPT_RGB, SKIPPED_RGB

READY_MADE = Path(__file__).parents[2] / "assets" / "traces"
# Hues of the objects, as OpenCV counts them: 180 round the circle.
HUES = {"red-ball": 0, "two-objects": 0, "spinning-cube": 27, "small-budget": 115}
FULL_COLOUR = 60  # of 255: of these grounds none is

pytestmark = pytest.mark.browser

PIXELS = """(canvas) => Array.from(
    canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"""
WHITE = (
    "(d) => d.filter((v, i) => i % 4 === 0 && v > 250 && d[i + 1] > 250 && d[i + 2] > 250).length"
)


def settle(page) -> None:
    page.locator(".outlinenote", has_text="Outlined").wait_for()
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 200)))"
    )


def note(page) -> str:
    return page.locator(".outlinenote").inner_text()


def test_the_small_masks_are_the_large_ones(trace, open_page):
    page = open_page(trace, "#run=0", reduced_motion="reduce")
    settle(page)
    small = page.locator("canvas.minimask")
    assert small.count() == 2
    reach = SKIPPED_RGB[0] - KEPT_RGB[0]
    for i, large in enumerate(page.locator("canvas.mask").all()):
        # 378 tokens fill at most 256 pixels there and 128 here: the mean kept shares agree
        shares = [
            np.mean(((SKIPPED_RGB[0] - np.array(data[0::4])) / reach).clip(0) ** (1 / FADE))
            for data in (small.nth(i).evaluate(PIXELS), large.evaluate(PIXELS))
        ]
        assert shares[0] == pytest.approx(shares[1], abs=0.03)
    before = small.first.evaluate(PIXELS)
    page.evaluate("() => explorer.select({ top_p: 0.3 })")
    page.wait_for_function(
        "(old) => document.querySelector('#explorer').shadowRoot"
        ".querySelector('.minimasks p').textContent !== old",
        arg=page.locator(".minimasks p").inner_text(),
    )
    assert small.first.evaluate(PIXELS) != before
    assert "what-if top-p 0.3): " in page.locator(".minimasks p").inner_text()


def test_what_is_outlined_is_of_the_call_on_show(trace, open_page):
    page = open_page(trace, "#run=0&layer=2", reduced_motion="reduce")
    for layer in (1, 2):
        page.evaluate("(layer) => explorer.select({ layer: layer - 1 })", layer)
        page.locator(".outlinenote", has_text=f"of layer {layer}, head").wait_for()
        assert f"(layer {layer}, head" in page.locator(".minimasks p").inner_text()


@pytest.mark.parametrize("name", sorted(path.stem for path in READY_MADE.glob("*.npz")))
def test_what_is_outlined_in_a_ready_made_clip_lies_on_its_object(name, open_page):
    trace = load_trace(READY_MADE / f"{name}.npz")
    page = open_page(trace, fresh=True, reduced_motion="reduce")
    wait_for_clips(page)
    settle(page)
    here = page.evaluate("() => explorer.selection()")
    at = [here[part] for part in ("run", "step", "layer", "head")]
    (record,) = (r for r in trace.records if [r.run, r.step, r.layer, r.head] == at)
    (cluster,) = re.findall(r"query cluster (\d+) of", note(page))
    hue, colour, _ = hsv_of_tokens(trace)[record.q_labels == int(cluster) - 1].T
    off = np.abs((hue - HUES[name] + 90) % 180 - 90)
    assert np.mean((off < 10) & (colour > FULL_COLOUR)) > 0.8
    assert f"of {trace.grid[0]} latent frames" in note(page)


def hsv_of_tokens(trace) -> np.ndarray:
    """Hue, saturation and value of each token of the dense clip, [N, 3]."""
    frames, rows, columns = trace.grid
    clip = decode_mp4(trace.dense_mp4)
    shown = clip[np.linspace(0, len(clip) - 1, frames).round().astype(int)]
    small = [cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA) for frame in shown]
    pixels = np.concatenate(small).reshape(1, -1, 3)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[0].astype(int)


def test_a_small_mask_leads_to_the_large_ones(trace, open_page):
    page = open_page(trace, "#run=0", reduced_motion="reduce")
    settle(page)
    page.get_by_role("button", name="To the mask sorted by cluster").click()
    box = page.locator("[data-view=masks]").bounding_box()
    assert abs(box["y"]) < 60


def test_a_cluster_is_outlined_and_named_and_can_be_hidden(trace, open_page):
    page = open_page(trace, "#run=0&frame=3", reduced_motion="reduce")
    wait_for_clips(page)
    settle(page)
    assert "latent frame" in note(page)
    sparse = page.locator(".stage .sparse canvas")
    with_line = sparse.evaluate(PIXELS)
    page.locator(".outlinenote input").uncheck()
    page.wait_for_timeout(100)
    assert sparse.evaluate(PIXELS) != with_line


def test_the_pinned_cluster_takes_its_place(trace, open_page):
    page = open_page(trace, "#run=0&frame=3", reduced_motion="reduce")
    settle(page)
    page.evaluate("() => explorer.select({ side: 'k', cluster: 4 })")
    here = page.evaluate("() => explorer.selection()")
    record = next(
        r
        for r in trace.records
        if (r.run, r.step, r.layer, r.head) == (0, here["step"], here["layer"], here["head"])
    )
    size = int((record.k_labels == 4).sum())
    page.locator(
        ".outlinenote", has_text=f"Outlined: key cluster 5 of layer {here['layer'] + 1}"
    ).wait_for()
    assert f"{size} token" in note(page)
