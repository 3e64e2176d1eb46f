"""One video on two processes against the same on one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from svg2.metrics import psnr_db
from tests.svg2.tiny_families import TINY, save

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
)
ROOT = Path(__file__).resolve().parents[2]


def uint8(frames: np.ndarray) -> np.ndarray:
    return (np.asarray(frames) * 255).round().astype(np.uint8)


def near(a: np.ndarray, b: np.ndarray, db: float) -> bool:
    found = psnr_db(uint8(a), uint8(b))
    return found is None or found >= db


def torchrun(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*TORCHRUN, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan2.1-t2v", "wan2.1-vace", "wan2.2-ti2v", "hunyuanvideo"])
def test_two_processes_make_what_one_makes(family, tmp_path):
    folder = save(TINY[family], tmp_path / "model")
    out = tmp_path / "frames.npz"
    done = torchrun("-m", "tests.svg2.two_processes", str(folder), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as found:
        frames = dict(found)
    assert frames["before"].std() > 0
    assert near(frames["dense"], frames["before"], 60)
    assert near(frames["measured"], frames["before"], 60)
    assert near(frames["sparse"], frames["alone"], 45)
    assert not np.array_equal(uint8(frames["sparse"]), uint8(frames["dense"]))
    assert np.array_equal(frames["after"], frames["before"])
    assert frames["density"].shape == frames["density_alone"].shape, "of all heads"
    np.testing.assert_allclose(frames["density"], frames["density_alone"], atol=0.02)
    assert len(set(frames["n_tokens"])) == 1
