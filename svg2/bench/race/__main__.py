"""Race all kernel variants on this machine's GPU, within the minutes given.

    python -m svg2.bench.race --minutes 6                 kernels, then blocks of transformers
    python -m svg2.bench.race --minutes 4 --suite kernels
    python -m svg2.bench.race --rehearse --minutes 3      no GPU: the same at toy sizes, untimed

Results go to assets/bench/race-GPU.json and race-GPU-blocks.json after every case, and what won
to kernels/winners.json. The same command goes on where it stopped, unless kernels or versions have
changed. Exit codes: 0 done or out of time, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from svg2.bench.harness import Progress
from svg2.bench.race.contests import attend_key, race_cases, step_keys
from svg2.bench.race.entries import entries_of
from svg2.bench.race.plan import Budget
from svg2.bench.race.record import Place, Record
from svg2.bench.race.supervise import add_place, place_of, run_process, watch
from svg2.bench.race.winners import decide, write_winners
from svg2.bench.race.work import DEVICE_LOST
from svg2.errors import SuiteUnavailable, UsageError

_KERNELS_SHARE = 0.7  # of the time, where blocks of transformers follow
_LAST_SECONDS = 2.0  # to end processes and write what won
_STEP_SECONDS = {False: 90.0, True: 300.0}  # without a sign of life; True in a rehearsal
_MAX_TRIALS = 12  # at a time
_NO_GPU = (
    "The race needs an NVIDIA GPU, and none was found; --rehearse tries it out at toy sizes in "
    "Triton's interpreter."
)


class Race:
    """One call of the command."""

    def __init__(self, place: Place, budget: Budget, trial_seconds: float, say: Progress) -> None:
        self.place, self.budget, self.say = place, budget, say
        self.trial_seconds = trial_seconds

    def kernels(self, record: Record, seconds: float) -> None:
        """Try every attend variant, time the right ones, and write down what won."""
        budget = Budget(seconds)
        self._try_variants(record, budget)
        record = self._time(record, budget)
        won = decide(self.place, record)
        record.content["winners"] = won
        record.save()
        if won:
            write_winners(self.place.winners, record.content["chip"], won)
        for op, row in won.items():
            self.say(f"{op}: {row['name']} won")

    def blocks(self, record: Record) -> Path:
        """Measure blocks of transformers in the time that is left."""
        path = record.path.with_name(f"{record.path.stem}-blocks.json")
        self.say("blocks of whole transformers")
        ending = run_process(
            "svg2.bench.race.block_times",
            [str(path), *self.place.arguments],
            self.place,
            seconds=self.budget.left - _LAST_SECONDS,
            say=self.say,
        )
        if ending.fault:
            self.say(f"blocks of transformers: {ending.fault}")
        return path

    def _try_variants(self, record: Record, budget: Budget) -> None:
        """Each attend variant in a process of its own; all kernels are compiled beside it."""
        case = race_cases(self.place)[0]
        op, chip, tried = (
            attend_key(case, 0)["op"],
            record.content["chip"],
            record.content["tried"],
        )
        names = [
            name
            for name in entries_of(self.place, chip, op)
            if name not in tried and not record.is_dropped(op, name)
        ]
        warmed = [key["op"] for key in step_keys(case) if record.contest(key) is None]
        seconds: list[float] = []

        def limit() -> float:
            # The last ones need not be waited for longer than the others let expect.
            if len(seconds) * 2 < len(names):
                return self.trial_seconds
            return min(self.trial_seconds, 20 + 2 * max(seconds))

        def stall(waited: float) -> str | None:
            return f"not done in {limit():.0f} s" if waited > limit() else None

        def attempt(what: tuple[str, str | None]) -> dict[str, Any]:
            began = time.monotonic()
            arguments = [what[0], *(() if what[1] is None else (what[1],)), "--chip", chip]
            ending = run_process(
                "svg2.bench.race.trial",
                [*arguments, *self.place.arguments],
                self.place,
                seconds=budget.left,
                stall=stall,
            )
            if ending.fault:
                return {"why": ending.fault} if budget.left > 0 else {}
            seconds.append(time.monotonic() - began)
            return json.loads(ending.last_line)

        tasks = [*((op, name) for name in names), *((other, None) for other in warmed)]
        workers = max(1, min(_MAX_TRIALS, (os.cpu_count() or 2) - 1))
        with ThreadPoolExecutor(workers) as pool:
            for (_, name), outcome in zip(tasks, pool.map(attempt, tasks), strict=True):
                if name is None:
                    continue
                if "error" in outcome:
                    tried[name] = outcome["error"]
                    record.save()
                    self.say(f"tried {name}: relative error {outcome['error']:.1e}")
                elif outcome:
                    record.drop(op, name, outcome["why"], case="trial")
                    self.say(f"{name} dropped: {outcome['why']}")

    def _time(self, record: Record, budget: Budget) -> Record:
        """Run the process that times until it is done; another goes on where one fails."""
        while budget.left > 0:
            record.now.unlink(missing_ok=True)
            ending = run_process(
                "svg2.bench.race.work",
                [str(record.path), "--seconds", str(budget.left), *self.place.arguments],
                self.place,
                seconds=budget.left,
                say=self.say,
                stall=watch(record.now, _STEP_SECONDS[self.place.is_rehearsal]),
            )
            record = Record.read(record.path)
            if ending.fault is None or budget.left <= 0:
                break
            if ending.code == DEVICE_LOST and ending.stopped is None:
                continue  # it has dropped the variant itself
            failed = record.under_way()
            if failed is None or record.is_dropped(*failed[:2]):
                raise SuiteUnavailable(f"The race can't go on: {ending.fault}.")
            op, name, what = failed
            record.drop(op, name, f"{what}: {ending.fault}"[:300])
            self.say(f"{name} dropped: {what}: {ending.fault}")
        record.now.unlink(missing_ok=True)
        return record


def main(argv: list[str] | None = None) -> int:
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
        result = _run(arguments)
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


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    if not 0 < arguments.minutes <= 24 * 60:
        raise UsageError(f"--minutes must be above 0 and at most 1440, not {arguments.minutes:g}.")
    if arguments.controls and not arguments.rehearse:
        raise UsageError("--controls is for a rehearsal: add --rehearse.")
    budget = Budget(60 * arguments.minutes)
    if not arguments.rehearse and not torch.cuda.is_available():
        raise SuiteUnavailable(_NO_GPU)
    place = place_of(arguments)
    place.folder.mkdir(parents=True, exist_ok=True)
    record = Record.begin(place, fresh=arguments.fresh)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"results: {record.path}")
    race = Race(place, budget, arguments.trial_seconds, say)
    files = [str(record.path)]
    if arguments.suite != "e2e":
        share = _KERNELS_SHARE if arguments.suite == "all" else 1.0
        race.kernels(record, share * budget.left - _LAST_SECONDS)
        record = Record.read(record.path)
    if arguments.suite != "kernels":
        files.append(str(race.blocks(record)))
    content = record.content
    return {
        "files": files,
        "winners": {op: row["name"] for op, row in content.get("winners", {}).items()},
        "winners_file": str(place.winners),
        "dropped": content["dropped"],
        "absent": content["absent"],
        "left_out": len(content["left_out"]),
    }


if __name__ == "__main__":
    sys.exit(main())
