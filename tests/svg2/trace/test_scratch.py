"""Temporary folders go with their process, and a full disk is no end where memory has room."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from svg2.trace import scratch
from svg2.trace.video import decode_mp4, encode_mp4
from tests.tree import ROOT

CLIP = np.zeros((3, 16, 16, 3), np.uint8)
_USED = """
import os, signal, sys
from pathlib import Path
from svg2.trace.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "clip.mp4").write_bytes(b"half")
    print(folder, flush=True)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "wait":
        sys.stdin.readline()
    if sys.argv[1] == "fail":
        sys.exit("failed")
"""


def started(how: str, tmp_path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _USED, how],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def left(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["end", "fail"])
def test_nothing_is_left_by_a_process_that_ends(how: str, tmp_path: Path) -> None:
    started(how, tmp_path).communicate()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_and_a_living_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    living = started("wait", tmp_path)
    assert living.stdout is not None
    own = Path(living.stdout.readline().strip())
    killed = started("kill", tmp_path)
    folder = Path(killed.communicate()[0].strip())
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "clip.mp4").exists()
    started("end", tmp_path).communicate()
    assert not folder.parent.exists()
    assert (own / "clip.mp4").exists()
    living.communicate("\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no memory to write to as a disk")
def test_a_clip_is_encoded_in_memory_where_the_disk_is_full(tmp_path: Path, monkeypatch) -> None:
    places = []
    folder_in = scratch.scratch_folder

    def full(place: str | None = None):
        places.append(place)
        if place is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return folder_in(place)

    expected = encode_mp4(CLIP, 8)
    monkeypatch.setattr(scratch, "scratch_folder", full)
    assert encode_mp4(CLIP, 8) == expected
    assert np.abs(decode_mp4(expected).astype(int) - CLIP).max() < 8
    assert places == [None, "/dev/shm"] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system that is full")
def test_ffmpeg_on_a_full_disk_is_no_fault_of_the_video(tmp_path: Path, monkeypatch) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        noise = np.random.default_rng(0).integers(0, 255, (8, 128, 128, 3), np.uint8)
        assert len(encode_mp4(noise, 8)) > 16_384
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_other_failures(number: int) -> None:
    assert scratch.is_full(OSError(number, "full"))
    assert not scratch.is_full(OSError(errno.EACCES, "not ours"))
    assert not scratch.is_full(ValueError("full"))
