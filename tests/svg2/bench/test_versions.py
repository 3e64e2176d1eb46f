"""The check of versions: what it reads from pytest and the compiler."""

import importlib.util
import subprocess

import pytest

from svg2.bench import versions


def _pytest_says(monkeypatch, text, code=0):
    """Replaces `subprocess.run`; returns the list that the commands go to."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, code, stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_outcomes_are_read(monkeypatch):
    last = "3 failed, 12 passed, 2 skipped, 40 deselected, 1 error in 3.10s"
    _pytest_says(monkeypatch, f"....\n{last}\n", 1)
    assert versions.run_tests() == {"passed": 12, "failed": 3, "errors": 1, "skipped": 2}


def test_nightly_and_browser_tests_are_left_out(monkeypatch):
    commands = _pytest_says(monkeypatch, "1 passed in 0.1s")
    versions.run_tests()
    (command,) = commands
    assert command[command.index("pytest") + 1 :].count("-m") == 1
    assert command[-1] == "not browser and not nightly"


def test_tests_that_broke_off_are_no_result(monkeypatch):
    _pytest_says(monkeypatch, "INTERNALERROR> boom", 3)
    with pytest.raises(RuntimeError, match="broke off"):
        versions.run_tests()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_faults_are_found_by_chip(monkeypatch):
    from kernels import compile as offline

    def compiled(build, chip):
        return offline.Report(build, chip, 255, 8 * ("attend" in build.name), 0, "", b"")

    monkeypatch.setattr(offline, "compile_for", compiled)
    found = versions.compile_chip("sm_90")
    assert found["builds"] > 30
    assert len(found["faults"]) > 10
    assert all("attend" in fault for fault in found["faults"])
