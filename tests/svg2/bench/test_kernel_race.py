"""The race of kernel variants: how it plans, what it drops, what it leaves behind when killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import torch

from kernels import winners as recorded
from kernels.cluster_attention.fused import tiling as attend
from kernels.kmeans import fused as kmeans
from kernels.permutation import fused as permutation
from kernels.routing import fused as routing
from svg2.bench.race import record as records
from svg2.bench.race.__main__ import main
from svg2.bench.race.entries import CRASHES, CRASHES_LATE, HANGS, WRONG, entries_of
from svg2.bench.race.plan import Budget, Costs, finalists, rounds_within, trial_limit, winner_of
from svg2.bench.race.record import Place, Record
from svg2.bench.race.supervise import run_process, watch
from svg2.bench.race.table import race_table
from svg2.bench.race.winners import decide, write_winners
from svg2.bench.race.work import Worker
from svg2.bench.report import tables
from tests.tree import ROOT


@pytest.mark.parametrize(
    ("seconds", "ms", "expected"),
    [(1, 100, 10), (0, 100, 3), (-5, 100, 3), (100, 100, 15), (1, 0, 15)],
)
def test_rounds_fit_the_time_and_their_bounds(seconds, ms, expected):
    assert rounds_within(seconds, ms, 3, 15) == expected


def test_the_best_third_and_the_default_go_on():
    ms = {"default": 9.0, "a": 1.0, "b": 3.0, "c": 2.0, "d": 5.0}
    assert finalists(ms, "default") == ["a", "c", "default"]
    assert finalists({"default": 1.0}, "default") == ["default"]
    assert finalists({"a": 1.0}, "default") == ["a"]


def test_shares_and_costs_follow_what_is_left_and_what_was_measured():
    now = [100.0]
    budget = Budget(60, lambda: now[0])
    now[0] = 120.0
    assert budget.left == 40
    assert 0.2 * 40 < budget.share(1, 4) <= 10
    now[0] = 500.0
    assert budget.left < 0
    assert budget.share(1, 1) == 0
    costs = Costs()
    assert costs.predict("attend", 5) == 0
    costs.learn("attend", 10, 20)
    costs.learn("attend", 10, 5)
    assert costs.predict("attend", 5) == 10  # by the dearest so far
    assert costs.predict("sort", 5) == 0


@pytest.mark.parametrize(
    ("finished", "count", "limit"),
    [([], 0, 90), ([], 4, 90), ([5], 4, 90), ([5, 10], 4, 25), ([50, 60], 4, 90)],
)
def test_the_last_trials_are_not_waited_for_longer_than_the_others_took(finished, count, limit):
    assert trial_limit(finished, count, 90) == limit


@pytest.mark.parametrize(
    ("contests", "ranked"),
    [
        ([{"default": 10.0, "a": 9.95}], ["default", "a"]),  # within noise
        ([{"default": 10.0, "a": 9.0}], ["a", "default"]),
        ([{"default": 10.0, "a": 9.0}, {"default": 10.0, "a": 20.0}], ["default", "a"]),
        ([{"default": 10.0, "a": 1.0}, {"default": 10.0}], ["default"]),  # not in all
        ([{"a": 2.0, "b": 1.0}], ["b", "a"]),  # the default was wrong
        ([{"a": 1.0}, {"b": 1.0}], []),
        ([], []),
    ],
)
def test_who_wins(contests, ranked):
    assert list(winner_of(contests, "default")) == ranked


def _contest(op, ms, default):
    rows = [
        {"name": n, "of": op, "ms": t, "over_default": ms[default] / t, "is_finalist": True}
        for n, t in ms.items()
    ]
    return {"op": op, "case": "x", "tokens": 10, "default": default, "rows": rows}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, is_rehearsal=True)


@pytest.fixture
def chips(place, monkeypatch):
    """Winners in a folder of their own."""
    monkeypatch.setattr(recorded, "PATH", place.winners)
    return place.winners


OPS = {
    "attend D64": lambda: attend.config_for("interpreter", 64),
    "assign D64": lambda: kmeans.tiling_for("interpreter", 64),
    "sort": lambda: permutation.tiling_for("interpreter"),
    "route D64": lambda: routing.tiling_for("interpreter", 64),
}


@pytest.mark.parametrize("op", OPS)
def test_the_winner_lands_in_the_table(op, place, chips):
    record = Record.begin(place, fresh=True)
    entries = entries_of(place, "interpreter", op)
    default, other = entries
    assert OPS[op]() == entries[default]
    record.content["contests"] = [_contest(op, {default: 2.0, other: 1.0}, default)]
    write_winners(chips, "sm_80", {"sort": {"choice": {}}})
    won = decide(place, record)
    write_winners(chips, "interpreter", won)
    assert OPS[op]() == entries[other] != entries[default]
    row = json.loads(chips.read_text())["interpreter"][op]
    assert row["name"] == other
    assert row["over_default"] == [2.0]
    assert row["measured"]["hardware"] == record.content["hardware"]
    assert "sm_80" in json.loads(chips.read_text())
    # Once dropped, it does not win.
    record.drop(op, other, "wrong result")
    write_winners(chips, "interpreter", decide(place, record))
    assert OPS[op]() == entries[default]


def test_a_variant_wins_by_its_name(chips):
    name = next(iter(attend.ATTEND_VARIANTS))
    write_winners(chips, "sm_90", {"attend D128": {"choice": {"variant": name}}})
    assert attend.config_for("sm_90", 128) == attend.config_for("sm_90", 128, name)


@pytest.mark.parametrize(
    "choice",
    [{"variant": "of another day"}, {"main": {"block_q": 1}, "tail": None}, {"tail": None}, 3],
)
def test_a_winner_that_cannot_run_is_warned_of_and_the_default_runs(choice, chips):
    write_winners(chips, "sm_90", {"attend D64": {"choice": choice}})
    with pytest.warns(UserWarning, match=r"winner of attend D64 on sm_90 .* the default runs"):
        config = attend.config_for("sm_90", 64)
    assert config == attend.config_for("sm_90", 64, "portable")


def test_a_file_of_winners_that_is_none_is_warned_of(chips):
    chips.write_text("{")
    with pytest.warns(UserWarning, match="winner of sort on sm_90"):
        assert permutation.tiling_for("sm_90") == permutation.default_tiling("sm_90")


def test_what_won_here_can_run():
    content = json.loads(recorded.PATH.read_text()) if recorded.PATH.is_file() else {}
    for chip, ops in content.items():
        for op in ops:
            kind, _, dim = op.partition(" D")
            of_kind = {"attend": attend.config_for, "assign": kmeans.tiling_for}
            of_kind |= {"route": routing.tiling_for, "sort": permutation.tiling_for}
            of_kind[kind](*(chip, int(dim)) if dim else (chip,))  # a warning would be an error


def test_a_record_is_gone_on_with_unless_kernels_changed(place, monkeypatch):
    first = Record.begin(place, fresh=False)
    first.drop("sort", "a", "wrong")
    assert Record.begin(place, fresh=False).is_dropped("sort", "a")
    assert not Record.begin(place, fresh=True).is_dropped("sort", "a")
    first.save()
    monkeypatch.setattr(records, "sources_digest", lambda: "other kernels")
    assert not Record.begin(place, fresh=False).is_dropped("sort", "a")


def test_what_has_no_time_is_left_out_by_name(place):
    record = Record.begin(place, fresh=True)
    said: list[str] = []
    Worker(place, record, Budget(-1), said.append).run()
    assert record.content["contests"] == []
    assert [left["case"] for left in record.content["left_out"]] == ["toy"]
    assert "0 s were left" in said[-1]


def test_the_tables_have_races_and_no_rehearsals(place):
    record = Record.begin(place, fresh=True)
    content = record.content
    content["contests"] = [_contest("sort", {"default": 2.0, "a": 1.0}, "default")]
    content["absent"]["flashinfer"] = "not installed"
    record.drop("sort", "b", "wrong result")
    record.save()
    empty = tables(place.folder)
    assert "race" not in empty.lower()
    content["toy"] = False
    record.save()
    text = tables(place.folder)
    assert "| sort | x, 10 tokens |  | a | 1.00 ms |  | 2.00× |  |" in text
    assert "flashinfer (not installed); b (wrong result)" in text
    assert race_table(content, "here").startswith("A race of kernel variants (float32; here)")


def test_a_process_that_does_nothing_is_ended_and_one_that_ends_says_how(place):
    sleep = ["-n", "1", "import time; time.sleep(600)"]
    stall = watch(place.folder / "none", 1)
    ending = run_process("timeit", sleep, place, seconds=60, stall=stall)
    assert ending.fault == "nothing happened for 1 s"
    ending = run_process("timeit", sleep, place, seconds=1)
    assert ending.fault == "the time was over"
    ending = run_process("timeit", ["-n", "1", "1/0"], place, seconds=60)
    assert "ended with code 1" in (ending.fault or "")
    assert "ZeroDivisionError" in (ending.fault or "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--minutes", "0"], 2, "--minutes must be above 0 and at most 1440, not 0."),
        (["--controls"], 2, "--controls is for a rehearsal: add --rehearse."),
        pytest.param(
            *([], 1, "needs an NVIDIA GPU, and none was found; --rehearse tries it out"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
)
def test_bad_calls_are_one_sentence(arguments, code, says, tmp_path, capsys):
    assert main(["--out", str(tmp_path), *arguments]) == code
    said = capsys.readouterr().err
    assert says in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.nightly
def test_a_rehearsal_killed_and_gone_on_with(tmp_path, monkeypatch):
    command = _command(tmp_path, "--rehearse", "--controls", "--suite", "kernels")
    # What hangs is found by how long the others took, on a busy machine too.
    command += ["--trial-seconds", "600", "--minutes", "60"]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (partial := _record(tmp_path))["contests"]:
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # What fails on purpose was dropped and named, each in the way that it failed.
    why = {dropped["name"]: dropped["why"] for dropped in partial["dropped"]}
    assert why.keys() == {WRONG, CRASHES, HANGS, CRASHES_LATE}
    assert "wrong result with no stand-ins: relative error 5.00e-02" in why[WRONG]
    assert "ended with code -6" in why[CRASHES]
    assert "not done in" in why[HANGS]
    assert "check: ended with code -6" in why[CRASHES_LATE]
    deadline = time.monotonic() + 60
    while _processes_of(tmp_path):
        assert time.monotonic() < deadline, "a process of the race outlives it"
        time.sleep(0.2)

    kept = _record(tmp_path)["contests"]
    assert kept[: len(partial["contests"])] == partial["contests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = _record(tmp_path)
    assert whole["contests"][: len(kept)] == kept
    assert [c["op"] for c in whole["contests"]] == [
        *("attend D64", "attend D64", "assign D64", "sort", "route D64")
    ]
    assert whole["left_out"] == []
    assert "tried" not in done.stderr  # the trials were not made again
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["absent"] == dict.fromkeys(("flash_attention_4", "flashinfer"), "not installed")
    monkeypatch.setattr(recorded, "PATH", Path(result["winners_file"]))
    assert result["winners"].keys() == OPS.keys()
    place = Place(tmp_path, is_rehearsal=True)
    for op, name in result["winners"].items():
        assert OPS[op]() == entries_of(place, "interpreter", op)[name]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["kernels", pytest.param("e2e", marks=pytest.mark.nightly)])
def test_a_rehearsal_ends_within_its_minutes(suite, tmp_path):
    command = _command(tmp_path, "--rehearse", "--suite", suite, "--minutes", "0.4")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Its own clock: Python starts before it and ends after it.
    assert 0 <= json.loads(done.stdout.splitlines()[-1])["seconds_left"] < 24
    assert _record(tmp_path)["toy"] is True
    assert not _processes_of(tmp_path)


def _command(folder, *arguments):
    return [sys.executable, "-m", "svg2.bench.race", "--out", str(folder), *arguments]


def _record(folder):
    """The record as it is on disk at this moment."""
    paths = [p for p in folder.glob("race-*.json") if not p.stem.endswith("-blocks")]
    return json.loads(paths[0].read_text()) if paths else {"contests": []}


def _processes_of(folder):
    """Processes with the folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
