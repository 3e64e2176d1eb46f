"""The process that times: contest after contest, each by halving, until its seconds are over.

python -m svg2.bench.race.work RECORD --seconds S --out FOLDER
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from svg2.bench.harness import Progress, reason
from svg2.bench.race import contests as made
from svg2.bench.race.contests import Contest, race_cases
from svg2.bench.race.plan import (
    MAX_LONG_ROUNDS,
    MIN_LONG_ROUNDS,
    SHORT_ROUNDS,
    Budget,
    Costs,
    finalists,
    rounds_within,
)
from svg2.bench.race.record import Place, Record
from svg2.bench.race.supervise import add_place, place_of, stop_with_parent
from svg2.bench.turns import time_in_turns
from svg2.bench.workload import ClusteredWorkload, make_clustered

DEVICE_LOST = 3
"""Exit code where the device takes no more work after a variant failed."""

_SHORT_SHARE = 0.4  # of a contest's time at most
_STEP_WEIGHT = 0.1  # of a contest of k-means, sort or routing; attention at one density weighs 1


class Worker:
    """Runs all contests that the record lacks."""

    def __init__(self, place: Place, record: Record, budget: Budget, say: Progress) -> None:
        self.place, self.record, self.budget, self.say = place, record, budget, say
        self.costs = Costs()

    def run(self) -> None:
        """All contests, the most important first; what finds no time is listed as left out."""
        self.record.content["left_out"] = []
        cases = race_cases(self.place)
        for i, case in enumerate(cases):
            keys = [made.attend_key(case, density) for density in made.DENSITIES]
            keys += made.step_keys(case) if i == 0 else []
            if all(self._is_over(key) for key in keys):
                continue
            if self.record.is_dropped("setup", case.name):
                self._leave_out({"case": case.name}, "its input could not be made")
                continue
            work = made.attend_work(case, made.DENSITIES[0])
            if not self._has_time({"case": case.name}, "attend", work):
                continue
            self.record.start("setup", case.name, "make the input")
            self.say(f"{case.name}: {case.workload.title}, {case.workload.heads} heads")
            clustered = make_clustered(
                case.workload, self.place.device.type, self.place.dtype, "fused"
            )
            later = len(made.DENSITIES) * (len(cases) - i - 1)
            self._case(case, clustered, later, has_steps=i == 0)
            del clustered
            if self.place.device.type == "cuda":
                torch.cuda.empty_cache()
        self.record.save()

    def _case(
        self, case: made.Case, clustered: ClusteredWorkload, later: float, *, has_steps: bool
    ) -> None:
        """The contests of one input; `later` is the weight of those that follow."""
        chip = self.record.content["chip"]
        for done, density in enumerate(made.DENSITIES):
            key = made.attend_key(case, density)
            work = made.attend_work(case, density)
            if self._is_over(key) or not self._has_time(key, "attend", work):
                continue
            self.record.start("setup", case.name, "select")
            began = time.monotonic()
            contest = made.attend_contest(self.place, chip, case, clustered, density, self.record)
            here = len(made.DENSITIES) - done + 3 * _STEP_WEIGHT * has_steps
            self._contest(contest, self.budget.share(1.0, here + later))
            self.costs.learn("attend", work, time.monotonic() - began)
        if not has_steps:
            return
        missing = [key for key in made.step_keys(case) if not self._is_over(key)]
        for contest in made.step_contests(self.place, chip, case, clustered, missing):
            if self._has_time(contest.key, contest.op, contest.work):
                weights = later + _STEP_WEIGHT * len(missing)
                self._contest(contest, self.budget.share(_STEP_WEIGHT, weights))

    def _contest(self, contest: Contest, seconds: float) -> None:
        """Check, time all for a short time, then the best third and the kernels of others."""
        budget, default = Budget(seconds), next(iter(contest.entries))
        runs: dict[str, Callable[[], Any]] = {}
        first_ms: dict[str, float] = {}
        errors: dict[str, float | None] = {}

        def admit(op: str, name: str, run: Callable[[], Any], fault: Callable) -> None:
            if not self.record.is_dropped(op, name):
                found = self._check(op, name, run, fault, contest.key)
                if found is not None:
                    first_ms[name], errors[name] = found
                    runs[name] = run

        for name in contest.entries:
            admit(contest.op, name, lambda name=name: contest.run(name), contest.fault)
        ours = list(runs)
        for name, run in contest.dense.items():
            admit("dense", name, run, contest.is_dense_right or contest.fault)
        for name, run in contest.others.items():
            admit("others", name, run, contest.fault)
        if not ours:
            self._leave_out(contest.key, "no variant is right")
            return
        rounds = rounds_within(
            budget.left * _SHORT_SHARE, sum(first_ms[name] for name in ours), 1, SHORT_ROUNDS
        )
        short = self._time(contest, {name: runs[name] for name in ours}, rounds)
        short_ms = {name: statistics.median(times) for name, times in short.items()}
        last = [*finalists(short_ms, default), *(name for name in runs if name not in ours)]
        expected_ms = sum(short_ms.get(name, first_ms[name]) for name in last)
        rounds = rounds_within(budget.left, expected_ms, MIN_LONG_ROUNDS, MAX_LONG_ROUNDS)
        long = self._time(contest, {name: runs[name] for name in last}, rounds)
        rows = [
            self._row(contest, name, long.get(name) or short[name], errors[name], name in long)
            for name in runs
            if name in long or name in short
        ]
        self._finish(contest, rows, default)

    def _check(
        self, op: str, name: str, run: Callable, fault: Callable, key: dict[str, Any]
    ) -> tuple[float, float | None] | None:
        """Milliseconds of a second run and the relative error; None if the variant is dropped."""
        self.record.start(op, name, "check")
        where = {"case": key["case"], "asked": key.get("asked")}
        try:
            wrong, error = fault(run())
            if wrong is None:
                (ms,) = self._turns({name: run}, 1)[name]
                return ms, error
        except Exception as failure:  # whatever it is rules this variant out
            wrong = reason(failure)
        self.record.drop(op, name, wrong, **where)
        self.say(f"  {name} dropped: {wrong}")
        self._check_device()
        return None

    def _time(
        self, contest: Contest, runs: dict[str, Callable[[], Any]], rounds: int
    ) -> dict[str, list[float]]:
        def told(name: str) -> None:
            self.record.start(self._op_of(contest, name), name, "time")

        return self._turns(runs, rounds, told)

    def _turns(
        self,
        runs: dict[str, Callable[[], Any]],
        rounds: int,
        before: Callable[[str], object] | None = None,
    ) -> dict[str, list[float]]:
        device = self.place.device
        return time_in_turns(runs, rounds, device, int(device.type == "cuda"), before)

    @staticmethod
    def _op_of(contest: Contest, name: str) -> str:
        if name in contest.dense:
            return "dense"
        return "others" if name in contest.others else contest.op

    def _row(
        self, contest: Contest, name: str, times: list[float], error: float | None, is_long: bool
    ) -> dict[str, Any]:
        return {
            "name": name,
            "of": self._op_of(contest, name),
            "ms": statistics.median(times),
            "ms_min": min(times),
            "rounds": len(times),
            "is_finalist": is_long,
            "relative_error": error,
        }

    def _finish(self, contest: Contest, rows: list[dict[str, Any]], default: str) -> None:
        ms = {row["name"]: row["ms"] for row in rows}
        dense = {row["name"]: row["ms"] for row in rows if row["of"] == "dense"}
        best_dense = min(dense, key=dense.__getitem__) if dense else None
        facts = dict(contest.facts)
        gflop = facts.pop("gflop", None)
        for row in rows:
            is_ours = row["of"] == contest.op and default in ms
            row["over_default"] = ms[default] / row["ms"] if is_ours else None
            if best_dense is not None:
                row["over_dense"] = dense[best_dense] / row["ms"]
                pairs = 1.0 if row["of"] == "dense" else facts["density"]
                row["useful_tflops"] = pairs * gflop / row["ms"]
        self.record.content["contests"].append(
            {**contest.key, **facts, "default": default, "best_dense": best_dense, "rows": rows}
        )
        self.record.save()
        for row in sorted(rows, key=lambda row: row["ms"]):
            beside = "" if "over_dense" not in row else f", {row['over_dense']:.2f}× {best_dense}"
            self.say(f"  {contest.op} {row['name']}: {row['ms']:.3f} ms{beside}")

    def _is_over(self, key: dict[str, Any]) -> bool:
        return self.record.contest(key) is not None

    def _has_time(self, key: dict[str, Any], kind: str, work: float) -> bool:
        needed = self.costs.predict(kind, work)
        if self.budget.left > max(needed, 0.0):
            return True
        left = max(self.budget.left, 0.0)
        self._leave_out(key, f"{left:.0f} s were left, and about {needed:.0f} s needed")
        return False

    def _leave_out(self, key: dict[str, Any], why: str) -> None:
        self.record.content["left_out"].append({**key, "why": why})
        self.say(f"  left out: {why}")

    def _check_device(self) -> None:
        """Leave where the device is lost; whoever supervises starts another process."""
        if self.place.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.ones(1, device="cuda").sum().item()
        except RuntimeError:
            self.say("  the device takes no more work in this process")
            sys.exit(DEVICE_LOST)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m svg2.bench.race.work")
    parser.add_argument("record", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    add_place(parser)
    arguments = parser.parse_args(argv)
    stop_with_parent()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    worker = Worker(
        place_of(arguments), Record.read(arguments.record), Budget(arguments.seconds), say
    )
    with torch.inference_mode():
        worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
