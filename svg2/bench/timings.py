"""The timings suite: one comparison again and again, to see how far its speedup can be believed.

In turns, as `compare` does it, and with the sparse run after the dense one; on a machine that does
nothing else, and beside a busy process.
"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svg2.bench.calls import busy_processes
from svg2.bench.harness import Progress, save_record
from svg2.models.request import Request
from svg2.runs.call import load_for
from svg2.runs.compare import compare
from svg2.runs.progress import Watch
from svg2.runs.provenance import provenance
from svg2.runs.run import Run
from svg2.trace.records import RecordingPolicy

PROMPT = "a red ball rolling to the right over a checkered floor"
_NOTHING = RecordingPolicy(steps=())
_KEPT = (
    *("speedup", "shared_ratio", "is_disturbed", "is_scaled"),
    *("dense_seconds", "svg2_seconds"),
)


@dataclass(frozen=True)
class Case:
    """One way to time, and how many busy processes stand beside it."""

    in_turns: bool
    busy: int = 0


CASES = (Case(True), Case(False), Case(True, 1), Case(False, 1))


def run_timings_suite(
    out_path: Path,
    on_progress: Progress,
    *,
    cases: Sequence[Case] = CASES,
    repeats: int = 10,
    run: Run | None = None,
) -> dict[str, Any]:
    """Repeat the comparison of each case, and write the record to `out_path` after each case.

    Of each case: `speedups` of all repeats; their `median`; their `spread`, greatest less smallest
    over the median; and how many were `disturbed`, which the page shows without a number. `plain`
    are dense seconds over sparse seconds, as one stopwatch would tell.

    Args:
        run: what is compared; None takes a prompt of the built-in model at its defaults, in fp32.

    Raises:
        OSError: `out_path` can't be written.
    """
    run = run or Run.of(Request(PROMPT, model="builtin", dtype="fp32"))
    pipe = load_for(run, Watch())
    record: dict[str, Any] = {
        "suite": "timings",
        **provenance(torch.device("cpu")),
        "load_before": os.getloadavg()[0],
        "method": run.config.method,
        "request": run.request.to_dict(),
        "repeats": repeats,
        "cases": [],
    }
    for case in cases:
        with busy_processes(case.busy):
            found = [
                compare(run, pipe, policy=_NOTHING, in_turns=case.in_turns).result
                for _ in range(repeats)
            ]
        row = _row(case, found)
        record["cases"].append(row)
        save_record(out_path, record)
        on_progress(
            f"{'in turns' if case.in_turns else 'one after the other'}, {case.busy} busy: median "
            f"{row['median']:.2f}x, spread {row['spread']:.1%}, {row['disturbed']} disturbed"
        )
    return record


def _row(case: Case, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    speedups = [result["speedup"] for result in found]
    median = statistics.median(speedups)
    return {
        "in_turns": case.in_turns,
        "busy": case.busy,
        "speedups": speedups,
        "median": median,
        "spread": (max(speedups) - min(speedups)) / median,
        "disturbed": sum(result["is_disturbed"] for result in found),
        "plain": [result["dense_seconds"] / result["svg2_seconds"] for result in found],
        "results": [{name: result[name] for name in _KEPT} for result in found],
    }
