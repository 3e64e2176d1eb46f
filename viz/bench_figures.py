"""Figures of the benchmarks, drawn and named in the README by `python -m viz.bench_figures`.

Each is drawn for light and for dark surroundings, from the files in assets/bench that its tables
are made from.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from svg2.method.selection import METHODS, ROUTED_METHOD
from svg2.trace.atomic import write_atomic
from viz.figures import symbol_of, title_of

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "assets" / "bench"
PICTURES = BENCH / "figures"
_SECTION = re.compile(r"(<!-- bench:begin -->\n).*?(<!-- bench:end -->)", re.DOTALL)
_SIZE = {"width": 760, "height": 430}
_QUIET, _CLEAR = "#8a8f99", "rgba(0,0,0,0)"
_SIZES = {"wan-720p": "Wan 720p", "hunyuan-720p": "HunyuanVideo 720p", "wan-480p": "Wan 480p"}
_SIZE_MARKS = (("circle", "#3f6fd8"), ("diamond", "#8a3ffc"), ("square", "#2e7d4f"))


@dataclass(frozen=True)
class Theme:
    """Colours of a figure's surroundings; its own ground is transparent."""

    name: str
    text: str
    grid: str


LIGHT, DARK = Theme("light", "#30343c", "#d9dce2"), Theme("dark", "#d7dae0", "#41464f")


@dataclass(frozen=True)
class BenchFigure:
    """One figure.

    Attributes:
        name: of its files.
        source: the file in assets/bench that it is drawn from.
        title: what it shows, in one sentence.
        draw: makes it from the content of `source`.
    """

    name: str
    source: str
    title: str
    draw: Callable[[Mapping[str, Any]], go.Figure]

    def content(self, bench: Path = BENCH) -> dict[str, Any] | None:
        """What was measured; None where nothing was."""
        try:
            return json.loads((bench / self.source).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def path(self, theme: Theme, bench: Path = BENCH) -> Path:
        """Its picture, drawn or not."""
        return bench / "figures" / f"{self.name}-{theme.name}.svg"


def fidelity(sweep: Mapping[str, Any]) -> go.Figure:
    """PSNR against the share of the pairs computed: medians over prompts, with quartiles."""
    figure = _by_method(sweep["statistics"], "compute_density")
    figure.update_xaxes(title="share of the query-key pairs computed", tickformat=".0%")
    return figure


def fidelity_in_attention_time(sweep: Mapping[str, Any]) -> go.Figure:
    """PSNR against what attention gains, medians over prompts, with quartiles of both."""
    figure = _by_method(sweep["statistics"], "attention_speedup")
    return _with_ratios(figure, "attention with all that it takes: time of dense / of sparse")


def fidelity_in_loop_time(sweep: Mapping[str, Any]) -> go.Figure:
    """PSNR against what the denoising loop gains, medians over prompts, with quartiles of both."""
    figure = _by_method(sweep["statistics"], "speedup")
    return _with_ratios(figure, "whole denoising loop: time of dense / of sparse")


def growth(calls: Mapping[str, Any]) -> go.Figure:
    """Time of a call against tokens, dense and sparse, on logarithmic axes."""
    rows = [r for r in calls["calls"] if r["dtype"] == "fp32" and r["busy"] == 0]
    smallest = {t: min(_far(r) for r in rows if r["tokens"] == t) for t in _tokens(rows)}
    # In small videos stand-ins and routing alone are more than a tenth.
    rows = [r for r in rows if _far(r) == smallest[r["tokens"]] and _far(r) < 0.03]
    rows.sort(key=lambda r: r["tokens"])
    figure = go.Figure()
    lines = (("dense", "dense_ms", "circle", _QUIET), (title_of(ROUTED_METHOD), "sparse_ms"))
    for name, key, *mark in lines:
        symbol, colour = mark or symbol_of(ROUTED_METHOD)
        figure.add_scatter(
            name=name,
            x=[r["tokens"] for r in rows],
            y=[r[key] for r in rows],
            mode="lines+markers",
            line={"width": 1.5},
            marker={"size": 9, "symbol": symbol, "color": colour},
        )
    tokens = _tokens(rows)
    figure.update_xaxes(
        type="log", title="tokens", tickvals=tokens, ticktext=[f"{t:,}" for t in tokens]
    )
    figure.update_yaxes(type="log", title="one call, ms", dtick=1)
    return figure


def gpu_kernels(gpu: Mapping[str, Any]) -> go.Figure:
    """What our attention kernel gains over the fastest dense one, against density."""
    figure = go.Figure()
    rows = [r for r in gpu["attention"] if r["contestant"] == "svg2" and r["density"] < 1]
    densities = sorted({r["density"] for r in rows})
    cases = dict.fromkeys(r["case"] for r in rows)
    for case, (symbol, colour) in zip(cases, itertools.cycle(_SIZE_MARKS), strict=False):
        found = sorted((r for r in rows if r["case"] == case), key=lambda r: r["density"])
        figure.add_scatter(
            name=f"{_SIZES.get(case, case)}, {found[0]['tokens']:,} tokens",
            x=[r["density"] for r in found],
            y=[r["speedup"] for r in found],
            mode="lines+markers",
            line={"width": 1.5},
            marker={"size": 9, "symbol": symbol, "color": colour},
        )
    figure.add_scatter(
        name="if each pair took as long as in the dense kernel",
        x=densities,
        y=[1 / d for d in densities],
        mode="lines",
        line={"width": 1, "dash": "dash", "color": _QUIET},
    )
    figure.update_xaxes(title="density: share of the pairs kept", tickformat=".0%")
    figure.update_yaxes(type="log", title="time of dense / of sparse", ticksuffix="×", dtick="D1")
    figure.add_hline(y=1, line={"width": 1, "dash": "dot", "color": _QUIET})
    return figure


FIGURES = (
    BenchFigure(
        "fidelity",
        "sweep_builtin.json",
        "How close each method stays to dense, by what it computes, on held-out prompts",
        fidelity,
    ),
    BenchFigure(
        "attention-time",
        "sweep_builtin.json",
        "How close each method stays to dense, by what attention gains on a CPU",
        fidelity_in_attention_time,
    ),
    BenchFigure(
        "loop-time",
        "sweep_builtin.json",
        "How close each method stays to dense, by what the whole loop gains on a CPU",
        fidelity_in_loop_time,
    ),
    BenchFigure(
        "growth",
        "calls.json",
        "Time of one attention call on a CPU, by the number of tokens",
        growth,
    ),
    BenchFigure(
        "gpu-kernels",
        "gpu.json",
        "What the attention kernel gains over the fastest dense one on a GPU, by density",
        gpu_kernels,
    ),
)


def themed(figure: go.Figure, theme: Theme) -> go.Figure:
    """The figure in the colours of its surroundings."""
    figure.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 13, "color": theme.text},
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        margin={"l": 64, "r": 16, "t": 60, "b": 52},
        legend={"orientation": "h", "x": 0, "y": 1.03, "xanchor": "left", "yanchor": "bottom"},
        **_SIZE,
    )
    axis = {"gridcolor": theme.grid, "zeroline": False, "linecolor": theme.grid}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def where(content: Mapping[str, Any]) -> str:
    """Hardware, torch and day of a measurement, and how many prompts of what length it is over."""
    rows = content.get("statistics") or ()
    counts = sorted({row["prompts"] for row in rows})
    told = [content["hardware"], f"torch {content['versions']['torch']}", content["date"][:10]]
    if counts:
        some = "–".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
        told.insert(0, f"{some} prompts of {content['num_frames']} frames")
    return ", ".join(told)


def caption(figure: BenchFigure, bench: Path = BENCH) -> str:
    """What a figure shows and where it was measured, or that it was not."""
    content = figure.content(bench)
    told = "not measured" if content is None else where(content)
    return f"{figure.title}: {told}." if content is None else f"{figure.title} ({told})."


def page_markup(folder: str, bench: Path = BENCH) -> str:
    """All figures for a page that has the pictures under the address `folder`.

    The page hides those of class `on-dark` or `on-light`, whichever its colours are not.
    """
    drawn, missing = [], []
    for figure in FIGURES:
        text = escape(caption(figure, bench))
        if figure.content(bench) is None or not figure.path(LIGHT, bench).is_file():
            missing.append(f"<p>{text}</p>")
            continue
        pictures = "".join(
            f'<img class="on-{theme.name}" src="{folder}/{figure.path(theme, bench).name}"'
            f' alt="{escape(figure.title)}" loading="lazy" width="{_SIZE["width"]}"'
            f' height="{_SIZE["height"]}">'
            for theme in (LIGHT, DARK)
        )
        drawn.append(f"<figure>{pictures}<figcaption>{text}</figcaption></figure>")
    return f'<div class="bench">{"".join(drawn)}</div>{"".join(missing)}'


def with_figures(readme: str, bench: Path = BENCH) -> str:
    """`readme` with its section of figures replaced.

    Raises:
        ValueError: the markers of the section are missing.
    """
    found = _SECTION.search(readme)
    if found is None:
        raise ValueError("README.md has lost its bench:begin and bench:end markers.")
    parts = [_readme_markup(figure, bench) for figure in FIGURES]
    return readme[: found.end(1)] + "\n".join(parts) + readme[found.start(2) :]


def _readme_markup(figure: BenchFigure, bench: Path) -> str:
    text = caption(figure, bench)
    if figure.content(bench) is None:
        return f"{text}\n"
    light, dark = (f"assets/bench/figures/{figure.path(t, bench).name}" for t in (LIGHT, DARK))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(figure.title)}"></picture>\n\n{text}\n'
    )


def _by_method(rows: Sequence[Mapping[str, Any]], measure: str) -> go.Figure:
    """PSNR against a measure, a line per method; bars reach from quartile to quartile."""
    figure = go.Figure()
    for method in METHODS:
        found = [r for r in rows if r["method"] == method and r.get(measure) and r["psnr_db"]]
        if not found:
            continue
        found.sort(key=lambda r: r["budget"])
        symbol, colour = symbol_of(method)
        figure.add_scatter(
            name=title_of(method),
            x=[r[measure]["median"] for r in found],
            y=[r["psnr_db"]["median"] for r in found],
            error_x=_quartile_bars(found, measure, colour),
            error_y=_quartile_bars(found, "psnr_db", colour),
            mode="lines+markers",
            line={"width": 1.5},
            marker={"size": 9, "symbol": symbol, "color": colour},
        )
    figure.update_yaxes(title="PSNR against dense, dB")
    return figure


def _quartile_bars(rows: Sequence[Mapping[str, Any]], measure: str, colour: str) -> dict[str, Any]:
    values = [r[measure] for r in rows]
    return {
        "type": "data",
        "array": [v["high"] - v["median"] for v in values],
        "arrayminus": [v["median"] - v["low"] for v in values],
        "thickness": 1,
        "width": 3,
        "color": colour,
    }


def _with_ratios(figure: go.Figure, title: str) -> go.Figure:
    figure.update_xaxes(title=title, ticksuffix="×")
    figure.add_vline(x=1, line={"width": 1, "dash": "dot", "color": _QUIET})
    return figure


def _tokens(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({r["tokens"] for r in rows})


def _far(row: Mapping[str, Any]) -> float:
    """How far a call's share of the pairs is from a tenth, the share of a growth curve."""
    return abs(row["compute_density"] - 0.1)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw every figure whose measurement is there."""
    parser = argparse.ArgumentParser(prog="python -m viz.bench_figures", description=__doc__)
    parser.add_argument("--bench", type=Path, default=BENCH, help="folder of the measurements")
    bench: Path = parser.parse_args(argv).bench
    os.environ.setdefault("BROWSER_PATH", shutil.which("chromium") or "")
    (bench / "figures").mkdir(exist_ok=True)
    for figure in FIGURES:
        content = figure.content(bench)
        if content is None:
            print(f"{figure.name}: {figure.source} is not there")
            continue
        for theme in (LIGHT, DARK):
            svg = themed(figure.draw(content), theme).to_image("svg")
            write_atomic(figure.path(theme, bench), svg)
            print(figure.path(theme, bench))
    if bench == BENCH:
        readme = ROOT / "README.md"
        write_atomic(readme, with_figures(readme.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
