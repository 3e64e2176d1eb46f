"""Files of open traces over HTTP, each made when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from svg2.errors import Cancelled, InputError
from viz.bench_figures import PICTURES
from viz.page.open_traces import FILES, PAYLOAD, File, OpenTrace, OpenTraces

_CHUNK_BYTES = 256 << 10
_TYPE = "application/octet-stream"


def routes(traces: OpenTraces) -> list[BaseRoute]:
    """What the page serves beside Gradio: files of open traces, and pictures of measurements."""
    pictures = Mount("/bench", StaticFiles(directory=PICTURES, check_dir=False))
    return [Downloads(traces).route(), pictures]


class Downloads:
    """Makes one payload and one download at a time; further requests wait in order.

    What its client no longer waits for is given up, before its turn or while it is made.
    """

    def __init__(self, traces: OpenTraces) -> None:
        self._traces = traces
        # The page's own thread pool stays free for the page.
        self._payloads, self._downloads = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)

    def route(self) -> Route:
        """`lab/KEY/payload` for the explorer, `trace.npz` and `export.zip` to keep."""
        return Route("/lab/{key}/{name}", self.answer)

    async def answer(self, request: Request) -> Response:
        """One file of an open trace."""
        name = request.path_params["name"]
        open_trace = self._traces.get(request.path_params["key"])
        if open_trace is None or name not in FILES:
            return Response("This trace is no longer open here.", 404)
        try:
            file = open_trace.made_file(name) or await self._make(request, open_trace, name)
        except InputError as error:
            return Response(str(error), 422)
        if file is None:
            return Response(status_code=499)  # nobody reads it
        # A file is named by hand and may be replaced; any other key is never given twice.
        is_file = open_trace.key in self._traces.ready_made
        headers = {"Cache-Control": f"private, {'no-cache' if is_file else 'max-age=3600'}"}
        if is_file:
            headers["ETag"] = file.tag
            if request.headers.get("If-None-Match") == file.tag:
                return Response(status_code=304, headers=headers)
        if name != PAYLOAD:
            headers["Content-Disposition"] = f'attachment; filename="svg2-{name}"'
        headers["Content-Length"] = str(len(file.data))
        return StreamingResponse(_in_chunks(file), 200, headers, _TYPE)

    async def _make(self, request: Request, open_trace: OpenTrace, name: str) -> File | None:
        """The file, when its turn has come; None where the client left before it was done.

        Raises:
            InputError: it can't be made of this trace.
        """
        gone = threading.Event()
        made: list[File] = []
        refused: list[InputError] = []

        def check() -> None:
            if gone.is_set():
                raise Cancelled

        def work() -> None:
            try:
                made.append(open_trace.file(name, check))
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
            limiter = self._payloads if name == PAYLOAD else self._downloads
            # A cancel ends the wait; once begun, the turn lasts until the thread has stopped.
            await anyio.to_thread.run_sync(work, limiter=limiter)
            group.cancel_scope.cancel()
        if refused:
            raise refused[0]
        return made[0] if made else None


async def _in_chunks(file: File) -> AsyncIterator[bytes]:
    """Pieces of the file: sent whole, each slow reader would hold a copy of its own."""
    for start in range(0, len(file.data), _CHUNK_BYTES):
        yield file.data[start : start + _CHUNK_BYTES]
