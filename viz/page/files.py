"""What is served beside Gradio: open traces, moving pictures, pictures of measurements."""

from __future__ import annotations

import re
import threading

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from svg2.errors import InputError
from viz.bench_figures import PICTURES
from viz.motion import moving_picture
from viz.page.open_traces import OpenTraces
from viz.page.runner import beside_runs
from viz.page.words import plain

_NAME = re.compile(r"compare-(dense|[1-9]\d{0,2})-([1-9]\d{0,2})\.(gif|webp)")
_one_at_a_time = threading.Lock()


def routes(traces: OpenTraces) -> list[BaseRoute]:
    """Every route of the page that is not Gradio's."""
    pictures = Mount("/bench", StaticFiles(directory=PICTURES, check_dir=False))
    return [traces.route(), motion_route(traces), pictures]


def motion_route(traces: OpenTraces) -> Route:
    """`motion/KEY/compare-LEFT-RIGHT.gif` or `.webp`: runs by number from 1, or `dense` left."""

    def answer(request: Request) -> Response:
        open_trace = traces.get(request.path_params["key"])
        found = _NAME.fullmatch(request.path_params["name"])
        if open_trace is None or found is None:
            return Response("This trace is no longer open here.", 404)
        left = None if found[1] == "dense" else int(found[1]) - 1
        kind = "gif" if found[3] == "gif" else "webp"
        try:
            with _one_at_a_time, beside_runs():
                data = moving_picture(open_trace.trace, left, int(found[2]) - 1, kind)
        except InputError as error:
            return Response(plain(error), 422)
        return Response(data, 200, {"Cache-Control": "private, no-cache"}, f"image/{kind}")

    return Route("/motion/{key}/{name}", answer)
