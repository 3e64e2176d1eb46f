"""Many visitors at once on the real page: downloads, uploads, and pages that go."""

from __future__ import annotations

import gc
import json
import re
import socket
import struct
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from io import BytesIO

import gradio as gr
import httpx
import pytest

from svg2.process import trim_memory
from svg2.trace.file import trace_bytes
from tests.large_traces import make_large_trace
from viz.page import open_traces
from viz.page.open_traces import OpenTraces

PAGE_SECONDS = 3.0
WAIT_SECONDS = 60.0


@cache
def config_of(address: str) -> dict:
    return httpx.get(f"{address}config", timeout=WAIT_SECONDS).json()


class Visitor:
    """A page without a browser: it speaks to Gradio as its JavaScript does."""

    def __init__(self, address: str, name: str) -> None:
        self.name, self.http = name, httpx.Client(base_url=address, timeout=WAIT_SECONDS)
        self.config = config_of(address)

    def event(self, kind: str, elem_id: str = "") -> int:
        named = {c["id"]: c["props"].get("elem_id") for c in self.config["components"]}
        return next(
            dependency["id"]
            for dependency in self.config["dependencies"]
            for target, event in dependency["targets"]
            if event == kind and (not elem_id or named.get(target) == elem_id)
        )

    def call(self, event: int, data: list) -> str:
        """What the event's handler gave back, as JSON."""
        body = {"fn_index": event, "data": data, "session_hash": self.name, "trigger_id": None}
        self.http.post("gradio_api/queue/join", json=body).raise_for_status()
        asked = {"session_hash": self.name}
        with self.http.stream("GET", "gradio_api/queue/data", params=asked) as answer:
            for line in answer.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return json.dumps(message["output"])
        raise AssertionError("no answer")

    def upload(self, data: bytes) -> str:
        """The key of the trace that is open then, or what the page said against it."""
        files = {"files": ("trace.npz", data)}
        path = self.http.post("gradio_api/upload", files=files).json()[0]
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        said = self.call(self.event("upload", "upload"), [None, file])
        found = re.search(r"lab/([\w-]+)/payload", said)
        return found[1] if found else said

    @contextmanager
    def arrived(self) -> Iterator[Visitor]:
        """With its page open, which the server learns from a connection that stays."""
        with (
            closing(self.http),
            self.http.stream("GET", f"gradio_api/heartbeat/{self.name}") as heartbeat,
        ):
            beats = heartbeat.iter_raw()  # which ends the connection when it is dropped
            next(beats)
            self.call(self.event("load"), [None, ""])
            yield self


class Watch:
    """Asks for the page again and again, and keeps the longest time it took."""

    def __init__(self, address: str) -> None:
        self.address, self.longest, self.asked = address, 0.0, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(timeout=WAIT_SECONDS) as http:
            while not self._ended.is_set():
                started = time.monotonic()
                assert http.get(self.address).status_code == 200
                self.longest = max(self.longest, time.monotonic() - started)
                self.asked += 1
                time.sleep(0.05)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Exports:
    """Counts the exports under way, and the steps they make."""

    def __init__(self, make: Callable) -> None:
        self.make, self.lock = make, threading.Lock()
        self.active = self.most_active = self.steps = self.begun = 0

    def __call__(self, shown, check) -> bytes:
        def counted() -> None:
            self.steps += 1
            check()

        with self.lock:
            self.active, self.begun = self.active + 1, self.begun + 1
            self.most_active = max(self.most_active, self.active)
        try:
            return self.make(shown, counted)
        finally:
            with self.lock:
                self.active -= 1


def ask_and_keep(address: str, path: str) -> socket.socket:
    host, port = re.fullmatch(r"http://([\d.]+):(\d+)/", address).groups()
    asking = socket.create_connection((host, int(port)))
    asking.sendall(f"GET /{path} HTTP/1.1\r\nHost: page\r\n\r\n".encode())
    return asking


def drop(asking: socket.socket) -> None:
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asking.close()


def test_forty_exports_that_are_dropped_leave_the_page_as_it_was(
    address: str, traces: OpenTraces, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = Exports(open_traces.FILES["export.zip"])
    monkeypatch.setitem(open_traces.FILES, "export.zip", exports)
    data = trace_bytes(make_large_trace(500, 600, (3, 64, 64), records=6))
    with Visitor(address, "exports").arrived() as visitor, Watch(address) as watch:
        path = f"lab/{visitor.upload(data)}/export.zip"
        asking = [ask_and_keep(address, path) for _ in range(40)]
        wait_until(lambda: exports.steps > 1)
        for one in asking:
            drop(one)
        wait_until(lambda: exports.active == 0)
        begun, steps = exports.begun, exports.steps
        time.sleep(0.5)
        assert (exports.begun, exports.steps) == (begun, steps)
        assert exports.most_active == 1
        whole = visitor.http.get(path)
        assert whole.status_code == 200
        assert "explorer.html" in zipfile.ZipFile(BytesIO(whole.content)).namelist()
    assert begun < 40  # most were dropped in the queue
    assert watch.asked > 3
    assert watch.longest < PAGE_SECONDS


def test_forty_eight_uploads_are_gone_with_their_pages(
    address: str, traces: OpenTraces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "freed", trim_memory)  # as the program does
    data = trace_bytes(make_large_trace(400, 500, (3, 32, 32), records=4))
    before = traces.held_bytes
    held = []
    with Watch(address) as watch, ExitStack() as pages:
        keys = []
        for i in range(48):
            visitor = pages.enter_context(Visitor(address, f"upload{i}").arrived())
            keys.append(visitor.upload(data))
            assert visitor.http.get(f"lab/{keys[-1]}/payload").status_code == 200
        for key in keys:  # each of a living page
            shown = traces.get(key)
            assert shown is not None
            held += [
                weakref.ref(shown),
                weakref.ref(shown.trace),
                weakref.ref(shown.trace.records[0]),
            ]
        del shown
        assert traces.held_bytes - before > 48 * len(data)
        others = pages.enter_context(httpx.Client(base_url=address, timeout=WAIT_SECONDS))
        assert others.get(f"lab/{keys[0]}/trace.npz").status_code == 200
        pages.close()
        wait_until(lambda: traces.held_bytes <= before)
        gc.collect()
        assert not any(ref() for ref in held)
    assert watch.longest < PAGE_SECONDS


def lying() -> bytes:
    out = BytesIO(trace_bytes(make_large_trace(8, 8)))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("r3/mp4.npy", bytes(100 << 20), zipfile.ZIP_DEFLATED)
        archive.getinfo("r3/mp4.npy").file_size = 100
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lying, "is not sound"),
        (lambda: trace_bytes(make_large_trace(6000, 6000)), "16 million pairs"),
    ],
)
def test_an_upload_that_is_no_trace_is_refused_and_leaves_nothing(
    address: str, traces: OpenTraces, data: Callable[[], bytes], sentence: str
) -> None:
    hostile, before = data(), traces.held_bytes
    with Visitor(address, f"hostile{len(hostile)}").arrived() as visitor, Watch(address) as watch:
        assert sentence in visitor.upload(hostile)
        assert traces.held_bytes == before
        assert visitor.http.get("lab/red-ball/payload").status_code == 200
    assert watch.longest < PAGE_SECONDS


def test_a_visit_is_freed_also_where_nobody_says_that_its_page_is_gone(
    address: str, blocks: gr.Blocks, traces: OpenTraces
) -> None:
    """A visitor without the connection that stays: only the time to live frees what it holds."""
    visitor = Visitor(address, "silent")
    key = visitor.upload(trace_bytes(make_large_trace(8, 8)))
    assert traces.get(key) is not None
    holder = blocks.state_holder
    ((ttl, _),) = holder.session_data["silent"]._state_ttl.values()
    assert 0 < ttl <= 24 * 3600
    holder.delete_state("silent")
    assert traces.get(key) is None
    assert visitor.http.get(f"lab/{key}/payload").status_code == 404
