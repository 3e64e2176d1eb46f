"""Worksheets of `assets/lessons`: their numbers out of the traces, and as the page shows them.

A number stands between `<!--TRACE/RUN/FIELD-->` and `<!--/-->`. `python -m viz.lessons` writes
all of them anew after a trace was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from svg2.trace.file import load_trace
from svg2.trace.records import Trace, TraceRun, computed_share

ASSETS = Path(__file__).resolve().parents[1] / "assets"
LESSONS = ASSETS / "lessons"
HOME = "http://localhost:7860/"

_NUMBER = re.compile(r"<!--([\w-]+)/(\d+)/(\w+)(?:@(\d+)/(\d+)/(\d+))?-->.*?<!--/-->")


def percent(x: float) -> str:
    return f"{f'{100 * x:.1f}'.removesuffix('.0')} %"


def seconds(x: float) -> str:
    return f"{x:.1f} s" if x < 10 else f"{x:.0f} s"


def times(x: float) -> str:
    return f"{x:.2f}×" if x < 10 else f"{x:.0f}×"


def computed(result: Mapping) -> float:
    share = computed_share(result)
    assert share is not None, "ready-made runs count what they compute"
    return share


def clustering(result: Mapping) -> float:
    stage = result["stage_seconds"]
    return stage["kmeans"] + stage["permute"] + stage["select"]


def _least(run: TraceRun) -> int:
    share, clusters = run.config["min_keep_ratio"], run.config["num_k_clusters"]
    return max(1, math.ceil(share * clusters - 1e-9))


FIELDS: Mapping[str, Callable[[Trace, TraceRun], str]] = {
    "tokens": lambda trace, run: f"{trace.n_tokens:,}",
    "pairs": lambda trace, run: f"{trace.n_tokens**2:,}",
    "computed": lambda trace, run: percent(computed(run.result)),
    "work_gain": lambda trace, run: times(1 / computed(run.result)),
    "psnr_db": lambda trace, run: f"{run.result['psnr_db']:.1f} dB",
    "speedup": lambda trace, run: times(run.result["speedup"]),
    "attention_speedup": lambda trace, run: times(run.result["attention_speedup"]),
    "attention_share": lambda trace, run: f"{run.result['attention_share']:.0%}".replace(
        "%", " %"
    ),
    "rest_share": lambda trace, run: f"{1 - run.result['attention_share']:.0%}".replace("%", " %"),
    "bound": lambda trace, run: f"{1 / (1 - run.result['attention_share']):.1f}×",
    "dense_seconds": lambda trace, run: seconds(run.result["dense_seconds"]),
    "svg2_seconds": lambda trace, run: seconds(run.result["svg2_seconds"]),
    "clustering_seconds": lambda trace, run: seconds(clustering(run.result)),
    "warm_seconds": lambda trace, run: seconds(run.result["stage_seconds"]["dense_attention"]),
    "query_clusters": lambda trace, run: str(run.config["num_q_clusters"]),
    "key_clusters": lambda trace, run: str(run.config["num_k_clusters"]),
    "least": lambda trace, run: str(_least(run)),
    "least_share": lambda trace, run: percent(run.config["min_keep_ratio"]),
}
"""What a worksheet may say of a run, as it says it."""


def kept_share(trace: Trace, run: int, place: tuple[int, int, int]) -> float:
    """Share of the pairs that a recorded call keeps; its step, layer and head count from 1.

    Raises:
        ValueError: the trace does not hold the call.
    """
    for r in trace.records:
        if (r.run, r.step + 1, r.layer + 1, r.head + 1) == (run, *place):
            pairs = np.outer(r.q_sizes.astype(float), r.k_sizes) * r.kept
            return float(pairs.sum() / len(r.q_labels) ** 2)
    raise ValueError(f"Run {run + 1} has no record of step, layer, head {place}.")


def filled(text: str, folder: Path = ASSETS / "traces") -> str:
    """The worksheet with each of its numbers as the trace has it.

    Raises:
        ValueError: a number that no trace holds.
    """
    traces: dict[str, Trace] = {}

    def number(found: re.Match[str]) -> str:
        name, run, field = found[1], int(found[2]) - 1, found[3]
        trace = traces.setdefault(name, load_trace(folder / f"{name}.npz"))
        if field == "kept":
            step, layer, head = int(found[4]), int(found[5]), int(found[6])
            value = percent(kept_share(trace, run, (step, layer, head)))
        elif field in FIELDS and run < len(trace.runs):
            value = FIELDS[field](trace, trace.runs[run])
        else:
            raise ValueError(f"No trace holds {found[0]}.")
        return f"{found[0].split('-->')[0]}-->{value}<!--/-->"

    return _NUMBER.sub(number, text)


def worksheets() -> dict[str, str]:
    """Title of each worksheet to its text as the page shows it: links stay on the page."""
    found = {}
    for path in sorted(LESSONS.glob("[0-9]*.md")):
        text = path.read_text(encoding="utf-8")
        title, _, body = text.removeprefix("# ").partition("\n")
        body = re.sub(r"<!--.*?-->", "", body).replace(f"]({HOME}#", "](#")
        body = body.replace(" ([how to start it](../../README.md))", "")
        found[title] = body
    return found


if __name__ == "__main__":
    for path in LESSONS.glob("[0-9]*.md"):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
