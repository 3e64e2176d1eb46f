"""One video on two processes against the same on one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from svg2.cli import OUTPUTS, _check_share
from svg2.errors import RequestError
from svg2.hooks.context_parallel import _plan
from svg2.models.finding import model_spec
from svg2.models.request import Request
from svg2.runs.distributed import Processes
from svg2.trace.file import load_trace
from svg2.trace.metrics import psnr_db
from tests.svg2.tiny_families import TINY, save

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
)
ROOT = Path(__file__).resolve().parents[2]
SPLIT = (
    *("wan2.1-t2v", "wan2.1-i2v", "wan2.1-vace", "wan2.2-ti2v", "wan2.2-i2v", "skyreels-v2"),
    *("hunyuanvideo", "hunyuanvideo-i2v-33ch"),
)


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


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder a family with its frames, all made by the same two processes."""
    root = tmp_path_factory.mktemp("families")
    folders = [str(save(TINY[family], root / family)) for family in SPLIT]
    done = torchrun("-m", "tests.svg2.two_processes", *folders)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("family", SPLIT)
def test_two_processes_make_what_one_makes(family, made):
    with np.load(made / family / "frames.npz") as found:
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


def test_what_cannot_be_split_is_refused():
    """Only the first process would have the tokens of the frame that is given."""
    transformer = TINY["hunyuanvideo-i2v"].build().transformer
    with pytest.raises(RequestError, match="can't be split"):
        _plan(transformer)


def test_a_video_whose_tokens_cannot_be_shared_evenly_is_refused():
    spec = model_spec("builtin")  # 9 x 24 x 24 = 5,184 tokens
    request = Request("a red ball").resolve(spec)
    _check_share(request, Processes(0, 4, 0))
    with pytest.raises(RequestError, match=r"5,184 tokens .* 5 processes"):
        _check_share(request, Processes(0, 5, 0))


@pytest.mark.slow
def test_heads_that_cannot_be_shared_evenly_are_one_sentence(tmp_path):
    """The built-in model has four."""
    command = ("-m", "svg2", "compare", "--prompt", "a red ball", "--out", str(tmp_path))
    done = torchrun("--nproc-per-node=3", *command)
    assert done.returncode != 0
    assert "svg2: 4 heads can't be shared among 3 processes." in done.stderr
    assert "Traceback" not in done.stderr.split("processes.")[0]


@pytest.mark.slow
def test_the_command_line_shares_one_video_and_writes_it_once(tmp_path):
    folder, out = save(TINY["wan2.1-t2v"], tmp_path / "model"), tmp_path / "out"
    command = ["-m", "svg2", "compare", "--prompt", "a red ball", "--model", str(folder)]
    command += ["--device", "cpu", "--dtype", "fp32", "--out", str(out)]
    done = torchrun(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((out / "result.json").read_text())
    assert len(done.stdout.splitlines()) == 1, "the others say nothing"
    assert result["processes"] == 2
    assert 0 < result["density"] < 1
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    assert len(load_trace(out / "trace.npz").records) > 0


@pytest.mark.slow
def test_a_file_of_prompts_is_shared_out_and_goes_on_where_it_stopped(tmp_path):
    folder, out = save(TINY["wan2.1-t2v"], tmp_path / "model"), tmp_path / "out"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# three\na red ball\n\na blue cube\nthe floor\n")
    command = ["-m", "svg2", "compare", "--prompts", str(prompts), "--model", str(folder)]
    command += ["--device", "cpu", "--dtype", "fp32", "--out", str(out)]
    done = torchrun(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["rank"]: line["made"] for line in lines} == {0: [0, 2], 1: [1]}
    results = json.loads((out / "results.json").read_text())["results"]
    assert [r["prompt"] for r in results] == ["a red ball", "a blue cube", "the floor"]
    assert {r["processes"] for r in results} == {1}
