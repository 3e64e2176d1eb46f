"""Charts for exports and the README: the data first, then the drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from svg2.trace import Trace

Axis = Literal["density", "compute_density", "attention_speedup", "speedup"]

AXIS_TITLES: dict[str, str] = {
    "density": "density: token pairs kept in sparse calls",
    "compute_density": "compute density: kept pairs and what compensation computes",
    "attention_speedup": "measured attention speedup",
    "speedup": "measured end-to-end speedup",
}
SYMBOLS = {
    "svg2": "circle",
    "svg2-comp": "diamond",
    "svg1": "square",
    "position": "triangle-up",
    "oracle": "x",
}
OTHER_SYMBOL = "star"
# Dark enough on white, and told apart by shape as well.
COLOURS = ("#2f56d0", "#b3500f", "#2e7d4f", "#8a3ea8", "#5a5f69")


@dataclass(frozen=True)
class Point:
    """One measured run. `psnr_db` is None when its frames equal the dense ones."""

    method: str
    top_p: float | None
    psnr_db: float | None
    density: float | None
    compute_density: float | None
    attention_speedup: float | None
    speedup: float | None


@dataclass(frozen=True)
class TradeoffInfo:
    """What the trade-off chart shows.

    Attributes:
        points: measured runs, ordered by method and by the axis.
        identical: those whose frames equal the dense ones, which have no place on a dB axis.
        unmeasured: how many runs lack the axis's number and are left out.
    """

    axis: Axis
    points: tuple[Point, ...]
    identical: tuple[Point, ...]
    unmeasured: int


def tradeoff_info(
    trace: Trace, extra_points: Iterable[Mapping[str, Any]] = (), axis: Axis = "density"
) -> TradeoffInfo:
    """The measured runs of a trace, and further ones (result records, as a sweep writes them).

    Raises:
        ValueError: an unknown axis.
    """
    if axis not in AXIS_TITLES:
        raise ValueError(f"axis must be one of {', '.join(AXIS_TITLES)}; got {axis!r}.")
    found = [_point(run.method, run.config, run.result) for run in trace.runs]
    found += [_point(str(p.get("method")), p.get("config", p), p) for p in extra_points]
    placed = [(point, missing) for point, missing in found if getattr(point, axis) is not None]
    known = sorted(
        (point for point, missing in placed if not missing),
        key=lambda p: (p.method, getattr(p, axis)),
    )
    return TradeoffInfo(
        axis=axis,
        points=tuple(p for p in known if p.psnr_db is not None),
        identical=tuple(p for p in known if p.psnr_db is None),
        unmeasured=len(found) - len(known),
    )


def tradeoff_figure(info: TradeoffInfo) -> go.Figure:
    """PSNR against density or speedup: a marker per run, a shape and colour per method."""
    figure = go.Figure()
    methods = list(dict.fromkeys(p.method for p in info.points))
    for i, method in enumerate(methods):
        points = [p for p in info.points if p.method == method]
        figure.add_scatter(
            name=method,
            x=[getattr(p, info.axis) for p in points],
            y=[p.psnr_db for p in points],
            text=["" if p.top_p is None else f"p {p.top_p:g}" for p in points],
            mode="lines+markers+text",
            textposition="middle right",
            line={"width": 1, "color": "#8a8f99"},
            marker={
                "size": 11,
                "symbol": SYMBOLS.get(method, OTHER_SYMBOL),
                "color": COLOURS[i % len(COLOURS)],
            },
        )
    share = info.axis in ("density", "compute_density")
    figure.update_layout(
        template="plotly_white",
        showlegend=True,
        margin={"l": 60, "r": 30, "t": 30, "b": 60},
        xaxis={"title": AXIS_TITLES[info.axis], **({"tickformat": ".0%"} if share else {})},
        yaxis={"title": "PSNR against dense, dB"},
    )
    if info.identical:
        names = ", ".join(f"{p.method} p {p.top_p}" for p in info.identical)
        figure.add_annotation(
            text=f"identical to dense: {names}",
            xref="paper", yref="paper", x=0, y=1.06, showarrow=False,
        )  # fmt: skip
    return figure


def _point(
    method: str, config: Mapping[str, Any], result: Mapping[str, Any]
) -> tuple[Point, bool]:
    """A run as a point, and whether its PSNR was never measured (missing is not identical)."""
    names = ("density", "compute_density", "attention_speedup", "speedup")
    point = Point(
        method=method,
        top_p=_number(config.get("top_p")),
        psnr_db=_number(result.get("psnr_db")),
        **{name: _number(result.get(name)) for name in names},
    )
    return point, "psnr_db" not in result


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
