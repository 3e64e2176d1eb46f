"""Race all kernel variants on this machine's GPU, within the minutes given.

    python -m svg2.bench.race --minutes 6                 kernels, then blocks of transformers
    python -m svg2.bench.race --minutes 4 --suite kernels
    python -m svg2.bench.race --rehearse --minutes 5      no GPU: the same at toy sizes

Results go to assets/bench/race-GPU.json and race-GPU-blocks.json after every case, and what won
to kernels/winners.json. The same command goes on where it stopped, unless kernels or versions have
changed. Exit codes: 0 done or out of time, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import json
import sys
import time
from typing import Any

from svg2.bench.race.plan import Budget
from svg2.errors import SuiteUnavailable, UsageError


def main(argv: list[str] | None = None) -> int:
    began = time.monotonic()
    from svg2.bench.race.supervise import add_place  # loads torch, which takes seconds that count

    parser = argparse.ArgumentParser(
        prog="python -m svg2.bench.race",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="it ends within these")
    parser.add_argument("--suite", choices=("all", "kernels", "e2e"), default="all")
    parser.add_argument("--fresh", action="store_true", help="start anew, not where it stopped")
    parser.add_argument(
        "--trial-seconds", type=float, default=120.0, help="a variant that takes longer is out"
    )
    add_place(parser)
    arguments = parser.parse_args(argv)
    try:
        result = _run(arguments, began)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (SuiteUnavailable, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return 130
    print(json.dumps(result), flush=True)
    return 0


def _run(arguments: argparse.Namespace, began: float) -> dict[str, Any]:
    if not 0 < arguments.minutes <= 24 * 60:
        raise UsageError(f"--minutes must be above 0 and at most 1440, not {arguments.minutes:g}.")
    if arguments.controls and not arguments.rehearse:
        raise UsageError("--controls is for a rehearsal: add --rehearse.")
    budget = Budget(60 * arguments.minutes - (time.monotonic() - began))
    from svg2.bench.race.supervise import place_of
    from svg2.bench.race.whole import run_race

    place = place_of(arguments)
    place.folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return run_race(
        *(place, budget, arguments.suite, arguments.trial_seconds, say), fresh=arguments.fresh
    )


if __name__ == "__main__":
    sys.exit(main())
