"""The tables of results, from results that are missing, incomplete or made up."""

import json

import pytest

from svg2.bench.report import tables
from tests.tree import ROOT


def test_what_has_no_result_reads_not_measured(tmp_path):
    text = tables(tmp_path)
    assert text.count("not measured.") == 9
    assert "prompts held out of its training: not measured." in text


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("gpu.json", {"case": "x", "contestant": "a giant", "why": "no time"}),
        ("e2e.json", {"model": "a giant", "why": "no time"}),
    ],
)
def test_what_a_suite_left_out_is_said(tmp_path, name, left):
    record = json.loads((ROOT / "assets" / "bench" / name).read_text())
    (tmp_path / name).write_text(json.dumps(record | {"left_out": []}))
    assert "Not measured" not in tables(tmp_path)
    (tmp_path / name).write_text(json.dumps(record | {"left_out": [left]}))
    assert "a giant (no time)" in tables(tmp_path)


def test_the_readme_says_which_versions_hold(tmp_path):
    names = {"torch": "2.13.0", "triton": "3.6.0", "diffusers": "0.42.0", "transformers": "5.0.0"}
    chip = {"builds": 40, "faults": ["one"]}
    tests = {"passed": 7, "failed": 1, "errors": 1, "skipped": 0}
    result = {"versions": names, "kernels": {"sm_90": chip, "sm_80": chip}, "date": "2026-11-21T1"}
    record = {"oldest": result | {"tests": tests}, "newest": result}
    (tmp_path / "versions.json").write_text(json.dumps(record))
    text = tables(tmp_path)
    row = "2.13.0 | 3.6.0 | 0.42.0 | 5.0.0 | 7 passed, 2 failed | 80 for 2 chips | 2 | 2026-11-21"
    assert row in text
    assert "`make test` | 80 for 2 chips" in text


def test_methods_are_compared_on_the_prompts_that_both_have(tmp_path):
    def point(method, seed, psnr):
        return {"method": method, "budget": 0.2, "prompt": "p", "seed": seed, "psnr_db": psnr}

    record = json.loads((ROOT / "assets" / "bench" / "sweep_builtin.json").read_text())
    record["points"] = [
        *(point("svg2", seed, psnr) for seed, psnr in ((0, 20.0), (1, 30.0), (2, 25.0))),
        *(point("svg2-comp", seed, psnr) for seed, psnr in ((0, 23.0), (1, None), (7, 99.0))),
    ]
    (tmp_path / "sweep_builtin.json").write_text(json.dumps(record))
    assert "| svg2-comp | +36.5 (2) |" in tables(tmp_path)  # of 3 dB, and of 70 where identical
    record["points"] = record["points"][:3]
    (tmp_path / "sweep_builtin.json").write_text(json.dumps(record))
    assert "on the same prompts" not in tables(tmp_path)
