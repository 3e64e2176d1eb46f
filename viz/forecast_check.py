"""How far off the page's forecasts are: `python -m viz.forecast_check TRACE...`, with Chromium.

A trace is what `python -m svg2 sweep --methods svg2-routed --top-p 0.12 0.2 0.3 0.5` leaves of one
prompt. Each run of it is foretold from each other run of its method alone, and from all of them.
The page's own code does it, in Chromium; what it foretold is compared with what was measured.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg2.errors import InputError
from svg2.trace.atomic import json_bytes, write_atomic
from svg2.trace.file import load_trace
from viz.explorer_page import explorer_html

OUT = Path(__file__).resolve().parents[1] / "assets" / "bench" / "forecast.json"
_CURVES = """async (run) => {
    explorer.select({ run });
    while (!explorer.inspect().curves) await new Promise((done) => setTimeout(done, 20));
    globalThis.curves = explorer.inspect().curves;
}"""
_FORETELL = """([top_p, known]) => {
    const { runs } = explorer.inspect();
    return explorer.math.forecastAt(top_p, known.map((i) => runs[i]), globalThis.curves);
}"""


def check(paths: Sequence[Path]) -> dict[str, Any]:
    """Foretell every run of the traces and compare.

    Returns:
        `forecasts`, one for each run and what it was foretold from, and under `one` and `all` how
        far off they were, from one other run and from all others.

    Raises:
        InputError: a trace that can't be read, or none with two recorded runs of one method.
    """
    from playwright.sync_api import sync_playwright

    forecasts: list[dict[str, Any]] = []
    sources = []
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-background-networking"],
        )
        for path in paths:
            trace = load_trace(path)
            sources.append(trace.provenance)
            shown = Path(folder, "trace.html")
            shown.write_text(explorer_html(trace), encoding="utf-8")
            page = browser.new_page()
            page.goto(shown.as_uri())
            page.wait_for_selector(".metrics", state="attached")
            forecasts += [
                {"prompt": trace.request["prompt"], **one} for one in _of_trace(page, trace)
            ]
            page.close()
        browser.close()
    if not forecasts:
        raise InputError("No trace holds two recorded runs of one method at two budgets.")
    return {
        "suite": "forecast",
        **{name: sources[0].get(name) for name in ("hardware", "versions", "commit", "date")},
        "traces": len(paths),
        **{name: _summary([f for f in forecasts if f["from"] == name]) for name in ("one", "all")},
        "forecasts": forecasts,
    }


def _of_trace(page: Any, trace: Any) -> list[dict[str, Any]]:
    recorded = {record.run for record in trace.records}
    found = []
    for source in sorted(recorded):
        own = trace.runs[source]
        same = [i for i, run in enumerate(trace.runs) if run.method == own.method]
        page.evaluate(_CURVES, source)
        for target in same:
            if target == source:
                continue
            others = [i for i in same if i != target]
            ways = {"one": [source]}
            if len(others) > 1:
                ways["all"] = others
            for name, known in ways.items():
                told = page.evaluate(_FORETELL, [trace.runs[target].config["top_p"], known])
                if told is not None:
                    found.append({"from": name, **_compared(trace, source, target, told)})
    return found


def _compared(trace: Any, source: int, target: int, told: dict[str, Any]) -> dict[str, Any]:
    budgets = [trace.runs[i].config["top_p"] for i in (source, target)]
    result = trace.runs[target].result
    return {
        "method": trace.runs[target].method,
        "top_p": budgets[1],
        "recorded_at_top_p": budgets[0],
        "psnr_db": result["psnr_db"],
        "psnr_db_foretold": told["psnr_db"],
        "off_db": told["off_db"],
        "speedup": result["speedup"],
        "speedup_foretold": told.get("speedup"),
        "compute_density": result["compute_density"],
        "compute_density_foretold": told["compute_density"],
    }


def _summary(forecasts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How far off they were: in the median, nine in ten, at worst; None without any."""
    if not forecasts:
        return None
    finite = [f for f in forecasts if f["psnr_db"] is not None]
    off_db = [abs(f["psnr_db_foretold"] - f["psnr_db"]) for f in finite]
    timed = [f for f in forecasts if f["speedup_foretold"] and f["speedup"]]
    off_speed = [abs(f["speedup_foretold"] / f["speedup"] - 1) for f in timed]
    within = [off <= f["off_db"] for off, f in zip(off_db, finite, strict=True)]
    return {
        "count": len(forecasts),
        "psnr_off_db": _spread(off_db),
        "speedup_off": _spread(off_speed),
        "within_bar": sum(within) / len(within) if within else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ranked = sorted(values)
    return {
        "median": statistics.median(ranked),
        "nine_in_ten": ranked[math.ceil(0.9 * len(ranked)) - 1],
        "worst": ranked[-1],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Check the forecasts of the traces and write the record."""
    parser = argparse.ArgumentParser(prog="python -m viz.forecast_check", description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(argv)
    try:
        record = check(arguments.traces)
        write_atomic(arguments.out, json_bytes(record))
    except (InputError, OSError) as error:
        print(f"forecast_check: {error}", file=sys.stderr)
        return 2
    for name in ("one", "all"):
        print(f"from {name}: {record[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
