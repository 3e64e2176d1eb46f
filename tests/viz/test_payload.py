"""The payload says what the trace says, and the page that carries it is inert."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from svg2.errors import TraceError
from tests.large_traces import make_large_trace
from viz import explorer_component, explorer_html, explorer_payload, explorer_value, payload_bytes
from viz.explorer_page import explorer_js
from viz.payload import latent_frames


def unpack(packed: dict) -> np.ndarray:
    data = base64.b64decode(packed["data"])
    return np.frombuffer(data, np.dtype(packed["dtype"]).newbyteorder("<")).reshape(
        packed["shape"]
    )


def test_arrays_survive_the_way(trace):
    payload = json.loads(gzip.decompress(payload_bytes(explorer_payload(trace))))
    assert base64.b64decode(payload["dense"]["mp4"]) == trace.dense_mp4
    for run, sent in zip(trace.runs, payload["runs"], strict=True):
        assert base64.b64decode(sent["mp4"]) == run.mp4
        for name in ("psnr_frame", "call", "density"):
            np.testing.assert_array_equal(unpack(sent[name]), getattr(run, name))
    for record, sent in zip(trace.records, payload["records"], strict=True):
        for name in ("q_labels", "k_labels", "P", "q_rgb", "k_rgb", "k_near"):
            np.testing.assert_array_equal(unpack(sent[name]), getattr(record, name))
        bits = np.unpackbits(unpack(sent["kept"]), count=record.kept.size)
        np.testing.assert_array_equal(bits.reshape(record.kept.shape), record.kept)
        assert (sent["run"], sent["step"], sent["layer"]) == (
            record.run,
            record.step,
            record.layer,
        )


def test_same_trace_same_bytes(trace):
    assert payload_bytes(explorer_payload(trace)) == payload_bytes(explorer_payload(trace))


def test_infinity_in_a_result_becomes_null(trace):
    run = replace(trace.runs[0], result={**trace.runs[0].result, "psnr_db": float("inf")})
    payload = explorer_payload(replace(trace, runs=(run,), records=()))
    assert payload["runs"][0]["result"]["psnr_db"] is None
    payload_bytes(payload)


@pytest.mark.parametrize(
    ("num_frames", "num_latent", "expected"),
    [
        (5, 3, [[0, 1], [1, 3], [3, 5]]),
        (81, 21, [[0, 1]] + [[4 * t - 3, 4 * t + 1] for t in range(1, 21)]),
        (1, 1, [[0, 1]]),
        (8, 4, [[0, 2], [2, 4], [4, 6], [6, 8]]),
    ],
)
def test_latent_frames(num_frames, num_latent, expected):
    assert latent_frames(num_frames, num_latent) == expected


@pytest.mark.parametrize(("num_frames", "num_latent"), [(1, 3), (2, 5), (7, 4), (33, 9)])
def test_every_latent_frame_names_a_video_frame(num_frames, num_latent):
    spans = latent_frames(num_frames, num_latent)
    assert len(spans) == num_latent
    assert all(0 <= first < end for first, end in spans)


@pytest.mark.parametrize(
    "config",
    [{}, {"top_p": "0.9", "min_keep_ratio": 0.1}, {"top_p": 1.5, "min_keep_ratio": 0.1}],
)
def test_a_recorded_run_needs_a_budget(trace, config):
    run = replace(trace.runs[0], config=config)
    records = tuple(r for r in trace.records if r.run == 0)
    with pytest.raises(TraceError, match="run 0"):
        explorer_payload(replace(trace, runs=(run,), records=records))
    explorer_payload(replace(trace, runs=(run,), records=()))


def test_a_trace_without_runs_is_refused(trace):
    with pytest.raises(TraceError, match="no sparse run"):
        explorer_payload(replace(trace, runs=(), records=()))


def test_a_clip_too_long_to_show_is_refused(trace):
    run = replace(trace.runs[0], psnr_frame=np.zeros(1001, np.float32))
    with pytest.raises(TraceError, match="1000 frames"):
        explorer_payload(replace(trace, runs=(run,), records=()))


def test_modules_are_linked_without_what_the_page_may_not_use():
    script = explorer_js()
    for banned in (
        "innerHTML",
        "eval(",
        "new Function",
        "http://",
        "https://",
        "\nimport ",
        "\nexport ",
    ):
        assert banned not in script.replace("http://www.w3.org/2000/svg", ""), banned


def test_the_page_holds_no_text_of_the_trace_as_markup(trace):
    hostile = "</script><img src=x onerror=alert(1)>"
    page = explorer_html(replace(trace, request={**trace.request, "prompt": hostile}))
    assert "onerror" not in page
    assert hostile not in page


def test_the_component_takes_an_address():
    parts = explorer_component(explorer_value("/file=a.json.gz", can_run=True))
    assert parts["value"] == {"src": "/file=a.json.gz", "can_run": True}
    assert "'release'" in parts["js_on_load"]
    assert "${" not in parts["html_template"]


def test_packing_a_payload_takes_no_multiple_of_its_memory():
    payload = explorer_payload(make_large_trace(1000, 1000, records=8))
    held = len(json.dumps(payload))
    tracemalloc.start()
    try:
        packed = payload_bytes(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert gzip.decompress(packed) == json.dumps(payload, separators=(",", ":")).encode()
    assert peak < 0.5 * held + len(packed)
