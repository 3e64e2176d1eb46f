"""The export: what is in the zip, and how a bad trace or folder is refused."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import pytest

from svg2.trace.file import save_trace
from viz.__main__ import main
from viz.export import run_names, shown_records


@pytest.fixture(scope="module")
def exported(trace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    save_trace(trace, folder / "trace.npz")
    assert main(["export", str(folder / "trace.npz"), "--out", str(folder / "lab.zip")]) == 0
    with zipfile.ZipFile(folder / "lab.zip") as archive:
        yield archive


def test_the_zip_holds_clips_views_numbers_and_the_page(exported, trace):
    names = set(exported.namelist())
    assert {
        "README.txt",
        "explorer.html",
        "result.json",
        "tradeoff.html",
        "videos/dense.mp4",
    } <= names
    for name, run in zip(run_names(trace), trace.runs, strict=True):
        assert exported.read(f"videos/{name}.mp4") == run.mp4
    for record in shown_records(trace):
        for view in ("clusters-queries", "clusters-keys", "mask-original", "mask-permuted"):
            data = exported.read(f"views/layer{record.layer + 1:02d}-{view}.png")
            assert data.startswith(b"\x89PNG")


def test_the_numbers_are_those_of_the_trace(exported, trace):
    result = json.loads(exported.read("result.json"))
    assert [r["result"] for r in result["runs"]] == [r.result for r in trace.runs]
    assert result["provenance"] == trace.provenance
    assert [v["layer"] for v in result["views"]] == [0, 1]
    for view in result["views"]:
        assert 0 < view["tiles_permuted"]["touched"] <= view["tiles_permuted"]["total"]


def test_one_record_per_layer_is_shown(trace):
    shown = shown_records(trace)
    assert [r.layer for r in shown] == [0, 1]
    assert {(r.run, r.step, r.head) for r in shown} == {(0, 5, 0)}


def test_run_names_differ(trace):
    twice = replace(trace, runs=(*trace.runs, trace.runs[0], trace.runs[0]))
    assert len(set(run_names(twice))) == 5
    assert "/" not in run_names(replace(trace, runs=(replace(trace.runs[0], method="../x"),)))[0]


def test_a_trace_without_records_is_exported(trace, tmp_path):
    save_trace(replace(trace, records=()), tmp_path / "bare.npz")
    assert main(["export", str(tmp_path / "bare.npz"), "--out", str(tmp_path / "bare.zip")]) == 0


@pytest.mark.parametrize("content", [b"", b"not a trace", b"PK\x03\x04 cut"])
def test_a_bad_trace_is_one_sentence_and_exit_2(content, tmp_path, capsys):
    (tmp_path / "bad.npz").write_bytes(content)
    assert main(["export", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "out.zip")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "out.zip").exists()


def test_a_missing_trace_and_a_missing_folder_are_exit_2(trace, tmp_path, capsys):
    assert main(["export", str(tmp_path / "none.npz"), "--out", str(tmp_path / "out.zip")]) == 2
    save_trace(trace, tmp_path / "trace.npz")
    out = tmp_path / "no" / "such" / "out.zip"
    assert main(["export", str(tmp_path / "trace.npz"), "--out", str(out)]) == 2
    assert "can't be written" in capsys.readouterr().err
