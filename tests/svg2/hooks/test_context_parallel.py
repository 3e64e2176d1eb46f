"""One video on two processes against the same on one."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from svg2.cli import OUTPUTS
from svg2.errors import RequestError
from svg2.hooks.context_parallel import _plan
from svg2.models.request import Request
from svg2.runs.distributed import Processes
from svg2.runs.run import Run
from svg2.trace.file import load_trace
from svg2.trace.metrics import psnr_db
from tests.svg2.tiny_families import TINY, TinyFamily, save, wan_t2v

ROOT = Path(__file__).resolve().parents[3]
SPLIT = ("wan2.1-i2v", "wan2.1-vace", "wan2.2-ti2v", "hunyuanvideo")
"""One for each plan, a time per token, and tokens of an image in the cross-attention."""
MORE = ("wan2.1-t2v", "wan2.2-i2v", "skyreels-v2", "hunyuanvideo-i2v-33ch")
PROMPTS = "# three\na red ball\n\na blue cube\nthe floor\n"


def uint8(frames: np.ndarray) -> np.ndarray:
    return (np.asarray(frames) * 255).round().astype(np.uint8)


def near(a: np.ndarray, b: np.ndarray, db: float) -> bool:
    found = psnr_db(uint8(a), uint8(b))
    return found is None or found >= db


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run_on_two_processes(root: Path, names: tuple[str, ...], commands: dict) -> Path:
    """The folder with all that two processes made of these families and commands."""
    (root / "families").mkdir()
    for name in names:
        save(TINY[name], root / "families" / name)
    (root / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "-m", "tests.svg2.two_processes", str(root)),
            *free_ports(len(commands)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """All that the tests below read, made by the same two processes."""
    root = tmp_path_factory.mktemp("two")
    wan = TINY["wan2.1-t2v"]
    save(wan, root / "model")
    odd = TinyFamily(lambda: wan_t2v(num_attention_heads=3), wan.lab, layers=3)
    save(odd, root / "three-heads")
    (root / "prompts.txt").write_text(PROMPTS)

    def compare(model: str, *prompt: str) -> list[str]:
        common = ("--device", "cpu", "--dtype", "fp32", "--steps", "2")
        return ["compare", *prompt, "--model", str(root / model), *common]

    commands = {
        "one": [*compare("model", "--prompt", "a red ball"), "--out", str(root / "one")],
        "file": [
            *compare("model", "--prompts", str(root / "prompts.txt")),
            *("--out", str(root / "file")),
        ],
        "heads": [
            *compare("three-heads", "--prompt", "a red ball"),
            *("--out", str(root / "heads")),
        ],
    }
    return run_on_two_processes(root, SPLIT, commands)


@pytest.fixture(scope="session")
def made_at_night(tmp_path_factory) -> Path:
    return run_on_two_processes(tmp_path_factory.mktemp("night"), MORE, {})


def answers(made: Path, name: str) -> list[dict]:
    return [json.loads((made / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]


def check_family(folder: Path) -> None:
    with np.load(folder / "frames.npz") as found:
        frames = dict(found)
    assert frames["before"].std() > 0
    assert near(frames["dense"], frames["before"], 60)
    assert near(frames["measured"], frames["before"], 60)
    assert near(frames["sparse"], frames["alone"], 45)
    assert near(frames["routed"], frames["routed_alone"], 45)
    assert not np.array_equal(uint8(frames["routed"]), uint8(frames["dense"]))
    assert near(frames["by_place"], frames["by_place_alone"], 45)
    assert not np.array_equal(uint8(frames["sparse"]), uint8(frames["dense"]))
    assert np.array_equal(frames["after"], frames["before"])
    assert frames["density"].shape == frames["density_alone"].shape, "of all heads"
    np.testing.assert_allclose(frames["density"], frames["density_alone"], atol=0.02)
    routed, alone = frames["density_routed"], frames["density_routed_alone"]
    np.testing.assert_allclose(routed, alone, atol=0.02)
    assert len(set(frames["n_tokens"])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", SPLIT)
def test_two_processes_make_what_one_makes(family, made):
    check_family(made / "families" / family)


@pytest.mark.nightly
@pytest.mark.parametrize("family", MORE)
def test_two_processes_make_of_the_other_families_what_one_makes(family, made_at_night):
    check_family(made_at_night / "families" / family)


@pytest.mark.slow
def test_heads_that_cannot_be_shared_evenly_are_one_sentence(made):
    for found in answers(made, "heads"):
        assert found["code"] == 2
        assert found["out"] == ""
        assert "svg2: 3 heads can't be shared among 2 processes." in found["err"]
        assert "Traceback" not in found["err"]


@pytest.mark.slow
def test_the_command_line_shares_one_video_and_writes_it_once(made):
    first, other = answers(made, "one")
    assert (first["code"], other["code"]) == (0, 0)
    result = json.loads(first["out"])
    assert result == json.loads((made / "one" / "result.json").read_text())
    assert len(first["out"].splitlines()) == 1
    assert other["out"] == "", "the others say nothing"
    assert result["processes"] == 2
    assert 0 < result["density"] < 1
    assert sorted(path.name for path in (made / "one").iterdir()) == sorted(OUTPUTS)
    assert len(load_trace(made / "one" / "trace.npz").records) > 0


@pytest.mark.slow
def test_a_file_of_prompts_is_shared_out(made):
    found = answers(made, "file")
    assert [one["code"] for one in found] == [0, 0]
    lines = [json.loads(one["out"]) for one in found]
    assert {line["rank"]: line["made"] for line in lines} == {0: [0, 2], 1: [1]}
    results = json.loads((made / "file" / "results.json").read_text())["results"]
    assert [r["prompt"] for r in results] == ["a red ball", "a blue cube", "the floor"]
    assert {r["processes"] for r in results} == {1}


def test_what_cannot_be_split_is_refused():
    """Only the first process would have the tokens of the frame that is given."""
    transformer = TINY["hunyuanvideo-i2v"].build().transformer
    with pytest.raises(RequestError, match="can't be split"):
        _plan(transformer)


def test_a_video_whose_tokens_cannot_be_shared_evenly_is_refused():
    run = Run.of(Request("a red ball", num_frames=17))  # 9 x 24 x 24 = 5,184 tokens
    Processes(0, 4, 0).check_tokens(run.n_tokens)
    with pytest.raises(RequestError, match=r"5,184 tokens .* 5 processes"):
        Processes(0, 5, 0).check_tokens(run.n_tokens)
