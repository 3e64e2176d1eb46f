"""Charts for exports and the README: the data first, then the drawing."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from svg2.method.selection import METHODS
from svg2.trace.records import Trace, computed_share

_SYMBOLS = {"triangle": "triangle-up", "cross": "x"}  # where Plotly has another name
_UNKNOWN_SYMBOL = "circle"
_UNKNOWN_COLOURS = ("#5a5f69", "#2e7d4f", "#8a3ea8")  # dark enough on white


@dataclass(frozen=True)
class Point:
    """One measured run.

    Attributes:
        top_p: its budget; None where `asked_density` was its budget, or where neither is known.
        psnr_db: None when its frames equal the dense ones.
        computed: share of all pairs of the run that were computed.
    """

    method: str
    top_p: float | None
    psnr_db: float | None
    computed: float | None
    asked_density: float | None = None

    @property
    def asked(self) -> str:
        """The budget as charts write it; empty where it is not known."""
        if self.asked_density is not None:
            return f"density {100 * self.asked_density:g} %"
        return "" if self.top_p is None else f"p {self.top_p:g}"


@dataclass(frozen=True)
class TradeoffInfo:
    """What the trade-off chart shows.

    Attributes:
        points: measured runs, ordered by method and by what was computed.
        identical: those whose frames equal the dense ones, which have no place on a dB axis.
        unmeasured: how many runs lack a share or a PSNR and are left out.
        subject: prompt, model, seed and hardware, for a title.
    """

    points: tuple[Point, ...]
    identical: tuple[Point, ...]
    unmeasured: int
    subject: str = ""


def tradeoff_info(trace: Trace) -> TradeoffInfo:
    """The measured runs of a trace."""
    found = [_point(run.method, run.config, run.result) for run in trace.runs]
    known = sorted(
        (p for p, missing in found if not missing and p.computed is not None),
        key=lambda p: (p.method, p.computed),
    )
    return TradeoffInfo(
        points=tuple(p for p in known if p.psnr_db is not None),
        identical=tuple(p for p in known if p.psnr_db is None),
        unmeasured=len(found) - len(known),
        subject=_subject(trace),
    )


def _subject(trace: Trace) -> str:
    request, provenance = trace.request, trace.provenance
    hardware = provenance.get("hardware") or provenance.get("device")
    parts = [f"“{request.get('prompt', '')}”"]
    parts += [f"{name} {request[name]}" for name in ("model", "seed") if name in request]
    return " · ".join([*parts, *([str(hardware)] if hardware else [])])


def tradeoff_figure(info: TradeoffInfo) -> go.Figure:
    """PSNR against what was computed: a marker per run, with its method's symbol and colour."""
    figure = go.Figure()
    for method in dict.fromkeys(p.method for p in info.points):
        points = [p for p in info.points if p.method == method]
        figure.add_scatter(
            name=title_of(method),
            x=[p.computed for p in points],
            y=[p.psnr_db for p in points],
            text=[p.asked for p in points],
            mode="lines+markers+text",
            textposition="middle right",
            line={"width": 1, "color": "#8a8f99"},
            marker={"size": 11, **_mark(method, info)},
        )
    figure.update_layout(
        template="plotly_white",
        showlegend=True,
        title={"text": html.escape(info.subject), "font": {"size": 14}},
        margin={"l": 60, "r": 30, "t": 70, "b": 60},
        xaxis={"title": "computed, of all pairs of the run", "tickformat": ".0%"},
        yaxis={"title": "PSNR against dense, dB"},
    )
    notes = []
    if info.identical:
        names = (f"{title_of(p.method)} {p.asked}".rstrip() for p in info.identical)
        notes.append(f"identical to dense: {', '.join(names)}")
    if info.unmeasured:
        runs = "1 run" if info.unmeasured == 1 else f"{info.unmeasured} runs"
        notes.append(f"{runs} left out: what was computed or PSNR not measured")
    if notes:
        figure.add_annotation(
            text="; ".join(notes), xref="paper", yref="paper", x=0, y=1.06, showarrow=False
        )
    return figure


def title_of(method: str) -> str:
    """The title of a method; traces from elsewhere may hold one that has none here."""
    return METHODS[method].title if method in METHODS else method


def symbol_of(method: str) -> tuple[str, str]:
    """Symbol and colour of a method on charts, as Plotly calls them."""
    row = METHODS[method]
    return _SYMBOLS.get(row.symbol, row.symbol), row.colour


def _mark(method: str, info: TradeoffInfo) -> dict[str, str]:
    """Marker of a method in a trace, which may be one that has no row here."""
    if method in METHODS:
        symbol, colour = symbol_of(method)
        return {"symbol": symbol, "color": colour}
    unknown = list(dict.fromkeys(p.method for p in info.points if p.method not in METHODS))
    colour = _UNKNOWN_COLOURS[unknown.index(method) % len(_UNKNOWN_COLOURS)]
    return {"symbol": _UNKNOWN_SYMBOL, "color": colour}


def _point(
    method: str, config: Mapping[str, Any], result: Mapping[str, Any]
) -> tuple[Point, bool]:
    """A run as a point, and whether its PSNR was never measured (missing is not identical)."""
    asked_density = _number(config.get("density"))
    point = Point(
        method=method,
        top_p=_number(config.get("top_p")) if asked_density is None else None,
        psnr_db=_number(result.get("psnr_db")),
        computed=_number(computed_share(result)),
        asked_density=asked_density,
    )
    return point, "psnr_db" not in result


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
