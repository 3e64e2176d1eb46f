"""`python app.py` as a program: how it starts, and what it takes with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import app
from svg2.runs.jobs import Studio
from tests.tree import ROOT
from viz.page.open_traces import OpenTraces

# Prints what the process holds where torch is first asked for, or at the end where nobody asks.
_WATCHED = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
import app, torch
"""


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["--port", "70000"], "name a free port by --port"), (["--prot", "7861"], "unrecognized")],
)
def test_a_start_that_cannot_be_is_refused_in_a_sentence(argv, says, capsys):
    with pytest.raises(SystemExit) as refused:
        app.main(argv)
    assert says in f"{refused.value} {capsys.readouterr().err}"


def test_a_model_that_does_not_exist_is_refused_in_a_sentence(capsys, monkeypatch):
    monkeypatch.setattr(app, "launch", lambda *_, **__: pytest.fail("it serves"))
    with pytest.raises(SystemExit) as refused:
        app.main(["--model", "typo"])
    said = capsys.readouterr().err
    assert refused.value.code == 2
    assert said.startswith("python app.py: ")
    assert said.count("\n") == 1
    assert "'typo'" in said


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.strip()


@pytest.mark.slow
def test_the_program_sets_its_environment_before_torch_is_loaded():
    assert run_python(_WATCHED) == "PASSIVE"


@pytest.mark.slow
def test_a_given_environment_stays_and_the_page_is_up_before_torch_is_loaded():
    code = (
        "import app, os, sys\n"
        "print(os.environ['OMP_WAIT_POLICY'], {'torch', 'diffusers'} & set(sys.modules))"
    )
    assert run_python(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE set()"


def test_uploads_do_not_stay_for_good(studio: Studio, traces: OpenTraces) -> None:
    look_each, keep = app.build_page(studio, traces).delete_cache
    assert look_each <= 3600
    assert keep <= 24 * 3600


# As `spaces` on a ZeroGPU Space: it must come before what it changes, and its tasks before launch.
_SPACES = """
import sys
assert not {"torch", "gradio"} & set(sys.modules), "too late for spaces"
tasks = []
def GPU(task, duration):
    assert callable(duration)
    tasks.append(task.__qualname__)
    return task
"""
_LAUNCHED = """
import app, os, sys, threading
import gradio, spaces
def launch(*_, **__):
    from viz.page import zero_gpu
    kinds = {type(t).__name__ for t in threading.enumerate()} - {"TMonitor"}
    print(spaces.tasks, zero_gpu._loaded.pipe.device, kinds)
    sys.stdout.flush()
    os._exit(0)
gradio.Blocks.launch = launch
app.main([])
"""


@pytest.mark.slow
def test_a_zero_gpu_space_has_its_model_and_its_task_before_the_page_is_served(tmp_path) -> None:
    (tmp_path / "spaces.py").write_text(_SPACES)
    said = run_python(_LAUNCHED, SPACES_ZERO_GPU="true", PYTHONPATH=str(tmp_path))
    assert said == "['generate_side'] cpu {'_MainThread'}"


@pytest.mark.slow
@pytest.mark.parametrize("spaces", ["raise ImportError('no spaces')", "assert False, 'no API'"])
def test_a_zero_gpu_space_without_its_package_is_refused_in_a_sentence(tmp_path, spaces) -> None:
    (tmp_path / "spaces.py").write_text(spaces)
    code = (
        "import sys; sys.stderr = sys.stdout\n"
        "try: import app\n"
        "except SystemExit as refused: print(refused.code)"
    )
    *said, code = run_python(code, SPACES_ZERO_GPU="1", PYTHONPATH=str(tmp_path)).splitlines()
    assert code == "2"
    assert len(said) == 1
    assert said[0].startswith(
        "python app.py: SPACES_ZERO_GPU is set, but ZeroGPU can't be used: no"
    )
