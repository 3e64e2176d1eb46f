"""Charts: the data, then that the drawing holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

from svg2.method.selection import METHODS, Method
from svg2.trace.records import computed_share
from viz.figures import tradeoff_figure, tradeoff_info


def with_runs(trace, *results):
    """The trace with further runs that gave these results."""
    more = (
        replace(trace.runs[0], method=r["method"], config=r["config"], result=r) for r in results
    )
    return replace(trace, runs=(*trace.runs, *more))


def test_every_measured_run_is_a_point(trace):
    info = tradeoff_info(trace)
    assert {(p.method, p.top_p) for p in info.points} == {
        (r.method, r.config["top_p"]) for r in trace.runs
    }
    for point in info.points:
        run = next(
            r for r in trace.runs if (r.method, r.config["top_p"]) == (point.method, point.top_p)
        )
        assert (point.computed, point.psnr_db) == (
            computed_share(run.result),
            run.result["psnr_db"],
        )


def test_identical_and_unmeasured_are_told_apart(trace):
    same = {"method": "elsewhere", "config": {"top_p": 1.0}, "psnr_db": None, "density": 1.0}
    unknown = {"method": "svg1", "config": {"top_p": 0.9}, "density": 0.3}
    untimed = {"method": "svg1", "config": {"top_p": 0.8}, "psnr_db": 30.0}
    info = tradeoff_info(with_runs(trace, same, unknown, untimed))
    assert [p.method for p in info.identical] == ["elsewhere"]
    assert info.unmeasured == 2
    assert len(info.points) == len(trace.runs)
    (note,) = tradeoff_figure(info).layout.annotations
    assert "identical to dense: elsewhere p 1" in note.text
    assert "2 runs left out: what was computed or PSNR not measured" in note.text
    assert not tradeoff_figure(tradeoff_info(trace)).layout.annotations


def test_points_run_along_the_axis(trace):
    values = [p.computed for p in tradeoff_info(trace).points if p.method == "svg2"]
    assert values == sorted(values)
    assert len(values) > 1


def test_the_figure_draws_the_points_and_nothing_else(trace):
    other = {"method": "elsewhere", "config": {"top_p": 0.9}, "psnr_db": 20.0, "density": 0.5}
    info = tradeoff_info(with_runs(trace, other))
    figure = tradeoff_figure(info)
    drawn = [(x, y) for line in figure.data for x, y in zip(line.x, line.y, strict=True)]
    assert drawn == [(p.computed, p.psnr_db) for p in info.points]
    assert [line.name for line in figure.data] == ["elsewhere", "SVG2", "SVG2 + compensation"]


def test_the_title_says_of_what_and_escapes_it(trace):
    request = {**trace.request, "prompt": "a <b>ball</b>", "seed": 5}
    figure = tradeoff_figure(tradeoff_info(replace(trace, request=request)))
    assert "“a &lt;b&gt;ball&lt;/b&gt;”" in figure.layout.title.text
    assert "seed 5" in figure.layout.title.text


def test_marks_are_the_registrys_and_an_unknown_method_is_a_circle(trace):
    strange = [
        {"method": name, "config": {}, "psnr_db": 20.0, "density": 0.5} for name in ("x", "y")
    ]
    figure = tradeoff_figure(tradeoff_info(with_runs(trace, *strange)))
    marks = {line.name: (line.marker.symbol, line.marker.color) for line in figure.data}
    assert marks["SVG2"] == ("circle", METHODS["svg2"].colour)
    assert marks["SVG2 + compensation"] == ("diamond", METHODS["svg2-comp"].colour)
    assert marks["x"][0] == marks["y"][0] == "circle"
    assert len(set(marks.values())) == len(marks)


def test_every_symbol_of_the_registry_can_be_drawn(trace, monkeypatch):
    symbols = get_args(get_type_hints(Method)["symbol"])
    for symbol in symbols:
        row = replace(METHODS["svg2"], symbol=symbol)
        monkeypatch.setattr("viz.figures.METHODS", {"svg2": row})
        assert tradeoff_figure(tradeoff_info(trace)).data[0].marker.symbol  # Plotly checks names
    assert len(symbols) > 2


def test_a_trace_without_runs_gives_an_empty_chart(trace):
    empty = replace(trace, runs=(), records=())
    assert not tradeoff_figure(tradeoff_info(empty)).data


def test_a_run_with_a_density_is_named_by_it(trace):
    config = {"top_p": 0.9, "density": 0.06}
    run = {"method": "svg2-routed", "config": config, "psnr_db": 30.0, "density": 0.059}
    info = tradeoff_info(with_runs(trace, run))
    (point,) = (p for p in info.points if p.method == "svg2-routed")
    assert (point.top_p, point.asked_density, point.asked) == (None, 0.06, "density 6 %")
    texts = [text for line in tradeoff_figure(info).data for text in line.text]
    assert "density 6 %" in texts
    assert "p 0.9" in texts
