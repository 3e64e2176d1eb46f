"""What is served beside Gradio: open traces, moving pictures, pictures of measurements."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from typing import TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from svg2.errors import Cancelled, InputError
from viz.bench_figures import PICTURES
from viz.motion import moving_picture
from viz.page.open_traces import PAYLOAD, File, OpenTraces, is_file
from viz.page.runner import beside_runs
from viz.page.words import plain
from viz.payload import Check

Made = TypeVar("Made")

_CHUNK_BYTES = 256 << 10
_MOVING = re.compile(r"compare-(dense|[1-9]\d{0,2})-([1-9]\d{0,2})\.(gif|webp)")
_TYPE = "application/octet-stream"


def routes(traces: OpenTraces) -> list[BaseRoute]:
    """Every route of the page that is not Gradio's."""
    pictures = Mount("/bench", StaticFiles(directory=PICTURES, check_dir=False))
    return [*Downloads(traces).routes(), pictures]


class Downloads:
    """Makes one payload and one download at a time; further requests wait in order.

    What its client no longer waits for is given up, before its turn or while it is made.
    """

    def __init__(self, traces: OpenTraces) -> None:
        self._traces = traces
        # The page's own thread pool stays free for the page.
        self._payloads, self._downloads = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)

    def routes(self) -> list[BaseRoute]:
        """`lab/KEY/payload` for the explorer, `trace.npz` and `export.zip` to keep, and
        `export-RUN.zip` with the pictures of one run.

        `lab/KEY/held` says whether the trace is still open: true or false.
        `motion/KEY/compare-LEFT-RIGHT.gif` or `.webp`: runs by number from 1, or `dense` left.
        """
        return [
            Route("/lab/{key}/held", self.held),
            Route("/lab/{key}/{name}", self.answer),
            Route("/motion/{key}/{name}", self.animate),
        ]

    async def held(self, request: Request) -> Response:
        """Whether a trace is still open. Never an error: a page may ask before it has the next."""
        is_open = self._traces.get(request.path_params["key"]) is not None
        return JSONResponse(is_open, headers={"Cache-Control": "no-store"})

    async def answer(self, request: Request) -> Response:
        """One file of an open trace."""
        name = request.path_params["name"]
        open_trace = self._traces.get(request.path_params["key"])
        if open_trace is None or not is_file(name):
            return Response("This trace is no longer open here.", 404)
        try:
            file = open_trace.made_file(name) or await self._in_turn(
                request,
                lambda check: open_trace.file(name, check),
                self._payloads if name == PAYLOAD else self._downloads,
            )
        except InputError as error:
            return Response(plain(error), 422)
        if file is None:
            return Response(status_code=499)  # nobody reads it
        # A file is named by hand and may be replaced; any other key is never given twice.
        is_ready = open_trace.key in self._traces.ready_made
        headers = {"Cache-Control": f"private, {'no-cache' if is_ready else 'max-age=3600'}"}
        if is_ready:
            headers["ETag"] = file.tag
            if request.headers.get("If-None-Match") == file.tag:
                return Response(status_code=304, headers=headers)
        if name != PAYLOAD:
            headers["Content-Disposition"] = f'attachment; filename="svg2-{name}"'
        headers["Content-Length"] = str(len(file.data))
        return StreamingResponse(_in_chunks(file), 200, headers, _TYPE)

    async def animate(self, request: Request) -> Response:
        """Two clips of an open trace side by side, as one moving picture."""
        open_trace = self._traces.get(request.path_params["key"])
        found = _MOVING.fullmatch(request.path_params["name"])
        if open_trace is None or found is None:
            return Response("This trace is no longer open here.", 404)
        left = None if found[1] == "dense" else int(found[1]) - 1
        kind = "gif" if found[3] == "gif" else "webp"

        def work(check: Check) -> bytes:
            return moving_picture(open_trace.trace, left, int(found[2]) - 1, kind, check)

        try:
            data = await self._in_turn(request, work, self._downloads)
        except InputError as error:
            return Response(plain(error), 422)
        if data is None:
            return Response(status_code=499)
        return Response(data, 200, {"Cache-Control": "private, no-cache"}, f"image/{kind}")

    async def _in_turn(
        self, request: Request, work: Callable[[Check], Made], limiter: anyio.CapacityLimiter
    ) -> Made | None:
        """What `work` makes when its turn has come; None where the client left before its end.

        Raises:
            InputError: as `work` does.
        """
        gone = threading.Event()
        made: list[Made] = []
        refused: list[InputError] = []

        def check() -> None:
            if gone.is_set():
                raise Cancelled

        def attempt() -> None:
            try:
                with nullcontext() if limiter is self._payloads else beside_runs():
                    check()
                    made.append(work(check))
            except InputError as error:
                refused.append(error)
            except Cancelled:
                pass
            finally:
                self._traces.freed()

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                gone.set()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            # A cancel ends the wait; once begun, the turn lasts until the thread has stopped.
            await anyio.to_thread.run_sync(attempt, limiter=limiter)
            group.cancel_scope.cancel()
        if refused:
            raise refused[0]
        return made[0] if made else None


async def _in_chunks(file: File) -> AsyncIterator[bytes]:
    """Pieces of the file: sent whole, each slow reader would hold a copy of its own."""
    for start in range(0, len(file.data), _CHUNK_BYTES):
        yield file.data[start : start + _CHUNK_BYTES]
