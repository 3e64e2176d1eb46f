import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svg2.errors import TraceError
from svg2.trace.file import load_trace, save_trace, trace_bytes
from svg2.trace.records import selection_at
from tests.traces import make_synthetic_trace


@pytest.fixture(scope="module")
def trace():
    return make_synthetic_trace(grid=(3, 6, 6), num_q=5, num_k=12, steps=4)


@pytest.fixture(scope="module")
def data(trace):
    return trace_bytes(trace)


def rebuilt(data: bytes, change: dict[str, bytes | None]) -> bytes:
    """The archive with members replaced, added or (None) left out."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        members = {name: old.read(name) for name in old.namelist()} | change
        for name, body in members.items():
            if body is not None:
                new.writestr(name, body)
    return out.getvalue()


def npy(array, **kwargs) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


def with_header(data: bytes, **fields) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        header = json.loads(np.load(io.BytesIO(archive.read("header.npy"))).tobytes())
    header |= fields
    return rebuilt(data, {"header.npy": npy(np.frombuffer(json.dumps(header).encode(), np.uint8))})


def test_round_trip(trace, tmp_path):
    save_trace(trace, tmp_path / "trace.npz")
    loaded = load_trace(tmp_path / "trace.npz")
    for part, again in [
        (trace, loaded),
        *zip(trace.runs, loaded.runs, strict=True),
        *zip(trace.records, loaded.records, strict=True),
    ]:
        for field in dataclasses.fields(part):
            if field.name not in ("runs", "records", "policy", "recall"):
                np.testing.assert_equal(getattr(again, field.name), getattr(part, field.name))
    recalls = [record.recall for record in trace.records]
    assert [record.recall for record in loaded.records] == pytest.approx(recalls, abs=1e-6)
    assert len(loaded.runs) == len(trace.runs)
    assert len(loaded.records) == len(trace.records)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 11))
def test_selection_laws(trace, a, b, min_keep_ratio, i):
    record = trace.records[i % len(trace.records)]
    low, high = (selection_at(record, p, min_keep_ratio) for p in sorted((a, b)))
    assert (low <= high).all()
    assert low.any(axis=1).all()
    occupied = record.k_sizes > 0
    assert not high[:, ~occupied].any()
    floor = min(int(np.ceil(min_keep_ratio * len(occupied) - 1e-9)), occupied.sum())
    assert (low.sum(axis=1) >= floor).all()
    assert (selection_at(record, 1.0, min_keep_ratio) == occupied).all()


def test_selection_by_hand(trace):
    record = dataclasses.replace(
        trace.records[0],
        q_labels=np.zeros(6, np.uint16),
        k_labels=np.array([0, 0, 1, 2, 3, 3], np.uint16),
        P=np.array([[0.25, 0.25, 0.0, 0.5, 0.0]], np.float16),
    )
    assert selection_at(record, 0.5, 0).tolist() == [[False, False, False, True, False]]
    assert selection_at(record, 0.51, 0).tolist() == [
        [True, False, False, True, False]
    ]  # ties by index
    assert selection_at(record, 0.1, 0.8).tolist() == [
        [True, True, True, True, False]
    ]  # 4 is empty
    assert selection_at(record, 1.0, 0).tolist() == [[True, True, True, True, False]]
    for bad in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="top_p"):
            selection_at(record, bad, 0)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(data, share):
    with pytest.raises(TraceError):
        load_trace(data[: int(len(data) * share)])


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(TraceError):
        load_trace(b"a text file")
    with pytest.raises(TraceError):
        load_trace(tmp_path / "missing.npz")
    with pytest.raises(TraceError):
        load_trace(tmp_path)
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    with pytest.raises(TraceError):
        load_trace(tmp_path / "foreign.npz")


class Hostile:
    fired = False

    def __reduce__(self):
        return (setattr, (Hostile, "fired", True))


def test_a_pickle_is_never_opened(data):
    pickled = npy(np.array([Hostile()], dtype=object), allow_pickle=True)
    for hostile in (
        pickle.dumps(Hostile()),
        rebuilt(data, {"header.npy": pickled}),
        rebuilt(data, {"i0/P.npy": pickled}),
    ):
        with pytest.raises(TraceError):
            load_trace(hostile)
    assert not Hostile.fired


def test_claims_beyond_the_bytes_take_no_memory(data):
    huge = npy(np.zeros((5, 12), np.float16)).replace(b"(5, 12)", b"(5" + b"0" * 9 + b", 12)")
    with pytest.raises(TraceError):
        load_trace(rebuilt(data, {"i0/P.npy": huge}))


@pytest.mark.parametrize(
    "change",
    [
        {"i0/P.npy": None},
        {"i0/P.npy": npy(np.full((5, 12), np.nan, np.float16))},
        {"i0/P.npy": npy(np.zeros((5, 12), np.float32))},
        {"i0/P.npy": npy(np.zeros((5, 13), np.float16))},
        {"i0/P.npy": npy(np.asfortranarray(np.zeros((5, 12), np.float16)))},
        {"i0/q_labels.npy": npy(np.full(108, 5, np.uint16))},
        {"i0/k_labels.npy": npy(np.zeros(107, np.uint16))},
        {"i0/index.npy": npy(np.array([9, 1, 0, 0, 0], np.int32))},
        {"i0/index.npy": npy(np.array([0, 99, 0, 0, 0], np.int32))},
        {"i0/index.npy": npy(np.array([0, 1, 0, 0, 7], np.int32))},
        {"i0/index.npy": npy(np.array([-1, 1, 0, 0, 0], np.int32))},
        {"i0/k_near.npy": npy(np.full((12, 4), 12, np.uint16))},
        {"i0/kept.npy": npy(np.zeros(3, np.uint8))},
        {"i0/recall.npy": npy(np.array(np.nan, np.float32))},
        {"r0/call.npy": npy(np.zeros((3, 2), np.int32))},
        {"r0/density.npy": npy(np.zeros((1, 2), np.float32))},
        {"r0/mp4.npy": npy(np.zeros(100, np.uint8))},
        {"dense/mp4.npy": npy(np.zeros(2, np.uint8))},
        {"extra.npy": npy(np.zeros(2))},
        {"../evil.npy": npy(np.zeros(2))},
        {"r7/mp4.npy": npy(np.zeros(2, np.uint8))},
        {"header.npy": npy(np.frombuffer(b"{", np.uint8))},
        {"header.npy": npy(np.frombuffer(b"[" * 100_000, np.uint8))},
        {"header.npy": npy(np.frombuffer(b"[]", np.uint8))},
        {"header.npy": b"garbage"},
    ],
)
def test_an_unsound_trace_gets_one_sentence(data, change):
    with pytest.raises(TraceError) as caught:
        load_trace(rebuilt(data, change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_two_records_of_one_position_are_refused(trace, data):
    first = np.array(trace.records[0].position, np.int32)
    with pytest.raises(TraceError, match="two of its records have one position"):
        load_trace(rebuilt(data, {"i1/index.npy": npy(first)}))
    twice = dataclasses.replace(trace, records=(trace.records[0], *trace.records))
    with pytest.raises(TraceError, match="two of its records have one position"):
        load_trace(trace_bytes(twice))


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"version": "x" * 10_000},
        {"grid": [3, 6, 7]},
        {"grid": [3, 6]},
        {"grid": [3.0, 6, 6]},
        {"n_tokens": -1},
        {"n_tokens": True},
        {"num_records": 1 << 30},
        {"num_records": 1},
        {"runs": {}},
        {"runs": [{"method": 1}]},
        {"request": "text"},
        {"provenance": {"x": float("nan")}},
    ],
)
def test_an_unsound_header_gets_one_sentence(data, fields):
    with pytest.raises(TraceError) as caught:
        load_trace(with_header(data, **fields))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
