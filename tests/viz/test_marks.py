"""Marks of the trade-off chart: title, symbol and colour come from the payload's methods."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from viz.payload import explorer_payload

pytestmark = pytest.mark.browser

GROUND = {"light": (0xF6, 0xF6, 0xF4), "dark": (0x12, 0x13, 0x16)}


READ = """() => {
    const root = document.getElementById('explorer').shadowRoot;
    const read = (selector, part) => [...root.querySelectorAll(selector)].map((path) => [
        path.getAttribute('d').replace(/[\\d. -]/g, ''),
        getComputedStyle(path)[part],
    ]);
    return [
        read('.legend .method path', 'fill'),
        read('.point .solid', 'fill'),
        read('.joined', 'stroke'),
    ];
}"""


# How much of each point's name lies under another name or another point's mark, in square pixels.
COVERED = """() => {
    const root = document.getElementById('explorer').shadowRoot;
    const boxes = (selector) => [...root.querySelectorAll(selector)].map(
        (node) => node.getBoundingClientRect());
    const [names, marks] = [boxes('.pointname'), boxes('.point .solid')];
    const common = (a, b) =>
        Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) *
        Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
    return names.map((name, i) => [...marks, ...names.slice(0, i)].reduce(
        (sum, other) => sum + common(name, other), 0));
}"""


def luminance(rgb) -> float:
    def linear(v):
        return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(v / 255) for v in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def method(name: str, colour: str, symbol: str) -> dict:
    return {"name": name, "title": f"Title of {name}", "colour": colour, "symbol": symbol}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("colours", [("#3f6fd8", "#b4690e"), ("#ffff00", "#000030")])
def test_a_methods_mark_line_and_legend_are_its_own_and_can_be_seen(
    theme, colours, trace, open_page
):
    names = list(dict.fromkeys(run.method for run in trace.runs))
    methods = [
        method(n, c, "square") for n, c in zip(names, colours, strict=True)
    ]  # one symbol for both: the second gets another
    page = open_page({**explorer_payload(trace), "methods": methods}, theme=theme)
    assert page.locator(".legend .method").all_text_contents() == [m["title"] for m in methods]
    legend, marks, lines = page.evaluate(READ)
    assert len({shape for shape, _ in legend}) == 2
    assert [colour for _, colour in lines] == [colour for _, colour in legend]
    own = dict(zip(names, legend, strict=True))
    assert marks == [own[run.method] for run in trace.runs]
    for _, colour in legend:
        rgb = [int(v) for v in re.findall(r"\d+", colour)]
        assert contrast(rgb, GROUND[theme]) >= 3


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("apart", [(0.0, 0.0), (0.02, 0.5), (0.12, -0.5), (0.02, -3.0)])
def test_the_names_of_neighbouring_points_can_be_read(apart, width, trace, open_page):
    first = trace.runs[0]
    runs = [first]
    for name in ("svg2-routed", "svg2-ear"):
        density, psnr = (runs[-1].result[part] for part in ("density", "psnr_db"))
        own = {"density": density + apart[0], "psnr_db": psnr + apart[1]}
        runs.append(replace(first, method=name, result={**first.result, **own}))
    records = [record for record in trace.records if record.run == 0]
    shown = replace(trace, runs=tuple(runs), records=tuple(records))
    page = open_page(shown, "#axis=density", width=width)
    covered = page.evaluate(COVERED)
    assert len(covered) == 3
    assert max(covered) < 4
