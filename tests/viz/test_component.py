"""The explorer in a Gradio page: fetches its payload, keeps its selection, raises `release`."""

from __future__ import annotations

from dataclasses import replace

import gradio as gr
import pytest
from playwright.sync_api import expect

from viz import explorer_component, explorer_payload, explorer_value, payload_bytes

pytestmark = pytest.mark.browser


@pytest.fixture
def demo(trace, tmp_path):
    fewer = replace(
        trace, runs=trace.runs[:2], records=tuple(r for r in trace.records if r.run < 2)
    )
    fewer.runs[0].result.update(
        svg2_seconds=7.0, dense_seconds=13.0, total_seconds={"decode": 0.6}
    )
    for name, shown, mode in (("a", fewer, "ready-made trace"), ("b", trace, "live CPU")):
        (tmp_path / name).mkdir()
        payload = payload_bytes(explorer_payload(shown, mode))
        (tmp_path / name / "payload").write_bytes(payload)
    address = lambda name: f"/gradio_api/file={tmp_path / name / 'payload'}"  # noqa: E731

    def released(event: gr.EventData):
        return f"{event.method} {event.top_p:g} {event.trace}"

    with gr.Blocks() as page:
        gr.Slider(
            0, 1, 0.9, step=0.005, label="Budget of the form", interactive=True, elem_id="form"
        )
        explorer = gr.HTML(
            **explorer_component(
                explorer_value(address("a"), can_run=True), {"budget": "#form input[type=number]"}
            )
        )
        heard = gr.Textbox(label="heard")
        newer = gr.Button("newer")
        busy = gr.Button("busy")
        explorer.release(released, outputs=heard)
        newer.click(lambda: explorer_value(address("b"), can_run=True), outputs=explorer)
        busy.click(
            lambda: explorer_value(
                address("b"),
                can_run=True,
                has_dense=True,
                live={"text": "dense: denoise, step 3 of 20", "done": 0.2},
            ),
            outputs=explorer,
        )
    page.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(tmp_path)])
    yield page
    page.close()


def test_the_component_lives_in_a_gradio_page(demo, chromium):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(demo.local_url)
    page.locator(".metrics").wait_for()
    assert page.locator(".mode").inner_text() == "ready-made trace"

    tiles = page.get_by_role("group", name="Latent frames")
    tiles.focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("Layer", exact=True).input_value() == "1"

    slider = page.get_by_label("Budget top-p")
    for _ in range(10):
        slider.press("ArrowLeft")
    offer = page.locator(".offer .mainbutton")
    assert offer.inner_text() == "Measure 0.85, about 21 s"  # both sides and decoding
    form = page.locator("#form input[type=number]")
    expect(form).to_have_value("0.85")  # one budget in the form and in the view
    form.fill("0.525")  # also what the form holds moves the view
    assert page.locator(".budgetvalue").inner_text() == "0.525"
    page.wait_for_timeout(600)  # more than a release waits for: nothing has been asked for
    assert page.get_by_label("heard").input_value() == ""
    slider.press("Enter")
    expect(page.get_by_label("heard")).to_have_value("svg2 0.525 a")  # the run it opens with
    page.locator("#form input[type=range]").evaluate(
        "(s) => { s.value = 0.6; s.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    offer.click()
    expect(page.get_by_label("heard")).to_have_value("svg2 0.6 a")
    page.get_by_role("button", name="Back to the measured 0.9").click()
    assert offer.is_hidden()
    slider.press("Enter")  # what was measured is not asked for
    expect(form).to_have_value("0.9")
    assert page.get_by_label("heard").input_value() == "svg2 0.6 a"

    page.get_by_role("button", name="newer").click()
    page.get_by_text("live CPU").wait_for()
    assert page.get_by_label("Layer", exact=True).input_value() == "1"

    # the run that came in is shown, at its own budget
    assert (
        page.locator(".runs [aria-pressed=true]").inner_text() == "SVG2 + compensation · top-p 0.9"
    )
    assert page.locator(".budgetvalue").inner_text() == "0.9"

    page.get_by_role("button", name="busy").click()
    page.get_by_text("dense: denoise, step 3 of 20").wait_for()
    assert page.get_by_label("Layer", exact=True).input_value() == "1"

    slider.press("ArrowLeft")
    assert offer.inner_text().startswith("Measure 0.895")
    expect(form).to_have_value("0.895")

    page.evaluate("() => document.body.classList.add('dark')")
    page.locator(".lab[data-theme=dark]").wait_for()
    context.close()
    assert not troubles, troubles
