"""What to expect of a run before it is made, and what to distrust of one that was.

All of it comes from measurements: those of `assets/bench`, of ready-made comparisons, and of the
run itself. What was not measured is said to be so.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svg2.errors import TraceError
from svg2.method.selection import METHODS
from svg2.models.finding import model_spec
from svg2.models.spec import capitalised
from svg2.runs.run import Run
from svg2.trace.file import load_trace
from svg2.trace.records import Record

ASSETS = Path(__file__).resolve().parents[2] / "assets"
BENCH, READY_MADE = ASSETS / "bench", ASSETS / "traces"
FAITHFUL_DB = 23.5
"""Below all that SVG2's authors publish for it (23.6 dB and more, arXiv 2505.18875)."""

_SAME_SIZE = 0.1  # tokens may differ by this share
_SAME_TIME = 0.02
_FEW_CLUSTERS = 0.05
_NEARLY_ALL = 0.8
_LEAST_CLUSTERS = 20  # with fewer, one is more than a few


@dataclass(frozen=True)
class Measured:
    """A speedup of whole denoising loops, as it was measured.

    Attributes:
        model: id or title of the model. hardware: as `svg2.runs.provenance.hardware` names it.
        note: what else to know of it.
    """

    model: str
    tokens: int
    hardware: str
    method: str
    speedup: float
    date: str
    note: str = ""


@functools.cache
def measured(folder: Path = BENCH) -> tuple[Measured, ...]:
    """The speedups in the benchmark records of a folder; a record that is missing is left out."""
    found = []
    for path in sorted(folder.glob("sweep_*.json")):
        record = json.loads(path.read_text())
        where = (record["model"], record["tokens"], record["hardware"])
        for row in record["statistics"]:
            if row["speedup"] is not None:
                speedup, date = row["speedup"]["median"], record["date"][:10]
                found.append(Measured(*where, row["method"], speedup, date))
    path = folder / "builtin_model.json"
    if path.is_file():
        record, spec = json.loads(path.read_text()), model_spec("builtin")
        tokens = math.prod(spec.grid(record["num_frames"], spec.height, spec.width))
        for method, row in record["fidelity"].items():
            if row["speedup_median"] is not None:
                where = "builtin", tokens, record["hardware"]
                found.append(Measured(*where, method, row["speedup_median"], record["date"][:10]))
    for path in sorted(folder.glob("e2e*.json")):
        record = json.loads(path.read_text())
        for row in record["runs"]:
            if not row["toy"]:
                where = (row["model"].split(",")[0], row["tokens"], record["hardware"])
                of = (row["method"], row["speedup"], record["date"][:10])
                found.append(Measured(*where, *of, f", with {row['weights']} weights"))
    return tuple(found)


def forecast(run: Run, hardware: str, rows: Sequence[Measured] | None = None) -> str:
    """Whether a run will gain or lose time against dense here, as a sentence.

    Args:
        hardware: as `svg2.runs.provenance.hardware` names it.
        rows: what was measured; None takes the project's own records.
    """
    rows = measured() if rows is None else rows
    title = METHODS[run.config.method].title
    alike = [
        row
        for row in rows
        if row.method == run.config.method
        and row.hardware == hardware
        and abs(row.tokens / run.n_tokens - 1) <= _SAME_SIZE
        and (row.model == run.request.model or run.spec.title.startswith(row.model))
    ]
    if not alike:
        return f"Gain or loss of {title} at this size on {hardware}: not measured."
    least, most = (pick(row.speedup for row in alike) for pick in (min, max))
    expect = "a gain" if least > 1 + _SAME_TIME else "a loss" if most < 1 - _SAME_TIME else None
    span = f"{least:.2f}" if least == most else f"{least:.2f} to {most:.2f}"
    lead = f"Expect {expect}" if expect else "Gain or loss depends on the budget"
    latest = max(alike, key=lambda row: row.date)
    return (
        f"{lead}: runs of this size with {title} were {span} times as fast as dense on "
        f"{hardware}{latest.note} ({latest.date})."
    )


def made(folder: Path = READY_MADE) -> list[dict[str, Any]]:
    """Results of the runs in a folder's traces, for `budget_warning`.

    Traces that can't be read are left out: a checkout without Git LFS lacks them, and still runs.
    """
    found = []
    for path in sorted(folder.glob("*.npz")):
        with suppress(TraceError, OSError):
            found += [run.result for run in load_trace(path).runs]
    return found


def budget_warning(run: Run, results: Iterable[Mapping[str, Any]]) -> str | None:
    """A sentence where the budget is in a range that took pictures far from dense; else None.

    Args:
        results: of runs that were made, as `svg2.runs.result.result_record` gives them.
    """
    config = run.config
    name = "top_p" if config.density is None else "density"
    budget = getattr(config, name)
    seen = [
        (result["config"][name], result["psnr_db"])
        for result in results
        if result.get("model") == run.request.model
        and result.get("method") == config.method
        and isinstance(result.get("psnr_db"), int | float)
        and isinstance(result.get("config", {}).get(name), int | float)
        and (name == "density" or result["config"].get("density") is None)
    ]
    broken = [(at, psnr) for at, psnr in seen if psnr < FAITHFUL_DB and at >= budget]
    if not broken:
        return None
    at, psnr = min(broken)
    higher = [value for value, db in seen if db >= FAITHFUL_DB and value > max(broken)[0]]
    advice = f" {name} {min(higher):g} did not." if higher else ""
    return (
        f"At {name} {at:g} {METHODS[config.method].title} went as far from dense as "
        f"{psnr:.1f} dB, so the picture may break.{advice}"
    )


def warnings_of(psnr_db: float | None, records: Sequence[Record]) -> list[str]:
    """What to distrust of a run that was made, each as a sentence."""
    found = []
    if psnr_db is not None and psnr_db < FAITHFUL_DB:
        found.append(
            f"The sparse clip is {psnr_db:.1f} dB from dense, further than SVG2's authors publish "
            "for any model: raise the budget."
        )
    collapse = _collapse(records)
    return [*found, *([collapse] if collapse else [])]


def _collapse(records: Sequence[Record]) -> str | None:
    """A sentence on the recorded head whose tokens lie most in a few clusters; None if in many."""
    worst: tuple[float, Record, str, int] | None = None
    for record in records:
        for side, labels, total in (
            ("query", record.q_labels, len(record.q_rgb)),
            ("key", record.k_labels, len(record.k_rgb)),
        ):
            if total < _LEAST_CLUSTERS:
                continue
            few = int(total * _FEW_CLUSTERS)
            sizes = np.sort(np.bincount(labels, minlength=total))[::-1]
            share = float(sizes[:few].sum() / sizes.sum())
            if worst is None or share > worst[0]:
                worst = (share, record, side, few)
    if worst is None or worst[0] < _NEARLY_ALL:
        return None
    share, record, side, few = worst
    held = "one cluster holds" if few == 1 else f"{few} clusters hold"
    where = f"step {record.step}, layer {record.layer}, head {record.head}"
    return capitalised(
        f"{side} clusters collapsed: in {where} {held} {share:.0%} of the tokens, so the "
        "selection can hardly tell them apart; try other numbers of clusters."
    )
