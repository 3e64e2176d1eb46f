"""The registry of methods, and beside it one module per way to select or cluster.

To add a method, add a row to `METHODS`, a module with its functions, and a test. Settings, command
line, page, charts, traces and benchmarks read the registry.
The registry loads without torch: rows name their functions, and `Method.function` imports them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

Rule = Literal["top_p", "error"]
"""Selections that can be repeated from a trace: by top-p over the recorded masses, or by the
recorded errors, with the budget that top-p sets for all heads of a layer."""


@dataclass(frozen=True)
class Method:
    """One way to make attention sparse.

    Attributes:
        name: identifier in settings, in traces and on the command line.
        title: name on the page.
        line: description on the page, in one line.
        select: `module:function` in this package that selects key clusters. It takes
            `svg2.method.plan.Tokens` and `Routed` and an `SVG2Config`, and returns bool
            `[B, H, Q, K]`.
        symbol: marker on charts.
        colour: colour of markers and lines, as `#rrggbb`.
        route: `module:function` in this package that weighs the pairs of clusters. It takes
            `Tokens` and an `SVG2Config`, and returns a `Routed`.
        cluster: `module:function` in this package that clusters tokens. It takes the tokens
            `[B, H, N, D]`, the number of clusters, an `SVG2Config` and the grid of tokens, and
            returns a `kernels.KMeansResult`. None is k-means with a warm start.
        attend: `module:function` in this package that does a whole call in place of the other
            three, for methods without clusters. It takes q, k and v, an `SVG2Config`, the text and
            `sum_heads`, all as `svg2.method.call.sparse_call` does, and returns its result.
        compensates: whether something stands for skipped key clusters.
        passes: what the router computes per query cluster and key, in pairs of attention; the
            most where settings change it.
        rule: selection that a browser can repeat at another budget; None if it can't.
    """

    name: str
    title: str
    line: str
    symbol: Literal["circle", "diamond", "square", "triangle", "cross", "star"]
    colour: str
    select: str = "top_p:select"
    route: str = "masses:route"
    cluster: str | None = None
    attend: str | None = None
    compensates: bool = False
    passes: float = 0.0
    rule: Rule | None = "top_p"

    def function(
        self, role: Literal["attend", "cluster", "route", "select"]
    ) -> Callable[..., Any]:
        """Import and return the function of this method for a role."""
        module, _, name = str(getattr(self, role)).partition(":")
        return getattr(import_module(f"{__name__}.{module}"), name)

    def to_dict(self) -> dict[str, Any]:
        """The fields that the page needs, as JSON values."""
        roles = ("attend", "cluster", "route", "select")
        return {k: v for k, v in asdict(self).items() if k not in roles}


_ROWS = (
    Method(
        "svg2",
        title="SVG2",
        line="semantic clusters and top-p selection; skipped keys are left out",
        select="top_p:select",
        symbol="circle",
        colour="#3f6fd8",
    ),
    Method(
        "svg2-comp",
        title="SVG2 + compensation",
        line="the same selection; the centroids of skipped clusters stand in for them",
        route="masses:route_with_centroids",
        select="top_p:select",
        compensates=True,
        symbol="diamond",
        colour="#b4690e",
    ),
    Method(
        "svg2-routed",
        title="SVG2, routed by error",
        line="computes what would be missed most; stand-ins weigh what was seen of the rest",
        route="by_error:route",
        select="by_error:select",
        compensates=True,
        passes=1.5,
        rule="error",
        symbol="star",
        colour="#8a3ffc",
    ),
    Method(
        "svg2-ear",
        title="SVG-EAR",
        line="SVG2's budget per query cluster, a part of it by error; centroids stand in",
        route="ear:route",
        select="ear:select",
        compensates=True,
        passes=0.5,
        rule=None,
        symbol="triangle",
        colour="#0f7c8a",
    ),
    Method(
        "svg1",
        title="Sparse VideoGen",
        line="each head sees its own frames or its own place, as a sample of its queries tells",
        route="svg1:route",
        select="svg1:select",
        cluster="tiles:cluster",
        rule=None,
        symbol="cross",
        colour="#c2306b",
    ),
    Method(
        "radial",
        title="Radial attention",
        line="a window within each frame that halves as the distance in time doubles",
        select="radial:select",
        cluster="tiles:cluster",
        rule=None,
        symbol="circle",
        colour="#6b7a00",
    ),
    Method(
        "oracle",
        title="Exact top-p per token",
        line="each query keeps its own heaviest keys: what leaving keys out can reach at best",
        attend="oracle:attend",
        rule=None,
        symbol="star",
        colour="#a1561f",
    ),
    Method(
        "random",
        title="Random blocks",
        line="semantic clusters, and blocks at random: the floor",
        select="at_random:select",
        rule=None,
        symbol="diamond",
        colour="#6a6f7a",
    ),
    Method(
        "position",
        title="Blocks by position",
        line="blocks of neighbouring tokens in place of clusters, and top-p selection",
        select="top_p:select",
        cluster="position:cluster",
        symbol="square",
        colour="#2e7d4f",
    ),
)

METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}
"""Methods by name, in display order."""

PAPER_METHOD = "svg2"
"""The paper's method: the default of `SVG2Config`, and of models with no method of their own."""
COMPENSATED_METHOD = "svg2-comp"
"""The paper's method with compensation for skipped clusters."""
ROUTED_METHOD = "svg2-routed"
"""Routing by predicted error: the built-in model's method."""
