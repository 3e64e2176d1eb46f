"""Open traces: named, bounded, and whole."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from svg2.errors import TraceError
from svg2.trace.file import save_trace, trace_bytes
from svg2.trace.video import encode_mp4
from tests.large_traces import make_large_trace
from tests.traces import make_synthetic_trace
from viz.page import open_traces
from viz.page.files import Downloads
from viz.page.open_traces import (
    READY_MADE,
    OpenTrace,
    OpenTraces,
    read_traces,
    without_records,
    without_run,
)
from viz.page.visit import Visit


@pytest.fixture(scope="module")
def small():
    return make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3, layers=1, heads=1)


@pytest.fixture(scope="module")
def data(small) -> bytes:
    return trace_bytes(small)


def visit_with(traces: OpenTraces, data: bytes) -> Visit:
    visit = Visit()
    visit.show(traces.receive(data, visit.open_trace))
    return visit


def test_what_a_living_visit_shows_stays_whatever_others_open(small, data: bytes) -> None:
    traces = OpenTraces()
    mine, slider = visit_with(traces, data), Visit(traces.put(small, "live CPU"))
    others = [visit_with(traces, data) for _ in range(30)]
    for _ in range(30):
        slider.show(traces.put(small, "live CPU"))
    for visit in (mine, slider, *others):
        assert visit.open_trace is not None
        assert traces.get(visit.open_trace.key) is visit.open_trace


def test_a_visits_own_place_is_replaced_and_another_visit_keeps_what_it_shows(
    small, data: bytes
) -> None:
    traces = OpenTraces()
    visit = visit_with(traces, data)
    shared, alone = visit.open_trace, None
    guest = Visit(traces.get(shared.key))
    visit.show(traces.put(small, "live CPU"))
    alone = visit.open_trace.key
    assert traces.get(shared.key) is guest.open_trace
    visit.show(traces.receive(data, visit.open_trace))
    assert traces.get(alone) is None


@pytest.mark.parametrize("mode", ["upload", "live CPU", "upload + live CPU"])
def test_a_visit_that_goes_leaves_nothing_behind(small, mode: str) -> None:
    traces = OpenTraces([OpenTrace(small, READY_MADE, "ball")])
    visits = [Visit(traces.put(replace(small), mode)) for _ in range(48)]
    for visit in visits:
        visit.open_trace.file("payload", lambda: None)
    held = [weakref.ref(visit.open_trace.trace) for visit in visits]
    assert traces.held_bytes >= 48 * small.stored_bytes
    for visit in visits:
        visit.free()
    assert not any(ref() for ref in held)
    assert traces.held_bytes == 0
    reader = Visit(traces.get("ball"))
    reader.free()
    assert reader.open_trace is traces.get("ball")  # costs nothing, and the page may come back


def test_uploads_are_refused_when_those_of_others_fill_the_room(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = OpenTraces()
    first = visit_with(traces, data)
    monkeypatch.setattr(open_traces, "MAX_HELD_BYTES", int(2.5 * traces.held_bytes))
    second = visit_with(traces, data)
    with pytest.raises(TraceError, match="leave no room"):
        visit_with(traces, data)
    for visit in (first, second):  # a place of one's own has room
        visit.show(traces.receive(data, visit.open_trace))
    second.free()
    assert visit_with(traces, data).open_trace is not None


def test_the_room_that_is_counted_is_the_room_that_is_taken() -> None:
    data = trace_bytes(make_large_trace(700, 900, records=4))
    traces = OpenTraces()
    gc.collect()
    tracemalloc.start()
    try:
        shown = traces.receive(data)
        shown.file("payload", lambda: None)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.8 * taken < shown.held_bytes < 1.25 * taken


def cut(clip: bytes) -> bytes:
    return clip[: len(clip) * 2 // 3]


def overwritten(clip: bytes) -> bytes:
    middle = (clip.index(b"mdat") + 800 + len(clip)) // 2  # past the encoder's own text
    return clip[:middle] + bytes(range(200)) + clip[middle + 200 :]


def without_frames(clip: bytes) -> bytes:
    start = clip.index(b"mdat") + 4
    return clip[:start] + bytes(len(clip) - start)


@pytest.mark.parametrize("damage", [cut, overwritten, without_frames, lambda clip: clip[:12] * 9])
@pytest.mark.parametrize("which", ["dense", 0, 2])
def test_a_damaged_clip_is_refused_on_opening(small, damage, which) -> None:
    if which == "dense":
        broken = replace(small, dense_mp4=damage(small.dense_mp4))
    else:
        runs = list(small.runs)
        runs[which] = replace(runs[which], mp4=damage(runs[which].mp4))
        broken = replace(small, runs=tuple(runs))
    with pytest.raises(TraceError, match=f"{which} .*clip|clip of run {which}") as caught:
        OpenTraces().receive(trace_bytes(broken))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 150


def test_clips_of_another_length_than_was_measured_are_refused(small) -> None:
    for frames in (1, 2, 9):
        clip = encode_mp4(np.zeros((frames, 32, 32, 3), np.uint8), 8)
        with pytest.raises(TraceError, match="frames where 3 are expected"):
            OpenTraces().receive(trace_bytes(replace(small, dense_mp4=clip)))
    run = replace(small.runs[1], psnr_frame=np.zeros(5, np.float32))
    with pytest.raises(TraceError, match="different numbers of frames"):
        OpenTraces().receive(trace_bytes(replace(small, runs=(small.runs[0], run), records=())))


def test_what_no_page_can_show_is_not_taken(small) -> None:
    with pytest.raises(TraceError, match="no sparse run"):
        OpenTraces().put(replace(small, runs=(), records=()), "upload")


def test_a_file_that_was_replaced_is_fetched_anew(small) -> None:
    traces = OpenTraces([OpenTrace(small, READY_MADE, "ball")])
    client = TestClient(Starlette(routes=Downloads(traces).routes()))
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
