"""Figures of benchmarks, from made-up results of known values."""

import json

import pytest

from tests.tree import ROOT
from viz.bench_figures import (
    DARK,
    FIGURES,
    LIGHT,
    BenchFigure,
    caption,
    fidelity,
    fidelity_in_attention_time,
    gpu_kernels,
    growth,
    page_markup,
    themed,
    with_figures,
)

WHERE = {"hardware": "a chip", "versions": {"torch": "2.13"}, "date": "2026-11-28T13:00"}


def row(method, budget, psnr, computed, **more):
    def around(value):
        return {"low": value - 1, "median": value, "high": value + 2}

    return {
        "method": method,
        "budget": budget,
        "prompts": 16,
        "psnr_db": around(psnr),
        "compute_density": around(computed),
        **{name: around(value) for name, value in more.items()},
    }


SWEEP = WHERE | {
    "num_frames": 33,
    "statistics": [
        row("svg2-routed", 0.2, 40, 0.2, attention_speedup=2.5),
        row("svg2-routed", 0.1, 36, 0.1, attention_speedup=3.5),
        row("svg2", 0.1, 20, 0.1, attention_speedup=2),
    ],
}


def test_fidelity_has_a_line_per_method_with_quartiles():
    lines = {line.name: line for line in fidelity(SWEEP).data}
    assert set(lines) == {"SVG2", "SVG2, routed by error"}
    routed = lines["SVG2, routed by error"]
    assert list(routed.x) == [0.1, 0.2]  # in the order of budgets
    assert list(routed.y) == [36, 40]
    assert list(routed.error_y.array) == [2, 2]
    assert list(routed.error_y.arrayminus) == [1, 1]


def test_what_was_not_measured_has_no_mark():
    rows = [SWEEP["statistics"][0], row("svg2", 0.1, 20, 0.1) | {"attention_speedup": None}]
    figure = fidelity_in_attention_time({"statistics": rows})
    assert [line.name for line in figure.data] == ["SVG2, routed by error"]
    assert list(figure.data[0].x) == [2.5]


def call(tokens, computed, dense, sparse, dtype="fp32", busy=0):
    names = ("tokens", "compute_density", "dense_ms", "sparse_ms", "dtype", "busy")
    return dict(zip(names, (tokens, computed, dense, sparse, dtype, busy), strict=True))


def test_growth_is_of_quiet_calls_at_one_share():
    calls = [
        call(9792, 0.1, 600, 120),
        call(5184, 0.1, 170, 50),
        call(5184, 0.2, 171, 77),
        call(5184, 0.1, 160, 53, dtype="bf16"),
        call(5184, 0.1, 280, 93, busy=1),
    ]
    dense, sparse = growth({"calls": calls}).data
    assert list(dense.x) == [5184, 9792]
    assert list(dense.y) == [170, 600]
    assert list(sparse.y) == [50, 120]


def test_gpu_kernels_stand_beside_what_their_work_would_take():
    rows = [
        {"case": "wan-720p", "contestant": c, "density": d, "speedup": s, "tokens": 75_600}
        for c, d, s in (("svg2", 0.5, 1.2), ("svg2", 0.1, 4.5), ("svg2", 1.0, 0.6), ("x", 0.1, 9))
    ]
    ours, bound, *_ = gpu_kernels({"attention": rows}).data
    assert ours.name == "Wan 720p, 75,600 tokens"
    assert list(zip(ours.x, ours.y, strict=True)) == [(0.1, 4.5), (0.5, 1.2)]
    assert list(bound.y) == [10, 2]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_every_figure_of_a_committed_result_is_drawn(figure: BenchFigure):
    content = figure.content()
    if content is None:
        assert caption(figure).endswith("not measured.")
        return
    assert content["date"][:10] in caption(figure)
    for theme in (LIGHT, DARK):
        drawn = themed(figure.draw(content), theme)
        assert drawn.data
        assert drawn.layout.font.color == theme.text
        assert figure.path(theme).read_text().startswith("<svg")


def test_a_caption_says_over_how_many_prompts_of_what_length_and_where(tmp_path):
    (tmp_path / "sweep_builtin.json").write_text(json.dumps(SWEEP))
    assert "(16 prompts of 33 frames, a chip, torch 2.13, 2026-11-28)." in caption(
        FIGURES[0], tmp_path
    )
    SOME = SWEEP | {
        "statistics": [*SWEEP["statistics"], row("svg2", 0.2, 20, 0.2) | {"prompts": 8}]
    }
    (tmp_path / "sweep_builtin.json").write_text(json.dumps(SOME))
    assert "(8–16 prompts of 33 frames, a chip" in caption(FIGURES[0], tmp_path)


def test_readme_and_page_say_what_is_missing(tmp_path):
    readme = "# A\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n"
    text = with_figures(readme, tmp_path)
    assert "old" not in text
    assert text.count("not measured.") == len(FIGURES)
    assert "<img" not in page_markup("bench", tmp_path)
    with pytest.raises(ValueError, match="bench:begin"):
        with_figures("# A\n", tmp_path)


def test_the_page_has_each_picture_in_both_colours():
    text = page_markup("bench")
    drawn = [figure for figure in FIGURES if figure.content() is not None]
    assert drawn
    for figure in drawn:
        assert f'class="on-light" src="bench/{figure.name}-light.svg"' in text
        assert f'class="on-dark" src="bench/{figure.name}-dark.svg"' in text
        assert (ROOT / "assets" / "bench" / figure.source).is_file()
