"""What a run is called, where its seconds went and where they were measured: only what holds."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.viz.conftest import wait_for_clips

pytestmark = pytest.mark.browser

STAGES = {
    "kmeans": 1.0,
    "permute": 0.5,
    "select": 0.5,
    "attention": 2.0,
    "other": 1.0,
    "dense_attention": 1.5,
}


def with_run(trace, config=None, stages=None, call=None, **result):
    """The trace with its first run alone, changed."""
    run = trace.runs[0]
    run = replace(
        run,
        config={**run.config, **(config or {})},
        result={**run.result, "stage_seconds": {**STAGES, **(stages or {})}, **result},
        call=run.call if call is None else call,
    )
    return replace(trace, runs=(run,), records=tuple(r for r in trace.records if r.run == 0))


def later(call, by: int):
    """The calls of a run whose first sparse step is later."""
    return call + np.array([by, 0, 0], call.dtype)


def sentence(page) -> str:
    return page.locator(".timebars p").inner_text()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"speedup": 1.8612}, "1.86× as fast, "),
        ({"speedup": 1.002}, "as fast as dense, "),
        ({"speedup": 0.8621}, "16 % slower here, "),
        ({"speedup": 2.4, "is_disturbed": True}, "timing disturbed, "),
    ],
)
def test_the_headline_says_pace_in_words_and_none_where_it_was_disturbed(
    result, said, trace, open_page
):
    page = open_page(
        with_run(trace, density=0.2, density_run=0.36, compute_density=0.25, **result)
    )
    line = page.locator(".headline").inner_text()
    # 80 % of the calls ran sparse: 0.36 + 0.8 (0.25 - 0.2)
    assert line.startswith(f"Same prompt, same seed: 40 % of the attention computed, {said}")
    shown = page.locator(".metrics").inner_text()
    assert ("disturbed" in shown) == bool(result.get("is_disturbed"))
    assert "40 %" in shown


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"order": "in turns", "is_disturbed": False}, "took turns, step by step, so both met"),
        ({"order": "in turns", "is_disturbed": True}, "measure again"),
        ({"order": "dense earlier", "is_scaled": True}, "timed earlier. The speedup is scaled"),
        ({"order": "dense first", "is_scaled": True}, "scaled by the work that both share"),
        ({"order": "dense first", "is_scaled": False}, "so what else the machine did in between"),
        ({}, "Each was run once, the sparse run after the dense one"),
    ],
)
def test_how_both_were_timed_is_said(result, said, trace, open_page):
    given = {"dense_reused": result.get("order") == "dense earlier", **result}
    page = open_page(with_run(trace, speedup_quartiles=[1.5, 1.75], **given))
    assert said in page.locator("[data-view=gain] .side").inner_text()
    assert "at 1.50× to 1.75×" in page.locator(".metrics").inner_text()
    assert page.get_by_role("button", name="Measure again").is_hidden()  # nothing can run here


def test_a_disturbed_run_can_be_measured_again_where_a_model_is_loaded(trace, open_page):
    page = open_page(with_run(trace, is_disturbed=True))
    page.evaluate("() => explorer.receive({ can_run: true })")
    assert (
        page.get_by_role("button", name="Measure again").count() == 0
    )  # a file alone runs nothing


def test_a_sentence_says_where_the_time_went(trace, open_page):
    page = open_page(with_run(trace, speedup=1.2, compute_density=0.4))
    assert sentence(page) == (
        "Attention is 70 % of the dense loop, and only that can shrink. The first step stays"
        " dense (1.5 s of attention); clustering, sorting and selecting take 2.0 s. So time gains"
        " less than work."
    )
    bar = page.locator(".timebar").nth(1)
    assert "attention that stays dense 1.5 s" in bar.get_attribute("aria-label")
    labels = page.locator(".timebar .part text").all_text_contents()
    assert labels
    assert all(text.endswith(" s") for text in labels), labels
    legend = page.locator(".timechart .key").all_text_contents()
    assert legend == [  # each filling is named, also where its part has no room for words
        "attention",
        "attention that stays dense",
        "clustering, sorting, selecting",
        "the rest of the model",
    ]
    names = page.locator(".timechart .tick").all_text_contents()
    assert "0 s" in names


def test_blocks_that_take_longer_per_pair_are_named(trace, open_page):
    said = "Blocks also take longer per pair than dense attention does."
    assert said in sentence(open_page(with_run(trace, speedup=1.2, compute_density=0.05)))
    assert said not in sentence(open_page(with_run(trace, speedup=1.2, compute_density=0.9)))


def test_the_legend_names_no_part_that_neither_run_has(trace, open_page):
    page = open_page(with_run(trace, stages={"dense_attention": 0.0}))
    legend = page.locator(".timechart .key").all_text_contents()
    assert legend == ["attention", "clustering, sorting, selecting", "the rest of the model"]


def test_the_foot_counts_the_calls_of_the_run_on_show(trace, open_page):
    """Three runs of one trace have records each; the page shows one of them."""
    page = open_page(trace, "#run=1")
    for run in range(len(trace.runs)):
        own = sum(record.run == run for record in trace.records)
        page.evaluate("(run) => explorer.select({ run })", run)
        assert f"{own} recorded calls of" in page.locator(".foot").inner_text()
        assert page.locator(".readout").inner_text().count(f"of {own} recorded calls") == 1


def test_time_that_gains_as_much_as_work_is_not_said_to_gain_less(trace, open_page):
    page = open_page(with_run(trace, speedup=1.05, compute_density=1.0))
    assert "gains less" not in sentence(page)
    assert page.locator(".timebar").count() == 2


def test_warm_up_is_as_it_ran_and_dense_layers_are_named(trace, open_page):
    run = trace.runs[0]
    shown = with_run(
        trace,
        config={"dense_layers": 2, "warmup_fraction": 0.0},
        call=later(run.call, 2),
    )
    page = open_page(replace(shown, records=()))
    assert "The first 3 steps and the first 2 layers stay dense (1.5 s" in sentence(page)
    shown = with_run(trace, call=later(run.call, -1), config={"warmup_fraction": 0.5})
    page = open_page(replace(shown, records=()))
    assert "dense (" not in sentence(page)
    assert "Clustering, sorting and selecting take 2.0 s." in sentence(page)


def test_dense_attention_that_was_not_measured_draws_no_bars(trace, open_page):
    page = open_page(with_run(trace, stages={"dense_attention": None}))
    assert page.locator(".timebar").count() == 0
    assert "0.0 s" not in page.locator(".head").inner_text()


def test_a_dense_time_from_before_is_marked_wherever_it_stands(trace, open_page):
    page = open_page(with_run(trace, dense_reused=True))
    for place in (".timebar >> nth=0", ".stage .dense figcaption", ".metrics"):
        assert "timed earlier" in page.locator(place).text_content()
    page = open_page(with_run(trace))
    assert "timed earlier" not in page.locator(".lab").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_part_of_a_bar_can_be_read(theme, trace, open_page):
    page = open_page(
        with_run(trace, stages={"kmeans": 6.0}, svg2_seconds=12.0), theme=theme, width=1440
    )
    page.locator(".timebar .part text").first.wait_for()
    colours = page.evaluate(  # in one go, since a view that is drawn anew has other parts
        """() => {
            const { shadowRoot } = document.getElementById('explorer');
            const parts = [...shadowRoot.querySelectorAll('.timebar .part')];
            return parts.filter((p) => p.querySelector('text')).map((p) => {
                const fill = (tag) => getComputedStyle(p.querySelector(tag)).fill;
                return [p.getAttribute('class'), fill('text'), fill('rect')];
            });
        }"""
    )
    assert any("clustering" in name for name, *_ in colours)
    light = {name: [sum(map(int, re.findall(r"\d+", c)[:3])) for c in pair]
             for name, *pair in colours if "warm" not in name}  # fmt: skip
    assert all(abs(text - ground) > 200 for text, ground in light.values()), light


def test_both_clips_stand_at_one_height_on_a_phone(trace, open_page):
    page = open_page(trace, "#run=3", width=390)
    wait_for_clips(page)
    dense, sparse = (page.locator(f".stage .{n} canvas") for n in ("dense", "sparse"))
    assert dense.bounding_box()["y"] == pytest.approx(sparse.bounding_box()["y"], abs=1)
    captions = [c.bounding_box()["height"] for c in page.locator(".stage figcaption").all()]
    assert captions[1] > captions[0]  # where the names are of one length, this shows nothing


def test_runs_that_differ_in_clusters_have_names_that_differ(trace, open_page):
    other = replace(trace.runs[1], config={**trace.runs[1].config, "num_k_clusters": 7})
    page = open_page(replace(trace, runs=(trace.runs[0], other, trace.runs[2])), "#run=1")
    names = page.locator(".runs button").all_inner_texts()
    assert names == [
        "SVG2 · top-p 0.9 · 11/29",
        "SVG2 · top-p 0.7 · 11/7",
        "SVG2 + compensation · top-p 0.9 · 11/29",
    ]
    label = page.locator(".chart .point").nth(1).get_attribute("aria-label")
    assert label.startswith("SVG2, top-p 0.7, 11/7: ")
    # a budget that only other clusters ran at is no measured one of these
    slider = page.get_by_label("Budget top-p")
    page.evaluate("() => explorer.select({ top_p: 0.715 })")
    for _ in range(3):
        slider.press("ArrowLeft")
    page.get_by_text("top-p 0.7 stays a what-if").wait_for()
    assert page.locator(".runs [aria-pressed=true]").inner_text() == names[0]


def test_a_run_identical_to_dense_says_so_on_the_chart(trace, open_page):
    page = open_page(with_run(trace, config={"top_p": 1.0}, psnr_db=None))
    assert page.locator(".pointname").text_content() == "p 1, identical"


def test_the_footer_names_the_machine_of_the_run_on_show(trace, open_page):
    own = {
        "hardware": "Another Chip, 8 cores",
        "versions": {"torch": "9.9", "triton": None},
        "commit": "abcdef0123456789",
        "date": "2026-01-02T00:00:00+00:00",
    }
    second = replace(trace.runs[1], result={**trace.runs[1].result, **own})
    page = open_page(replace(trace, runs=(trace.runs[0], second, trace.runs[2])), "#run=1")
    foot = page.locator(".foot p").first
    assert "SVG2 · top-p 0.9: measured on synthetic · svg2 0" in foot.inner_text()
    page.locator(".runs button").nth(1).click()
    text = foot.inner_text()
    assert "top-p 0.7: measured on Another Chip, 8 cores · torch 9.9 · commit abcdef012345" in text
    assert "triton" not in text


@pytest.mark.parametrize(
    ("device", "sparse", "dense", "said"),
    [
        ("cpu", 1 << 30, 3 << 28, "1.00 GiB of this process; dense 0.75 GiB"),
        ("cuda", 5 << 30, 4 << 30, "5.00 GiB on the GPU; dense 4.00 GiB"),
        ("cuda", None, 1 << 30, "not measured on the GPU; dense 1.00 GiB"),
        ("cpu", 1 << 30, None, "1.00 GiB of this process; dense not measured"),
    ],
)
def test_peak_memory_of_both_runs_stands_side_by_side(
    device, sparse, dense, said, trace, open_page
):
    peaks = {"peak_memory_bytes": sparse, "dense_peak_memory_bytes": dense}
    page = open_page(with_run(trace, device=device, **peaks))
    shown = page.locator("[data-view=gain] .side p", has_text="Peak memory").inner_text()
    assert said in " ".join(shown.split())


def test_runs_that_share_one_dense_run_are_said_to(trace, open_page):
    def shown(**result) -> str:
        runs = tuple(replace(run, result={**run.result, **result}) for run in trace.runs)
        page = open_page(replace(trace, runs=runs))
        return page.locator("[data-view=gain] .side").inner_text()

    count = len(trace.runs)
    assert f"All {count} runs here are held against one dense run" in shown(dense_seconds=9.0)
    assert "one dense run" not in shown(dense_seconds=9.0, is_scaled=True)
    assert "one dense run" not in shown(dense_seconds=9.0, order="in turns")
