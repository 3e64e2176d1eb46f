"""The registry of methods: a row per method, and beside it one file per way to select.

A method is a row of `METHODS`, a module with its functions, and a test. All else that knows of
methods (settings, command line, page, charts, traces, benchmarks) reads this registry.
It is read before torch is loaded, so rows name their functions, and `Method` imports them on use.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

Rule = Literal["top_p"]
"""Selections that can be redone from what a trace records: top-p over the recorded masses."""


@dataclass(frozen=True)
class Method:
    """One way to make attention sparse.

    Attributes:
        name: what settings, traces and the command line call it.
        title: what a page calls it; line: what it does, in one line.
        select: `module:function` below this package that decides which key clusters each query
            cluster attends to. It takes an `svg2.method.plan.Clustered` and the settings.
        cluster: `module:function` that clusters tokens; None for k-means with a warm start.
        compensates: skipped key clusters count through their centroids.
        symbol: of its marks on charts; colour: of its marks and lines, as `#rrggbb`.
        rule: how a browser redoes its selection at another budget; None where it cannot.
    """

    name: str
    title: str
    line: str
    select: str
    symbol: Literal["circle", "diamond", "square", "triangle", "cross", "star"]
    colour: str
    cluster: str | None = None
    compensates: bool = False
    rule: Rule | None = "top_p"

    def function(self, role: Literal["select", "cluster"]) -> Callable[..., Any]:
        """The function that plays a role."""
        module, _, name = str(getattr(self, role)).partition(":")
        return getattr(import_module(f"{__name__}.{module}"), name)

    def to_dict(self) -> dict[str, Any]:
        """What a page shows and redoes, as JSON values."""
        return {k: v for k, v in asdict(self).items() if k not in ("select", "cluster")}


_ROWS = (
    Method(
        "svg2",
        title="SVG2",
        line="semantic clusters, top-p key selection, nothing for the skipped keys",
        select="top_p:select",
        symbol="circle",
        colour="#3f6fd8",
    ),
    Method(
        "svg2-comp",
        title="SVG2 + compensation",
        line="the same selection; skipped clusters count through their centroids",
        select="top_p:select",
        compensates=True,
        symbol="diamond",
        colour="#b4690e",
    ),
    Method(
        "position",
        title="Blocks by position",
        line="blocks of neighbouring tokens in place of clusters, top-p key selection",
        select="top_p:select",
        cluster="position:cluster",
        symbol="square",
        colour="#2e7d4f",
    ),
)

METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}
"""Methods by name, in the order in which they are shown."""

PAPER_METHOD = "svg2"
"""The method of the paper, and the default of settings and of the command line."""
COMPENSATED_METHOD = "svg2-comp"
"""The same with skipped clusters counted through their centroids; the page starts on it."""
