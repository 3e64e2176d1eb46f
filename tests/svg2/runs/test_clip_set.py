"""Clips as VBench takes them: their names, what goes with them, and going on after a stop."""

import json
import re
from pathlib import Path

import pytest

from svg2 import cli
from svg2.errors import Cancelled, RequestError
from svg2.models.request import Request
from svg2.runs.batch import compare_all
from svg2.runs.clip_set import MAX_SAMPLES, ClipSet, clip_name
from svg2.runs.distributed import Processes
from svg2.runs.progress import Watch
from svg2.runs.run import Run
from svg2.trace.video import decode_mp4
from tests.svg2.pipelines import LAB

ODD = "a ball/cube: " + "é" * 150
LONGEST = "x" * (255 - len("-0.mp4"))
ALONE = Processes(0, 1, 0)


def clips(model, folder, prompts, samples=2, **settings):
    request = Request("-", model=model, device="cpu", num_inference_steps=2, seed=7)
    return ClipSet(folder, prompts, Run.of(request, settings=settings), samples)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def prompt_in_vbench(name: str) -> str:
    """The prompt of a file name, by the rule of VBench's own reader."""
    return re.sub(r"-\d+$", "", Path(name).stem)


def test_names_are_those_that_vbench_looks_for():
    for prompt in ("A 3D model of a 1800s victorian house.", "in the style of Ukiyo-e", LONGEST):
        assert clip_name(prompt, 4) == f"{prompt}-4.mp4"
        assert prompt_in_vbench(clip_name(prompt, 4)) == prompt


def test_a_prompt_that_is_no_file_name_has_a_name_of_its_own():
    prompts = [ODD, ODD + "é", ODD.replace("/", "_"), LONGEST + "x", LONGEST + "y", "a/b", "a_b"]
    names = [clip_name(prompt, 0) for prompt in prompts]
    assert len(set(names)) == len(prompts)
    for name in names:
        assert len(name.encode()) <= 255
        assert "/" not in name
    assert names[0].startswith("a ball_cube: é")


def test_clips_of_every_seed_with_a_manifest(model, tmp_path):
    prompts = ["a red ball", LONGEST, ODD, "a red ball"]
    done = compare_all(clips(model, tmp_path, prompts), ALONE)
    assert done == {"prompts": 3, "samples": 2, "made": list(range(6)), "left": 0, "rank": 0}
    names = {clip_name(prompt, index) for prompt in prompts for index in range(2)}
    found = files(tmp_path)
    for side in ("dense", "svg2"):
        assert {path.name for path in (tmp_path / side).iterdir()} == names
    assert {path for path in found if "/" not in path} == {"manifest.json", "prompts.json"}

    entries = json.loads((tmp_path / "manifest.json").read_text())["clips"]
    assert [(e["prompt"], e["index"], e["seed"]) for e in entries] == [
        (prompt, index, 7 + index) for prompt in prompts[:3] for index in range(2)
    ]
    for entry in entries:
        assert entry.keys() >= {"method", "density", "psnr_db", "versions", "commit", "hardware"}
        for side in ("dense", "svg2"):
            path = tmp_path / entry["files"][side]
            assert len(decode_mp4(path.read_bytes())) == LAB["num_frames"]
    dense = [(tmp_path / entry["files"]["dense"]).read_bytes() for entry in entries]
    assert len(set(dense)) == len(dense)
    by_name = json.loads((tmp_path / "prompts.json").read_text())
    assert by_name.keys() == names
    assert by_name[clip_name(ODD, 1)] == ODD


def test_what_is_there_is_not_made_again(model, tmp_path):
    def layout(**settings):
        return clips(model, tmp_path, ["a red ball", "a blue cube"], **settings)

    first = tmp_path / "svg2" / "a red ball-0.mp4"
    with pytest.raises(Cancelled):
        compare_all(layout(), ALONE, Watch(should_cancel=first.exists))
    assert not (tmp_path / "manifest.json").exists()
    before = first.stat().st_mtime_ns
    second = compare_all(layout(), Processes(1, 2, 1))
    assert (second["made"], second["left"]) == ([1, 3], 1)
    assert compare_all(layout(), ALONE)["made"] == [2]
    assert first.stat().st_mtime_ns == before
    assert compare_all(layout(), ALONE)["made"] == []

    (tmp_path / "dense" / "a blue cube-1.mp4").unlink()
    assert compare_all(layout(), ALONE)["made"] == [3]
    with pytest.raises(Cancelled):
        compare_all(layout(top_p=0.5), ALONE, Watch(should_cancel=lambda: True))
    assert not (tmp_path / "manifest.json").exists(), "another budget is another set"


def test_more_prompts_and_samples_join_those_that_are_there(model, tmp_path):
    compare_all(clips(model, tmp_path, ["a red ball"], samples=1), ALONE)
    both = clips(model, tmp_path, ["a blue cube", "a red ball"], samples=2)
    assert compare_all(both, ALONE)["made"] == [0, 1, 3]


def test_numbers_of_samples_out_of_range_are_refused(model, tmp_path):
    for samples in (0, -1, MAX_SAMPLES + 1):
        with pytest.raises(RequestError, match="samples must be"):
            clips(model, tmp_path, ["a ball"], samples)


def test_the_command_line_makes_five_of_each(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n")
    argv = ["compare", "--prompts", str(prompts), "--model", model, "--steps", "1"]
    argv += ["--layout", "vbench", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(argv) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (done["samples"], done["made"]) == (5, [0, 1, 2, 3, 4])
    names = sorted(path.name for path in (tmp_path / "out" / "svg2").iterdir())
    assert names == [f"a red ball-{index}.mp4" for index in range(5)]
