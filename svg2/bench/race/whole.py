"""A whole race: trials, timing, winners, blocks of transformers, within one budget of time."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from svg2.bench.harness import Progress
from svg2.bench.race.contests import attend_key, race_cases, step_keys
from svg2.bench.race.entries import entries_of
from svg2.bench.race.plan import Budget, trial_limit
from svg2.bench.race.record import Place, Record
from svg2.bench.race.supervise import run_process, watch
from svg2.bench.race.winners import decide, write_winners
from svg2.bench.race.work import DEVICE_LOST
from svg2.errors import SuiteUnavailable

_KERNELS_SHARE = 0.7  # of the time, where blocks of transformers follow
_LAST_SECONDS = 5.0  # to end processes and write what won
_STEP_SECONDS = {False: 60.0, True: 300.0}  # without a sign of life; True in a rehearsal
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
        tasks = [*((other, None) for other in warmed), *((op, name) for name in names)]
        seconds: list[float] = []

        def stall(waited: float) -> str | None:
            limit = trial_limit(seconds, len(tasks), self.trial_seconds)
            return f"not done in {limit:.0f} s" if waited > limit else None

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


def run_race(
    place: Place, budget: Budget, suite: str, trial_seconds: float, say: Progress, *, fresh: bool
) -> dict[str, Any]:
    """Race what the record of this machine lacks; returns what was written and what won.

    Args:
        suite: `kernels`, `e2e` for blocks of transformers, or `all`.
        fresh: start anew, not where the record stops.

    Raises:
        SuiteUnavailable: there is no GPU, or the race can't go on.
        OSError: the results can't be written.
    """
    if not place.is_rehearsal and not torch.cuda.is_available():
        raise SuiteUnavailable(_NO_GPU)
    record = Record.begin(place, fresh=fresh)
    say(f"results: {record.path}")
    race = Race(place, budget, trial_seconds, say)
    files = [str(record.path)]
    if suite != "e2e":
        share = _KERNELS_SHARE if suite == "all" else 1.0
        race.kernels(record, share * budget.left - _LAST_SECONDS)
        record = Record.read(record.path)
    if suite != "kernels":
        files.append(str(race.blocks(record)))
    content = record.content
    return {
        "files": files,
        "winners": {op: row["name"] for op, row in content.get("winners", {}).items()},
        "winners_file": str(place.winners),
        "dropped": content["dropped"],
        "absent": content["absent"],
        "left_out": content["left_out"],
        "seconds_left": round(budget.left, 1),
    }
