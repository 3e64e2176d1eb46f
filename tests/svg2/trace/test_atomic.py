"""Files are written all or none: on a full disk, after a kill, and beside older ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from svg2.trace import atomic
from svg2.trace.atomic import KeptElsewhere, write_all, write_atomic, write_or_keep
from tests.tree import ROOT

OLD = {"a.bin": b"old a", "b.bin": b"old b", "result.json": b"old result"}
NEW = {"a.bin": b"new a", "b.bin": b"new b" * 20_000, "result.json": b"new result"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; a limit on file sizes for those who may mount none."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a file system that is full")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_earlier_files_as_they_are(small_disk: Path) -> None:
    write(small_disk, OLD)
    with pytest.raises(OSError, match="No space left"):
        write_all(small_disk, NEW)
    assert contents(small_disk) == OLD


def test_what_a_full_disk_refuses_is_kept_elsewhere(
    small_disk: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write(small_disk, OLD)
    with pytest.raises(KeptElsewhere, match="No space left on device") as said:
        write_or_keep(small_disk, NEW)
    (kept,) = tmp_path.glob("svg2-kept-*")
    assert str(kept) in str(said.value)
    assert contents(kept) == NEW
    assert contents(small_disk) == OLD


def test_where_no_place_has_room_the_first_error_is_said(small_disk: Path, monkeypatch) -> None:
    monkeypatch.setattr(atomic, "_keep", lambda contents: None)
    with pytest.raises(OSError, match="No space left") as said:
        write_or_keep(small_disk, NEW)
    assert not isinstance(said.value, KeptElsewhere)


def test_a_folder_in_the_place_of_a_file_leaves_all_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    (tmp_path / "c.mp4").mkdir()
    with pytest.raises(IsADirectoryError, match=r"c\.mp4 is a folder"):
        write_all(tmp_path, {**NEW, "c.mp4": b"clip"})
    (tmp_path / "c.mp4").rmdir()
    assert contents(tmp_path) == OLD


def test_files_that_do_not_belong_to_the_new_ones_go(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    write_all(tmp_path, {"a.bin": b"alone"}, instead_of=OLD)
    assert contents(tmp_path) == {"a.bin": b"alone"}


# Stops the process where it is about to do the nth of these.
_KILLED = """
import os, signal, sys
from pathlib import Path
from svg2.trace import atomic
left = int(sys.argv[2])
def dying(call):
    def called(*arguments, **names):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **names)
    return called
os.fsync = dying(os.fsync)
os.replace = dying(os.replace)
atomic.write_all(sys.argv[1], {name: (name + " new").encode() for name in %r})
"""


@pytest.mark.parametrize("nth", range(1, 7))
def test_a_kill_leaves_old_files_or_new_ones_and_never_a_result_beside_others(
    tmp_path: Path, nth: int
) -> None:
    write(tmp_path, OLD)
    code = _KILLED % list(OLD)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(nth)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    parts = list(tmp_path.glob(".*.part"))
    assert parts, "it was killed before it wrote anything"
    found = {name: data for name, data in contents(tmp_path).items() if name in OLD}
    if nth <= 3:  # before all were on the disk
        assert found == OLD
    else:
        assert "result.json" not in found
    write_atomic(tmp_path / "other.txt", b"next")
    assert not list(tmp_path.glob(".*")), "the next writer removes what was left"
    write_all(tmp_path, NEW)
    assert contents(tmp_path) == NEW | {"other.txt": b"next"}


def test_what_another_process_is_writing_stays(tmp_path: Path, monkeypatch) -> None:
    seen = []
    fsync = os.fsync

    def meanwhile(handle: int) -> None:
        fsync(handle)
        if not seen:
            seen.append(1)
            code = "import sys; from svg2.trace.atomic import write_atomic\n"
            code += "write_atomic(sys.argv[1], b'theirs')"
            path = str(tmp_path / "theirs.txt")
            subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_all(tmp_path, NEW)
    assert contents(tmp_path) == NEW | {"theirs.txt": b"theirs"}
