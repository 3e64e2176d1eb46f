"""The README's map names every source file, and its commands and flags exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest

from svg2.bench.e2e import run_e2e_suite
from svg2.bench.gpu import run_gpu_suite
from svg2.bench.report import with_numbers
from tests.tree import ROOT, project_files

README = (ROOT / "README.md").read_text()
SOURCE_SUFFIXES = {".py", ".js", ".css"}


def file_map() -> str:
    return README.split("## File map", 1)[1]


def shell_lines() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@cache
def help_text(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr[-500:]}"
    return done.stdout


def test_map_names_every_source_file() -> None:
    named = set(re.findall(r"`([^`\s]+)`", file_map()))
    sources = {
        str(path)
        for path in project_files()
        if path.suffix in SOURCE_SUFFIXES
        and path.parts[0] != "tests"
        and path.name != "__init__.py"
    }
    assert not sources - named, f"no line in the README's map: {sorted(sources - named)}"


def test_map_names_nothing_that_is_gone() -> None:
    named = re.findall(r"^- ((?:`[^`]+`(?:, )?)+):", file_map(), flags=re.MULTILINE)
    paths = [path for line in named for path in re.findall(r"`([^`]+)`", line)]
    assert len(paths) > 5
    gone = [path for path in paths if not (ROOT / path).exists()]
    assert not gone, f"in the map but not on disk: {gone}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("python -m ")])
def test_command_lines_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    # One parser for all stages of training, and one for each command of the others.
    command = words[:2] if words[1] == "svg2.training" else words[:3]
    text = help_text(*command)
    assert len(words) < 3 or words[2].startswith("--") or words[2] in text
    for flag in (word for word in words if word.startswith("--")):
        assert re.search(rf"{flag}\b", text), f"{' '.join(command)} has no {flag}"


def test_numbers_are_those_of_the_committed_results() -> None:
    assert with_numbers(README, ROOT / "assets" / "bench") == README


def test_what_has_no_result_reads_not_measured(tmp_path) -> None:
    text = with_numbers(README, tmp_path)
    assert text.count("not measured.") == 5
    assert "not measured." in text.split("built-in model on prompts")[1]


@pytest.mark.parametrize("suite", [run_gpu_suite, run_e2e_suite])
def test_no_toy_number_reaches_the_readme(tmp_path, suite) -> None:
    name = "gpu.json" if suite is run_gpu_suite else "e2e.json"
    record = suite(tmp_path / name, lambda text: None, toy=True, rounds=2)
    assert with_numbers(README, tmp_path).count("not measured.") == 5
    (tmp_path / name).write_text(json.dumps(record | {"toy": False}))
    text = with_numbers(README, tmp_path)
    assert text.count("not measured.") == 4
    assert "| toy |" in text


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("gpu.json", {"case": "x", "contestant": "a giant", "why": "no time"}),
        ("e2e.json", {"model": "a giant", "why": "no time"}),
    ],
)
def test_what_a_suite_left_out_is_said(tmp_path, name, left) -> None:
    record = json.loads((ROOT / "assets" / "bench" / name).read_text())
    (tmp_path / name).write_text(json.dumps(record | {"left_out": []}))
    assert "Not measured" not in with_numbers(README, tmp_path)
    (tmp_path / name).write_text(json.dumps(record | {"left_out": [left]}))
    assert "a giant (no time)" in with_numbers(README, tmp_path)


def test_space_front_matter() -> None:
    front = README.split("---\n")[1]
    settings = dict(line.split(": ", 1) for line in front.splitlines())
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    assert settings["license"] == "apache-2.0"
    assert len(settings["short_description"]) <= 60
