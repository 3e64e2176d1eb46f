"""Files of open traces: one at a time, in order, and given up with their clients."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
import zipfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import anyio.to_thread
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from svg2.errors import Cancelled, MediaError
from svg2.trace.video import encode_mp4
from tests.traces import make_synthetic_trace
from viz import export
from viz.export import run_names
from viz.motion import moving_picture
from viz.page import files
from viz.page.files import Downloads
from viz.page.open_traces import FILES, READY_MADE, OpenTrace, OpenTraces

NAMES = ("payload", "trace.npz", "export.zip")


@pytest.fixture(scope="module")
def small():
    return make_synthetic_trace(grid=(2, 4, 4), num_q=3, num_k=4, steps=3, layers=1, heads=1)


class Maker:
    """Makes a file in many steps, and only ends when it is told to."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.active = self.most_active = self.steps = 0
        self.begun: list[str] = []
        self.may_end = threading.Event()

    def __call__(self, shown: OpenTrace, check: Callable[[], None]) -> bytes:
        with self.lock:
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            self.begun.append(shown.key)
        try:
            while not self.may_end.is_set():
                check()
                self.steps += 1
                time.sleep(0.002)
            return shown.key.encode()
        finally:
            with self.lock:
                self.active -= 1


class Client:
    """One GET, which its client can leave."""

    def __init__(self, app: Starlette, path: str) -> None:
        self.left, self.status, self.body = asyncio.Event(), 0, b""
        self._is_asked = False
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
        scope |= {"headers": [], "query_string": b"", "root_path": "", "http_version": "1.1"}
        scope |= {"scheme": "http", "server": ("x", 80), "client": ("y", 1), "asgi": {}}
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.005)


def served(small, keys: list[str]) -> Starlette:
    """The files of traces of these keys, and a page that takes a thread of the common pool."""
    traces = OpenTraces(OpenTrace(small, READY_MADE, key) for key in keys)

    def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("the page")

    return Starlette(routes=[*Downloads(traces).routes(), Route("/", page)])


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """In a thread of its own: the browser of other tests has an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, scene()).result()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_forty_requests_that_are_dropped_compute_one_and_leave_the_page_alone(
    small, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker()
    monkeypatch.setitem(FILES, name, maker)
    keys = [f"t{i}" for i in range(40)]

    async def scene() -> None:
        app = served(small, keys)
        clients = [Client(app, f"/lab/{key}/{name}") for key in keys]
        await until(lambda: maker.steps > 3)
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        page = Client(app, "/")
        await asyncio.wait_for(page.task, 30)
        assert page.body == b"the page"
        for client in clients:
            client.left.set()
        await asyncio.wait_for(asyncio.gather(*(client.task for client in clients)), 30)
        assert maker.active == 0

    run(scene)
    assert maker.most_active == 1
    assert maker.begun == ["t0"]  # nobody waited for the others when their turn came


def test_who_stays_is_served_in_the_order_of_asking(
    small, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker()
    monkeypatch.setitem(FILES, "export.zip", maker)
    keys = list("abcdef")

    async def scene() -> None:
        app = served(small, keys)
        clients = {}
        for key in keys:
            clients[key] = Client(app, f"/lab/{key}/export.zip")
            await asyncio.sleep(0)
        await until(lambda: maker.steps > 3)
        for key in "ad":  # the one under way, and one in the queue
            clients[key].left.set()
        await until(lambda: len(maker.begun) == 2)
        maker.may_end.set()
        await asyncio.wait_for(asyncio.gather(*(c.task for c in clients.values())), 30)
        for key in "bcef":
            assert (clients[key].status, clients[key].body) == (200, key.encode())

    run(scene)
    assert maker.begun == list("abcef")
    assert maker.most_active == 1


def test_a_payload_does_not_wait_for_an_export(small, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    monkeypatch.setitem(FILES, "export.zip", maker)

    async def scene() -> None:
        app = served(small, ["a", "b"])
        slow = Client(app, "/lab/a/export.zip")
        await until(lambda: maker.steps > 3)
        payload = Client(app, "/lab/b/payload")
        await asyncio.wait_for(payload.task, 30)
        assert payload.status == 200
        assert not slow.task.done()
        slow.left.set()
        await asyncio.wait_for(slow.task, 30)

    run(scene)


@pytest.mark.parametrize("calls", [1, 2, 5, 40])
@pytest.mark.parametrize("name", ["payload", "export.zip"])
def test_the_real_work_stops_where_it_is_checked(small, name: str, calls: int) -> None:
    done = []

    def check() -> None:
        done.append(1)
        if len(done) == calls:
            raise Cancelled

    shown = OpenTrace(small, READY_MADE)
    with pytest.raises(Cancelled):
        shown.file(name, check)
    assert len(done) == calls
    assert shown.made_file(name) is None


def test_an_export_is_checked_before_each_picture(small, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    draw = export.png_bytes
    monkeypatch.setattr(export, "png_bytes", lambda image: (events.append("draw"), draw(image))[1])
    export.export_bytes(small, check=lambda: events.append("check"))
    drawn = [i for i, event in enumerate(events) if event == "draw"]
    assert len(drawn) == 4
    assert all(events[i - 1] == "check" for i in drawn)


def test_what_is_asked_for_again_is_made_once(small, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    for name, make in FILES.items():

        def counted(shown, check, name=name, make=make) -> bytes:
            made.append((shown.mode, name))
            return make(shown, check)

        monkeypatch.setitem(FILES, name, counted)
    traces = OpenTraces([OpenTrace(small, READY_MADE, "ball")])
    mine = traces.put(small, "live CPU")
    client = TestClient(Starlette(routes=Downloads(traces).routes()))
    for _ in range(3):
        for key in ("ball", mine.key):
            for name in NAMES:
                assert client.get(f"/lab/{key}/{name}").status_code == 200
    for name in NAMES:
        assert made.count((READY_MADE, name)) == 1
    assert made.count(("live CPU", "payload")) == 1
    assert made.count(("live CPU", "export.zip")) == 3  # no visitor's export takes memory for long


@pytest.mark.parametrize("name", NAMES)
def test_a_browser_that_has_a_ready_made_file_gets_it_no_second_time(small, name: str) -> None:
    traces = OpenTraces([OpenTrace(small, READY_MADE, "ball")])
    client = TestClient(Starlette(routes=Downloads(traces).routes()))
    first = client.get(f"/lab/ball/{name}")
    assert int(first.headers["Content-Length"]) == len(first.content) > 0
    again = client.get(f"/lab/ball/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("clip", [b"", b"\0\0\0\x18ftypisom" + bytes(200)])
def test_a_clip_that_cannot_be_drawn_is_one_sentence(small, clip: bytes) -> None:
    runs = tuple(replace(made, mp4=clip) for made in small.runs)
    traces = OpenTraces()
    mine = traces.put(replace(small, runs=runs), "live CPU")
    client = TestClient(Starlette(routes=Downloads(traces).routes()))
    answer = client.get(f"/lab/{mine.key}/export.zip")
    assert answer.status_code == 422
    assert answer.text.endswith(".")
    assert "\n" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_moving_pictures_wait_in_the_same_line_and_are_given_up(
    small, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker()

    def animate(trace, left, right, kind, check) -> bytes:
        return maker(OpenTrace(trace, READY_MADE, f"{left}-{right}"), check)

    monkeypatch.setattr(files, "moving_picture", animate)
    monkeypatch.setitem(FILES, "export.zip", maker)

    async def scene() -> None:
        app = served(small, ["a"])
        names = [f"compare-{left}-{right}.{kind}" for left in ("dense", 2) for right in (1, 3)]
        clients = [Client(app, f"/motion/a/{name}") for name in names * 10]
        clients.append(Client(app, "/lab/a/export.zip"))
        await until(lambda: maker.steps > 3)
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        for client in clients:
            client.left.set()
        await asyncio.wait_for(asyncio.gather(*(client.task for client in clients)), 30)
        assert maker.active == 0

    run(scene)
    assert maker.most_active == 1
    assert maker.begun == ["None-0"]


def test_a_moving_picture_is_made_and_a_run_that_is_not_there_is_one_sentence(small) -> None:
    traces = OpenTraces([OpenTrace(small, READY_MADE, "ball")])
    client = TestClient(Starlette(routes=Downloads(traces).routes()))
    made = client.get("/motion/ball/compare-dense-1.webp")
    assert (made.status_code, made.content[8:12]) == (200, b"WEBP")
    for name in ("compare-dense-9.gif", "compare-8-1.webp"):
        answer = client.get(f"/motion/ball/{name}")
        assert (answer.status_code, answer.text.count("\n")) == (422, 0)
    assert client.get("/motion/ball/compare-0-1.gif").status_code == 404


@pytest.mark.parametrize("shape", [(2, 2048, 16), (2, 2000, 900), (401, 16, 16), (300, 300, 300)])
def test_a_clip_that_makes_no_moving_picture_is_one_sentence(small, shape) -> None:
    clip = encode_mp4(np.zeros((*shape, 3), np.uint8), 8)
    shown = replace(small, dense_mp4=clip)
    with pytest.raises(MediaError, match=r"too tall or too long|more than 400 frames"):
        moving_picture(shown, None, 0, "webp")


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_moving_picture_is_checked_at_each_frame(small, calls: int) -> None:
    done: list[int] = []

    def check() -> None:
        done.append(1)
        if len(done) == calls:
            raise Cancelled

    with pytest.raises(Cancelled):
        moving_picture(small, None, 0, "gif", check)


def test_the_export_of_a_run_is_made_for_it_alone_and_not_kept(small):
    traces = OpenTraces([OpenTrace(small, READY_MADE, "a")])
    client = TestClient(Starlette(routes=Downloads(traces).routes()))
    for run, name in enumerate(run_names(small), 1):
        answer = client.get(f"/lab/a/export-{run}.zip")
        assert answer.headers["content-disposition"].endswith(f'"svg2-export-{run}.zip"')
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert any(entry.startswith(f"views/{name}-step") for entry in archive.namelist())
    gc.collect()
    assert traces.get("a").made_file("export-1.zip") is None
    beyond = client.get(f"/lab/a/export-{len(small.runs) + 1}.zip")
    assert beyond.status_code == 422
    assert f"holds {len(small.runs)} runs" in beyond.text
    assert client.get("/lab/a/export-0.zip").status_code == 404


def test_a_page_asks_whether_its_trace_is_still_open_without_an_error(small):
    """It may ask in between: the server has made the next trace, and the page has not heard."""
    traces = OpenTraces()
    client = TestClient(Starlette(routes=Downloads(traces).routes()))
    shown = traces.put(small, "live CPU")
    asked = f"/lab/{shown.key}/held"
    assert (client.get(asked).status_code, client.get(asked).json()) == (200, True)
    del shown
    gc.collect()
    assert (client.get(asked).status_code, client.get(asked).json()) == (200, False)
