"""The check of versions: what it reads off pytest and the compiler, and what the README says."""

import importlib.util
import json
import subprocess

import pytest

from svg2.bench import report, versions


def _pytest_says(monkeypatch, text, code=0):
    done = subprocess.CompletedProcess([], code, stdout=text)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


def test_outcomes_are_read(monkeypatch):
    _pytest_says(monkeypatch, "....\n3 failed, 12 passed, 2 skipped, 1 error in 3.10s\n", 1)
    assert versions.run_tests() == {"passed": 12, "failed": 3, "errors": 1, "skipped": 2}


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


def test_the_readme_says_which_versions_hold(tmp_path):
    names = {"torch": "2.13.0", "triton": "3.6.0", "diffusers": "0.42.0", "transformers": "5.0.0"}
    chip = {"builds": 40, "faults": ["one"]}
    tests = {"passed": 7, "failed": 1, "errors": 1, "skipped": 0}
    result = {"versions": names, "kernels": {"sm_90": chip, "sm_80": chip}, "date": "2026-11-21T1"}
    record = {"oldest": result | {"tests": tests}, "newest": result}
    (tmp_path / "versions.json").write_text(json.dumps(record))
    text = report.section(tmp_path)
    row = "2.13.0 | 3.6.0 | 0.42.0 | 5.0.0 | 7 passed, 2 failed | 80 for 2 chips | 2 | 2026-11-21"
    assert row in text
    assert "`make test` | 80 for 2 chips" in text
