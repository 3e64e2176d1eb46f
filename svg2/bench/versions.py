"""Test the oldest and the newest package versions: `make test-versions`.

    python -m svg2.bench.versions oldest    run the tests without a browser; compile every kernel
    python -m svg2.bench.versions newest    compile every kernel; `make test` runs the tests

`oldest` must run in an environment with the oldest versions that requirements.txt allows, except
for torch, which is the newest. The results go to assets/bench/versions.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from svg2.runs.provenance import provenance
from svg2.trace.atomic import json_bytes, write_atomic

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "assets" / "bench" / "versions.json"


def compile_chip(chip: str) -> dict[str, Any]:
    """Compile every shipped kernel for one chip; returns the number of builds and their faults."""
    from kernels.compile import compile_for, shipped_builds

    reports = [compile_for(build, chip) for build in shipped_builds(chip)]
    return {
        "builds": len(reports),
        "faults": [fault for report in reports for fault in report.faults],
    }


def compile_all() -> dict[str, Any]:
    """`compile_chip` of all chips, one process per core."""
    from kernels.compile import SHARED_LIMITS

    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(SHARED_LIMITS, pool.map(compile_chip, SHARED_LIMITS), strict=True))


def run_tests() -> dict[str, int]:
    """Run the tests of `make test` without a browser; returns the number per outcome.

    Raises:
        RuntimeError: pytest stopped before the last test.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-m", "not browser and not nightly"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout[-5000:], file=sys.stderr)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    if done.returncode not in (0, 1) or "passed" not in counts:
        raise RuntimeError(f"the tests broke off: {last}")
    counts["errors"] = counts.get("error", 0) + counts.get("errors", 0)
    return {name: counts.get(name, 0) for name in ("passed", "failed", "errors", "skipped")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m svg2.bench.versions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("which", choices=("oldest", "newest"))
    which = parser.parse_args(argv).which
    result: dict[str, Any] = provenance(torch.device("cpu"))
    if which == "oldest":
        result["tests"] = run_tests()
    result["kernels"] = compile_all()
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    record[which] = result
    write_atomic(RECORD, json_bytes(record))
    faults = [fault for chip in result["kernels"].values() for fault in chip["faults"]]
    tests = result.get("tests", {})
    print("\n".join(faults), json.dumps(tests), file=sys.stderr)
    return 1 if faults or tests.get("failed") or tests.get("errors") else 0


if __name__ == "__main__":
    sys.exit(main())
