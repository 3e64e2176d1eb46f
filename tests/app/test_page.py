"""The whole flow on the real page: open, generate, release, cancel, refuse, upload, download."""

from __future__ import annotations

import io
import re
import urllib.error
import urllib.request
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from svg2.trace.file import load_trace, trace_bytes
from tests.traces import make_synthetic_trace
from viz.page.open_traces import OpenTraces
from viz.page.words import KNOWN, ROOT

pytestmark = pytest.mark.browser

PROMPT = "#prompt textarea"


def field(page, name: str):
    return page.locator(f"#{name} input")


def unfold(page, title: str) -> None:
    settings = page.locator("#settings[aria-expanded=false]")
    if settings.is_visible():  # a narrow page keeps its inputs folded
        settings.click()
    page.locator("#controls button.label-wrap:not(.open)", has_text=title).click()


def says(page, text: str | re.Pattern, timeout: float = 90_000) -> None:
    page.locator("#status p", has_text=text).first.wait_for(timeout=timeout)


def generate(page) -> None:
    page.click("#generate")
    says(page, "Done:")
    page.locator("#explorer .mode", has_text="live CPU").wait_for()


@pytest.fixture(scope="module")
def page(visit_all):
    """One page for the tests that leave a ready-made trace open and nothing running."""
    return visit_all()


def test_a_ready_made_trace_is_open_at_load(page) -> None:
    assert page.locator("#explorer .mode").inner_text() == "ready-made trace"
    assert "a red ball" in page.locator("#explorer .prompt").inner_text()
    assert page.locator("#explorer canvas").count() > 4
    assert page.locator("#generate").is_enabled()
    assert not page.locator("#cancel").is_visible()


def test_generate_then_release_a_budget(visit) -> None:
    page = visit()
    page.fill(PROMPT, "a blue cube to the left")
    page.click("#generate")
    # Of steps this short the timing may well be disturbed, and says so.
    says(
        page, re.compile(r"Done: (.* than dense here|.*× as fast as dense here|timing disturbed)")
    )
    page.locator("#explorer .mode", has_text="live CPU").wait_for()
    assert "a blue cube to the left" in page.locator("#explorer .prompt").inner_text()
    assert page.locator("#generate").is_enabled()
    query = parse_qs(urlsplit(page.url).query)
    assert query["prompt"] == ["a blue cube to the left"]
    assert query["num_inference_steps"] == ["4"]

    slider = page.locator("#explorer input.budget")
    slider.evaluate("""s => {
        s.value = 0.5;
        s.dispatchEvent(new Event('input', { bubbles: true }));
        s.dispatchEvent(new Event('change', { bubbles: true }));
    }""")
    offer = page.get_by_role("button", name=re.compile(r"^Measure 0\.5, about \d"))
    expect(field(page, "top_p").first).to_have_value("0.5")
    assert page.locator("#cancel").is_hidden()  # asked first
    offer.click()
    runs = page.locator("#explorer .runs button")
    runs.nth(1).wait_for()
    assert [re.sub(r"\s+", " ", text) for text in runs.all_inner_texts()] == [
        "SVG2, routed by error · top-p 0.9",
        "SVG2, routed by error · top-p 0.5",
    ]
    assert page.locator("#cancel").is_hidden()


BAD = [
    ("prompt", "", "The prompt is empty: say what the video should show."),
    ("prompt", "ball " * 2000, "The prompt has 10,000 characters"),
    ("num_inference_steps", "0", "Steps must be a whole number from 1"),
    ("num_frames", "-3", "Frames must be a whole number from 1"),
    ("width", "100000", "width must be a whole number from 16"),
    ("num_q_clusters", "5000", "this video has only"),
    ("num_k_clusters", "7.5", "Key clusters must be a whole number"),
    ("guidance_scale", "-1", "Guidance must be a number from 0"),
    ("top_p", "0", "Top-p must be a number above 0 and at most 1, not 0"),
]


def test_bad_input_gets_one_sentence_and_is_kept(page) -> None:
    unfold(page, "Clusters")
    unfold(page, "Video and sampling")
    for name, value, sentence in BAD:
        box = page.locator(PROMPT) if name == "prompt" else field(page, name).first
        before = box.input_value()
        box.fill(value)
        box.press("Tab")
        page.click("#generate")
        says(page, sentence)
        assert page.locator("#status p").count() == 1
        assert box.input_value() == value
        assert page.locator("#generate").is_enabled()
        box.fill(before)
    assert page.locator("#explorer .mode").inner_text() == "ready-made trace"


def test_the_first_tab_leads_past_the_form(visit) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the comparison"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.closest('#workspace') !== null")


def test_cancel_stops_within_a_step_and_the_next_run_works(visit) -> None:
    page = visit("?num_inference_steps=200&width=128&height=128")
    unfold(page, "Video and sampling")
    page.wait_for_function("document.querySelector('#width input')?.value === '128'")
    page.click("#generate")
    page.locator("#status .progress", has_text=re.compile(r"step [1-9]\d* of 200")).wait_for()
    page.click("#cancel")
    says(page, "Cancelled. What was shown before stays.")
    assert page.locator("#explorer .mode").inner_text() == "ready-made trace"
    page.locator("#cancel").wait_for(state="hidden")
    field(page, "num_inference_steps").fill("4")
    generate(page)


def test_address_sets_inputs_and_names_what_it_cannot(visit) -> None:
    page = visit("?seed=42&top_p=7&method=svg2-comp&prompt=a+blue+ball&nonsense=1")
    says(page, "In this page's address: Top-p must be a number above 0 and at most 1, not 7.")
    unfold(page, "Video and sampling")
    assert field(page, "seed").input_value() == "42"
    assert page.locator(PROMPT).input_value() == "a blue ball"
    assert page.locator("#method input").input_value() == "SVG2 + compensation"


def test_prompts_are_never_markup(visit) -> None:
    page = visit()
    page.fill(PROMPT, "<img src=x onerror='window.stung = 1'> a red ball")
    generate(page)
    assert page.locator("#explorer .prompt").inner_text().count("<img src=x")
    assert page.evaluate("window.stung") is None


@pytest.mark.parametrize("name", ["ready", "method", "model"])
@pytest.mark.parametrize("key", ["Tab", "Shift+Tab"])
def test_a_list_closes_on_tab(name: str, key: str, page) -> None:
    if name == "model" and not page.locator("#model").is_visible():
        unfold(page, "Model")
    box = page.locator(f"#{name} input")
    chosen = box.input_value()
    box.click()
    page.locator("[role=option]").first.wait_for()
    page.keyboard.press(key)
    expect(page.locator("[role=option]")).to_have_count(0)
    page.wait_for_timeout(300)
    assert page.locator("[role=option]").count() == 0
    assert box.input_value() == chosen


def test_surprise_me_brings_another_prompt(page) -> None:
    unfold(page, "Examples")
    before, said = page.locator(PROMPT).input_value(), page.locator("#status").inner_text()
    page.click("#surprise")
    expect(page.locator(PROMPT)).not_to_have_value(before, timeout=90_000)
    assert KNOWN.covers(page.locator(PROMPT).input_value())
    assert page.locator("#status").inner_text() == said


def test_a_bad_trace_loses_nothing(page) -> None:
    sound = trace_bytes(make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3))
    unfold(page, "This trace")
    no_runs = trace_bytes(replace(load_trace(sound), runs=(), records=()))
    no_archive = "The file is no trace: it is not an .npz archive, or is cut short."
    bad = [  # each with another sentence than the one before: while one is read, none is taken
        ("cut", sound[:-200], no_archive),
        ("no-runs", no_runs, "The trace holds no sparse run, so there is nothing to compare."),
        ("none", b"", no_archive),
    ]
    for name, data, sentence in bad:
        page.set_input_files(
            "#traces input[type=file]",
            {"name": f"{name}.npz", "mimeType": "application/octet-stream", "buffer": data},
        )
        says(page, sentence)
        assert page.locator("#status p").count() == 1
        assert str(ROOT) not in page.content()
    assert page.locator("#explorer .mode").inner_text() == "ready-made trace"


def test_upload_choose_and_download_traces(visit) -> None:
    page = visit()
    unfold(page, "This trace")
    trace = make_synthetic_trace(steps=3, layers=1)
    trace.request["prompt"] = "a trace from elsewhere"
    page.set_input_files(
        "#traces input[type=file]",
        {"name": "t.npz", "mimeType": "application/octet-stream", "buffer": trace_bytes(trace)},
    )
    says(page, "The trace is open.")
    page.locator("#explorer .mode", has_text="upload").wait_for()
    with page.expect_download() as waiting:
        page.locator("#links a", has_text="this trace").click()
    data = waiting.value.path().read_bytes()
    assert load_trace(data).request["prompt"] == "a trace from elsewhere"
    with page.expect_download() as waiting:
        page.locator("#links a", has_text="offline").click()
    assert waiting.value.path().read_bytes()[:2] == b"PK"

    page.click("#ready input")
    page.locator("[role=option]", has_text="a blue cube bouncing").click()
    page.locator("#explorer .prompt", has_text="a blue cube bouncing").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_width_scrolls_sideways(visit, theme: str) -> None:
    page = visit(width=1440, theme=theme)
    for width in (1440, 1024, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (theme == "dark")


def test_the_inputs_and_the_place_stay_in_sight(page) -> None:
    page.locator("#explorer .view.masks").evaluate("(view) => view.scrollIntoView()")
    page.wait_for_timeout(200)
    assert page.evaluate("window.scrollY") > 900
    assert page.locator("#controls").bounding_box()["y"] == 0
    assert page.locator("#explorer .placebar").bounding_box()["y"] == 0


@pytest.mark.parametrize("size", [(1024, 768), (1280, 600), (900, 500)])
def test_generate_is_in_sight_in_a_low_window(size, page) -> None:
    before = page.viewport_size
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    box = page.locator("#generate").bounding_box()
    hit = page.evaluate(
        "([x, y]) => document.elementFromPoint(x, y)?.closest('button')?.id",
        [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2],
    )
    page.set_viewport_size(before)
    assert box["y"] + box["height"] <= size[1]
    assert hit == "generate"


def test_on_a_phone_the_result_comes_first(visit) -> None:
    page = visit(width=390)
    headline = page.locator("#explorer .headline")
    assert headline.bounding_box()["y"] < 450
    assert page.locator(PROMPT).is_hidden()
    button = page.get_by_role("button", name="Make or open another video")
    button.press("Enter")
    page.fill(PROMPT, "a blue cube to the left")
    assert button.get_attribute("aria-expanded") == "true"
    page.click("#generate")
    says(page, "Done:")
    button.click()
    assert page.locator("#generate").is_hidden()
    page.locator("#status p", has_text="Done:").wait_for()  # what was said stays in sight
    assert "a blue cube to the left" in page.locator("#explorer .prompt").inner_text()
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.locator("#generate").is_visible()  # nothing is ever folded beside the result
    assert button.is_hidden()


def test_nothing_is_served_but_open_traces(address: str, traces: OpenTraces) -> None:
    key = next(iter(traces.ready_made))
    with urllib.request.urlopen(f"{address}lab/{key}/trace.npz") as answer:
        assert load_trace(io.BytesIO(answer.read()).getvalue()).runs
    for path in ("lab/nobody/trace.npz", f"lab/{key}/passwd", "gradio_api/file=/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address + path)
        assert refused.value.code in (403, 404)
        assert str(ROOT) not in refused.value.read().decode()


def test_another_model_brings_its_settings_and_says_why_it_cannot_run_here(visit) -> None:
    page = visit()
    unfold(page, "Model")
    page.locator("#menu summary", has_text="can't run here").click()
    page.locator("#menu li", has_text="Wan 2.1 14B").wait_for()
    assert not page.locator("#image").is_visible()
    page.locator("#model input").click()
    page.get_by_role("option", name="HunyuanVideo image to video").click()
    page.locator("#about_model", has_text="GPU").wait_for()
    assert "Tencent" in page.locator("#about_model").inner_text()
    page.locator("#image").wait_for()
    unfold(page, "Video and sampling")
    # An opened fold mounts its fields a moment later.
    expect(field(page, "num_frames").first).to_have_value("129", timeout=90_000)
    page.click("#generate")
    says(page, "HunyuanVideo image to video starts from an image: name its file.")


def test_how_a_start_image_is_cut_is_shown(visit, tmp_path) -> None:
    page = visit(checked=False)  # Gradio's own progress of an upload warns in the console
    unfold(page, "Model")
    page.locator("#model input").click()
    page.get_by_role("option", name="HunyuanVideo image to video").click()
    page.locator("#image").wait_for()
    portrait = tmp_path / "portrait.png"
    Image.fromarray(np.full((300, 100), 30_000, np.uint16)).save(portrait)  # 16-bit grey
    page.locator("#image input[type=file]").set_input_files(portrait)
    page.locator("#image_cut", has_text="are cut off, above and below").wait_for()
    page.locator("#image_cut img.cut").wait_for()
