"""The READMEs' maps name every source file, and their commands and flags exist."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import pytest

from svg2.bench.report import tables
from tests.tree import ROOT, project_files
from viz.bench_figures import with_figures

README = (ROOT / "README.md").read_text()
SOURCE_SUFFIXES = {".py", ".js", ".css"}


MAPS = {
    "README.md": "## Where things are",
    "kernels/README.md": "## Files",
    "svg2/README.md": "## Files",
    "viz/README.md": "## Files",
}
GUIDES = (*MAPS, "svg2/training/README.md", "assets/traces/README.md")


def file_map() -> str:
    return "".join((ROOT / path).read_text().split(title, 1)[1] for path, title in MAPS.items())


def shell_lines() -> list[str]:
    text = "".join((ROOT / path).read_text() for path in GUIDES)
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@cache
def help_text(module: str, *command: str) -> str:
    """What `python -m module command --help` prints; run in this process, which has torch."""
    printed, complained = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(printed),
        redirect_stderr(complained),
        warnings.catch_warnings(),
    ):
        patch.setattr(sys, "argv", [module, *command, "--help"])
        # Another test may have imported the module that is about to run.
        warnings.filterwarnings("ignore", message=".*found in sys.modules", module="runpy")
        with pytest.raises(SystemExit) as exit_of:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not exit_of.value.code, f"{module} {command} --help: {complained.getvalue()[-500:]}"
    return printed.getvalue()


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


def test_the_readme_is_short_and_leads_to_every_guide() -> None:
    assert len(README.splitlines()) <= 250
    for path in GUIDES[1:]:
        assert f"]({path})" in README


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("python -m ")])
def test_command_lines_exist(line: str) -> None:
    words = shlex.split(line)[2:]
    # One parser for all stages of training, and one for each command of the others.
    command = words[:1] if words[0] == "svg2.training" else words[:2]
    text = help_text(*command)
    assert len(words) < 2 or words[1].startswith("--") or words[1] in text
    for flag in (word for word in words if word.startswith("--")):
        assert re.search(rf"{flag}\b", text), f"{' '.join(command)} has no {flag}"


def test_numbers_are_those_of_the_committed_results() -> None:
    bench = ROOT / "assets" / "bench"
    assert tables(bench) == (bench / "README.md").read_text()
    assert with_figures(README) == README


def test_space_front_matter() -> None:
    front = README.split("---\n")[1]
    settings = dict(line.split(": ", 1) for line in front.splitlines())
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    assert settings["license"] == "apache-2.0"
    assert len(settings["short_description"]) <= 60
    # requirements.txt narrows torch for the Python of Spaces alone.
    python = settings["python_version"].strip('"')
    narrowed = rf"^torch<2\.12; python_version == \"{re.escape(python)}\"$"
    assert re.search(narrowed, (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
