"""Open traces: named, bounded, and whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from svg2.errors import TraceError
from svg2.trace.file import save_trace
from tests.traces import make_synthetic_trace

from viz.page.open_traces import (
    READY_MADE,
    OpenTrace,
    OpenTraces,
    read_traces,
    without_records,
    without_run,
)


@pytest.fixture(scope="module")
def small():
    return make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3, layers=1, heads=1)


def test_the_least_recently_used_is_dropped(small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_traces, "MAX_OPEN", 2)
    traces = OpenTraces()
    first, second = traces.put(small, "upload"), traces.put(small, "upload")
    assert traces.get(first.key) is first
    third = traces.put(small, "upload")
    assert traces.get(second.key) is None
    assert traces.get(first.key) is first
    assert traces.get(third.key) is third


def test_what_no_page_can_show_is_not_taken(small) -> None:
    with pytest.raises(TraceError, match="no sparse run"):
        OpenTraces().put(replace(small, runs=(), records=()), "upload")


def test_a_file_that_was_replaced_is_fetched_anew(small) -> None:
    traces = OpenTraces([OpenTrace(small, READY_MADE, "ball")])
    client = TestClient(Starlette(routes=[Downloads(traces).route()]))
    first = client.get("/lab/ball/payload")
    assert "no-cache" in first.headers["Cache-Control"]
    have = {"If-None-Match": first.headers["ETag"]}
    same = client.get("/lab/ball/payload", headers=have)
    assert (same.status_code, same.content) == (304, b"")
    traces.ready_made["ball"] = OpenTrace(without_run(small, 1), READY_MADE, "ball")
    newer = client.get("/lab/ball/payload", headers=have)
    assert newer.status_code == 200
    assert newer.content != first.content
    made = traces.put(small, "live CPU")  # its key is its own for good
    kept = client.get(f"/lab/{made.key}/payload")
    assert "max-age" in kept.headers["Cache-Control"]


def test_a_run_taken_out_leaves_the_others_whole(small) -> None:
    left = without_run(small, 1)
    assert [run.method for run in left.runs] == ["svg2", "svg2-comp"]
    assert {record.run for record in left.records} == {0, 1}
    kept = [r.P.tobytes() for r in small.records if r.run != 1]
    assert [r.P.tobytes() for r in left.records] == kept


def test_a_run_without_its_records_keeps_clip_and_numbers(small) -> None:
    light = without_records(small, 1)
    assert light.runs == small.runs
    assert {record.run for record in light.records} == {0, 2}


def test_ready_made_traces_have_names_titles_and_sources(
    small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_trace(small, tmp_path / "red ball.npz")
    save_trace(replace(small, runs=small.runs[:1], records=()), tmp_path / "too-small.npz")
    (tmp_path / "a.npz").write_bytes(b"not a trace")
    save_trace(replace(small, runs=(), records=()), tmp_path / "empty.npz")
    found = read_traces(tmp_path)
    prompt = small.request["prompt"]
    assert [(t.key, t.title) for t in found] == [
        ("red-ball", f"{prompt} (top-p 0.7 to 0.9)"),
        ("too-small", f"{prompt} (top-p 0.9)"),
    ]
    assert found[0].source == (
        "model synthetic, seed 0 · methods svg2, svg2-comp · synthetic · 2025-01-01"
    )
    assert all(f"{name}.npz is left out" in caplog.text for name in ("a", "empty"))
