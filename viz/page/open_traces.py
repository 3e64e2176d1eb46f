"""Open traces by key, for a browser to fetch."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from svg2.errors import TraceError
from svg2.trace.file import load_trace, trace_bytes
from svg2.trace.records import Trace
from viz.export import export_bytes
from viz.page.runner import beside_runs
from viz.payload import check_showable, explorer_payload, payload_bytes

MAX_OPEN = 24
READY_MADE = "ready-made trace"
UPLOAD = "upload"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenTrace:
    """A trace that the page can show, by default under a key that nobody can guess."""

    trace: Trace
    mode: str
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def prompt(self) -> str:
        return str(self.trace.request.get("prompt", "untitled"))

    @property
    def title(self) -> str:
        """The prompt and the budgets that were run, so that two of one prompt are told apart."""
        budgets = [run.config.get("top_p") for run in self.trace.runs]
        known = sorted({p for p in budgets if isinstance(p, int | float)})
        if not known:
            return self.prompt
        span = f"{known[0]:g}" if len(known) == 1 else f"{known[0]:g} to {known[-1]:g}"
        return f"{self.prompt} (top-p {span})"

    @property
    def source(self) -> str:
        """Which model made it, on what, when."""
        request, provenance = self.trace.request, self.trace.provenance
        commit = provenance.get("commit")
        parts = (
            f"model {request.get('model', 'unknown')}, seed {request.get('seed', 'unknown')}",
            f"methods {', '.join(dict.fromkeys(run.method for run in self.trace.runs))}",
            provenance.get("hardware") or provenance.get("device"),
            str(provenance.get("date", ""))[:10],
            f"commit {str(commit)[:8]}" if commit else None,
        )
        return " · ".join(str(part) for part in parts if part)

    @cached_property
    def payload(self) -> bytes:
        return payload_bytes(explorer_payload(self.trace, self.mode))

    @cached_property
    def tag(self) -> str:
        """Names this payload and no other, for a browser that has one already."""
        return f'"{hashlib.sha256(self.payload).hexdigest()}"'


class OpenTraces:
    """Open traces by key. The least recently used is dropped; ready-made ones stay."""

    def __init__(self, ready_made: Iterable[OpenTrace] = ()) -> None:
        self.ready_made = {open_trace.key: open_trace for open_trace in ready_made}
        self._items: OrderedDict[str, OpenTrace] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, trace: Trace, mode: str) -> OpenTrace:
        """Raises: TraceError: no page can show it."""
        check_showable(trace)
        open_trace = OpenTrace(trace, mode)
        with self._lock:
            self._items[open_trace.key] = open_trace
            while len(self._items) > MAX_OPEN:
                self._items.popitem(last=False)
        return open_trace

    def get(self, key: str) -> OpenTrace | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key) or self.ready_made.get(key)

    def route(self) -> Route:
        """`lab/KEY/payload` for the explorer, `trace.npz` and `export.zip` to keep."""
        makers: dict[str, Callable[[OpenTrace], bytes]] = {
            "payload": lambda open_trace: open_trace.payload,
            "trace.npz": lambda open_trace: trace_bytes(open_trace.trace),
            "export.zip": lambda open_trace: export_bytes(open_trace.trace, open_trace.mode),
        }

        def answer(request: Request) -> Response:
            name = request.path_params["name"]
            open_trace = self.get(request.path_params["key"])
            if open_trace is None or name not in makers:
                return Response("This trace is no longer open here.", 404)
            # A file is named by hand and may be replaced; any other key is never given twice.
            is_file = open_trace.key in self.ready_made
            headers = {"Cache-Control": f"private, {'no-cache' if is_file else 'max-age=3600'}"}
            if is_file and name == "payload":
                headers["ETag"] = open_trace.tag
                if request.headers.get("If-None-Match") == open_trace.tag:
                    return Response(status_code=304, headers=headers)
            if name != "payload":
                headers["Content-Disposition"] = f'attachment; filename="svg2-{name}"'
            with beside_runs() if name == "export.zip" else nullcontext():
                data = makers[name](open_trace)
            return Response(data, 200, headers, "application/octet-stream")

        return Route("/lab/{key}/{name}", answer)


def read_traces(folder: Path) -> list[OpenTrace]:
    """The ready-made traces in order of their names, by which links name them too.

    A broken one is left out and logged.
    """
    found = []
    for path in sorted(folder.glob("*.npz")):
        try:
            trace = load_trace(path)
            check_showable(trace)
        except TraceError as error:
            log.warning("The ready-made trace %s is left out. %s", path.name, error)
        else:
            found.append(OpenTrace(trace, READY_MADE, re.sub(r"[^\w-]", "-", path.stem)[:64]))
    return found


def without_run(trace: Trace, index: int) -> Trace:
    """The trace without one of its runs."""
    records = (r for r in trace.records if r.run != index)
    return replace(
        trace,
        runs=trace.runs[:index] + trace.runs[index + 1 :],
        records=tuple(replace(r, run=r.run - (r.run > index)) for r in records),
    )


def without_records(trace: Trace, index: int) -> Trace:
    """The trace without the clusters of one run, whose clip and numbers stay."""
    return replace(trace, records=tuple(r for r in trace.records if r.run != index))
