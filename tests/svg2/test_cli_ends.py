"""The command line on a full disk and after a kill: nothing is lost, and nothing half read."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svg2 import cli
from svg2.trace import atomic
from svg2.trace.file import load_trace
from tests.svg2.pipelines import make_model_folder
from tests.tree import ROOT

FILES = {"dense.mp4", "svg2.mp4", "compare.mp4", "trace.npz", "result.json"}


@pytest.fixture(scope="module")
def folder(tiny_pipeline_path, tmp_path_factory) -> str:
    return str(make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny"))


def arguments(folder: str, out: Path, *more: str) -> list[str]:
    return ["--prompt", "a red ball", "--model", folder, "--steps", "2", "--out", str(out), *more]


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def full_disk(monkeypatch, tmp_path):
    """The output folder has no room; the temporary folder has."""
    out = tmp_path / "out"
    stage = atomic._stage

    def refuse(folder, name, data, undo):
        if Path(folder) == out and name != "dense.mp4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(Path(folder, name)))
        return stage(folder, name, data, undo)

    monkeypatch.setattr(atomic, "_stage", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return out


@pytest.mark.parametrize(
    ("command", "made"),
    [
        (["compare"], FILES),
        (["sweep", "--top-p", "1", "--methods", "svg2"], {"sweep.json", "trace.npz"}),
    ],
)
def test_a_full_disk_keeps_what_was_made_and_says_where(
    folder, full_disk, tmp_path, capsys, command, made
) -> None:
    full_disk.mkdir()
    old = {"dense.mp4": b"old", "result.json": b"{}", "trace.npz": b"old"}
    for name, data in old.items():
        (full_disk / name).write_bytes(data)
    assert cli.main([command[0], *arguments(folder, full_disk), *command[1:]]) == 1
    said = capsys.readouterr()
    assert "No space left on device" in said.err
    (kept,) = tmp_path.glob("svg2-kept-*")
    assert f"what was made is kept in {kept}." in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert set(files(kept)) == made
    assert load_trace(kept / "trace.npz").runs
    assert files(full_disk) == old, "new files stand beside old ones"


def test_where_nothing_has_room_it_says_so_and_what_was_there_stays(
    folder, full_disk, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(atomic, "_keep", lambda contents: None)
    full_disk.mkdir()
    (full_disk / "result.json").write_bytes(b"{}")
    assert cli.main(["compare", *arguments(folder, full_disk)]) == 1
    assert "The disk is full: free some space and run the same" in capsys.readouterr().err
    assert files(full_disk) == {"result.json": b"{}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [pytest.param("dense denoise", marks=pytest.mark.nightly), "svg2 measure"]
)
def test_after_a_kill_at_any_stage_the_same_command_works_and_nothing_is_left(
    folder, tmp_path, capsys, stage
) -> None:
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    out.mkdir()
    (out / "result.json").write_text("{}")  # of an earlier run
    argv = ["compare", *arguments(folder, out, "--method", "svg2")]
    process = subprocess.Popen(
        [sys.executable, "-m", "svg2", *argv],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any(line.startswith(stage) for line in process.stderr), "it never came that far"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (out / "result.json").read_text() == "{}"
    done = subprocess.run(
        [sys.executable, "-m", "svg2", *argv],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "svg2"
    assert set(files(out)) == FILES
    assert list(temporary.iterdir()) == []
