"""The export: what is in the zip, and how a bad trace or folder is refused."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from dataclasses import replace

import pytest

from svg2.errors import RequestError
from svg2.trace.file import save_trace
from svg2.trace.video import decode_mp4, encode_mp4
from tests.large_traces import make_large_trace
from tests.traces import make_synthetic_trace
from viz.__main__ import main
from viz.export import MAX_VIEWS, export_bytes, run_names, shown_records


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
    folder = f"views/{run_names(trace)[0]}-step06"
    for record in shown_records(trace):
        name = f"{folder}/layer{record.layer + 1:02d}-head{record.head + 1:02d}"
        for view in ("clusters-queries", "clusters-keys", "mask-original", "mask-permuted"):
            data = exported.read(f"{name}-{view}.png")
            assert data.startswith(b"\x89PNG")


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_zip_says_of_which_run_its_views_are(first, trace):
    """The page may have shown another run than the first recorded one."""
    records = tuple(r for r in trace.records if r.run >= first)
    assert {r.run for r in records} >= {first}
    with zipfile.ZipFile(io.BytesIO(export_bytes(replace(trace, records=records)))) as archive:
        said = archive.read("README.txt").decode()
    assert (
        f"of the run {run_names(trace)[first]} at step {shown_records(trace)[0].step + 1}" in said
    )


def test_the_views_are_of_the_run_that_is_asked_for(trace):
    for run, name in enumerate(run_names(trace)):
        with zipfile.ZipFile(io.BytesIO(export_bytes(trace, run=run))) as archive:
            views = [entry for entry in archive.namelist() if entry.startswith("views/")]
            told = json.loads(archive.read("result.json"))["views"]
        assert views
        assert all(entry.startswith(f"views/{name}-step") for entry in views)
        assert {view["run"] for view in told} == {run}
    bare = replace(trace, records=tuple(r for r in trace.records if r.run == 1))
    assert {record.run for record in shown_records(bare, 0)} == {1}
    with pytest.raises(RequestError, match=f"holds {len(trace.runs)} runs, and no run 100"):
        export_bytes(trace, run=99)


def test_a_zip_without_views_says_so(trace):
    with zipfile.ZipFile(io.BytesIO(export_bytes(replace(trace, records=())))) as archive:
        assert "holds no recorded clusters" in archive.read("README.txt").decode()


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


def test_of_many_layers_a_bounded_number_is_drawn(trace):
    first = trace.records[0]
    for count in (1, 5, 16, 17, 40, 400):
        records = tuple(replace(first, layer=2 * layer) for layer in range(count))
        layers = [r.layer for r in shown_records(replace(trace, records=records))]
        assert len(layers) == min(count, MAX_VIEWS)
        assert (layers[0], layers[-1]) == (0, 2 * (count - 1))
        assert layers == sorted(set(layers))


@pytest.mark.parametrize("num_frames", [3, 5, 9])
def test_a_clip_with_fewer_frames_than_latent_ones_is_exported(num_frames):
    trace = make_synthetic_trace(grid=(5, 4, 4), num_q=3, num_k=4, steps=3, layers=1, heads=1)
    clip = encode_mp4(decode_mp4(trace.runs[0].mp4)[:num_frames], 8)
    runs = tuple(
        replace(run, mp4=clip, psnr_frame=run.psnr_frame[:num_frames]) for run in trace.runs
    )
    with zipfile.ZipFile(io.BytesIO(export_bytes(replace(trace, runs=runs)))) as archive:
        assert any(n.endswith("layer01-head01-clusters-keys.png") for n in archive.namelist())


@pytest.mark.parametrize(
    "large",
    [(2048, 4096, (1, 256, 256)), (60_000, 64, (1, 256, 256)), (64, 60_000, (1, 256, 256))],
)
def test_an_export_takes_little_memory_whatever_the_clusters(large):
    trace = make_large_trace(*large)
    tracemalloc.start()
    try:
        export_bytes(trace)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 << 20
