import dataclasses
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svg2.errors import TraceError
from svg2.trace import file, records
from svg2.trace.file import load_trace, save_trace, trace_bytes
from svg2.trace.recording import fit
from svg2.trace.records import selection_at
from tests.large_traces import make_large_trace
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


def lying(data: bytes, name: str, body: bytes, claimed: int, kind: int) -> bytes:
    """The archive with one member that unpacks to `body`, and whose size is claimed otherwise."""
    out = io.BytesIO(rebuilt(data, {name: None}))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(name, body, kind, 1)
        archive.getinfo(name).file_size = claimed  # of the directory, written on closing
    return out.getvalue()


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("claimed", [0, 4096])
@pytest.mark.parametrize("name", ["header.npy", "r1/mp4.npy", "i0/P.npy"])
def test_a_directory_that_lies_about_sizes_takes_no_memory(data, name, claimed, kind):
    hostile = lying(data, name, bytes(50 << 20), claimed, kind)
    assert len(hostile) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(TraceError) as caught:
            load_trace(hostile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert "\n" not in str(caught.value)


def test_a_directory_of_millions_is_refused_before_it_is_read():
    entry = b"PK\x01\x02" + bytes(42)
    count = 400_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 46 * count, 0, 0)
    hostile = entry * count + end
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match="more than 20000 entries"):
            load_trace(hostile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_unpack_without_a_bound_are_refused(data, kind):
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name), kind)
    with pytest.raises(TraceError, match="unknown entry"):
        load_trace(out.getvalue())


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(data):
    hostile = rebuilt(data, {f"r{r}/mp4.npy": npy(np.zeros(40 << 20, np.uint8)) for r in range(3)})
    assert len(hostile) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match="more than the 96 MB"):
            load_trace(hostile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(("num_q", "num_k", "records"), [(6000, 6000, 1), (1000, 1050, 17)])
def test_more_pairs_of_clusters_than_a_page_can_show_are_refused(num_q, num_k, records):
    large = make_large_trace(num_q, num_k, records=records)
    assert large.is_too_large
    with pytest.raises(TraceError, match="16 million pairs"):
        load_trace(trace_bytes(large))


@pytest.mark.parametrize(("num_q", "num_k", "records"), [(4096, 4096, 1), (1000, 1000, 16)])
def test_as_many_pairs_as_a_page_can_show_are_read(num_q, num_k, records):
    large = make_large_trace(num_q, num_k, records=records)
    assert not large.is_too_large
    assert len(load_trace(trace_bytes(large)).records) == records


@pytest.mark.parametrize("name", ["MAX_PAIRS", "MAX_BYTES"])
def test_a_trace_is_thinned_until_its_file_can_be_read(trace, name, monkeypatch):
    value = 5 * 12 * 7 if name == "MAX_PAIRS" else int(0.6 * trace.file_bytes)
    for module in (records, file):
        monkeypatch.setattr(module, name, value)
    with pytest.raises(TraceError, match="more than"):
        load_trace(trace_bytes(trace))
    fitted = fit(trace, 20 << 20)
    assert 0 < len(fitted.records) < len(trace.records)
    assert len(load_trace(trace_bytes(fitted)).records) == len(fitted.records)


def test_the_bytes_of_a_file_are_counted_and_not_too_few(trace, data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    assert unpacked <= trace.file_bytes < 1.5 * unpacked


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"x": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("depth", [40, 200, 480, 900])
@pytest.mark.parametrize("field", ["request", "provenance"])
def test_a_deeply_nested_header_is_refused(data, field, depth, kind):
    with pytest.raises(TraceError, match=r"nested deeper than 32 levels|is not JSON"):
        load_trace(with_header(data, **{field: {"x": nested(depth, kind)}}))


def with_json(data: bytes, name: str, text: str) -> bytes:
    """A header whose field of the request has a value in these characters."""
    changed = with_header(data, request={name: "HERE"})
    with zipfile.ZipFile(io.BytesIO(changed)) as archive:
        header = np.load(io.BytesIO(archive.read("header.npy"))).tobytes()
    header = header.replace(b'"HERE"', text.encode())
    return rebuilt(changed, {"header.npy": npy(np.frombuffer(header, np.uint8))})


@pytest.mark.parametrize("name", ["seed", "prompt", "guidance_scale"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1" + "0" * 400, "too large for 64 bits"),
        ("-1" + "0" * 309, "too large for 64 bits"),
        ("[1, 1" + "0" * 5000 + "]", "is not JSON|too large"),
        ("1e999", "too large for 64 bits"),
        ('{"x": [-1e400]}', "too large for 64 bits"),
        ('"half a pair \\ud83d"', "no valid Unicode"),
        ('{"\\udc00": 1}', "no valid Unicode"),
        ("[" + "[]," * 120_000 + "1]", "more than 100000 values"),
        ("NaN", "is not JSON"),
    ],
)
def test_values_that_fail_later_are_refused_on_opening(data, name, text, problem):
    with pytest.raises(TraceError, match=problem) as caught:
        load_trace(with_json(data, name, text))
    assert len(str(caught.value)) < 120
    load_trace(with_json(data, name, '["\\ud83c\\udfac", 1e308, 123456789012345678901]'))


@pytest.mark.parametrize("grid", [[1, 513, 1], [1, 2, 600], [1 << 13, 8, 9], [3, 1 << 16, 1]])
def test_a_grid_that_no_picture_can_hold_is_refused(data, grid):
    with pytest.raises(TraceError, match="at most 524288 are shown"):
        load_trace(with_header(data, grid=grid, n_tokens=int(np.prod(grid))))
