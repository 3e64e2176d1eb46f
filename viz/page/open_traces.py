"""Open traces by key, for a browser to fetch."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

from svg2.errors import TraceError
from svg2.trace.file import load_trace, trace_bytes
from svg2.trace.records import Trace
from viz.export import export_bytes
from viz.payload import Check, check_clips, check_showable, explorer_payload, payload_bytes

READY_MADE = "ready-made trace"
UPLOAD = "upload"
MAX_HELD_BYTES = 1 << 30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """A file of an open trace, and a tag that names these bytes and no other."""

    data: bytes
    tag: str


@dataclass(frozen=True)
class OpenTrace:
    """A trace that the page can show, by default under a key that nobody can guess."""

    trace: Trace
    mode: str
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    _made: WeakValueDictionary[str, File] = field(
        default_factory=WeakValueDictionary, init=False, repr=False, compare=False
    )
    _kept: list[File] = field(default_factory=list, init=False, repr=False, compare=False)

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

    @property
    def held_bytes(self) -> int:
        """Bytes that it takes in memory, roughly: a payload is at most as large as its trace."""
        payload = self.made_file(PAYLOAD)
        return self._trace_bytes + (len(payload.data) if payload else self._trace_bytes)

    @cached_property
    def _trace_bytes(self) -> int:
        return self.trace.held_bytes

    def made_file(self, name: str) -> File | None:
        """One file, where it was made before and is kept, or being sent to somebody."""
        return self._made.get(name)

    def file(self, name: str, check: Check) -> File:
        """One file that `is_file` knows. Payloads are kept, and of a ready-made trace all `FILES`.

        Args:
            check: called again and again; what it raises ends the work.

        Raises:
            RequestError: the trace has no run of that number.
            MediaError: a clip can't be decoded for an export.
        """
        made = self.made_file(name)
        if made is None:
            export = _EXPORT.fullmatch(name)
            if export is not None:
                data = export_bytes(self.trace, self.mode, check, int(export[1]) - 1)
            else:
                data = FILES[name](self, check)
            made = self._made[name] = File(data, f'"{hashlib.sha256(data).hexdigest()}"')
            if name == PAYLOAD or (self.mode == READY_MADE and name in FILES):
                self._kept.append(made)
        return made


PAYLOAD = "payload"
FILES: Mapping[str, Callable[[OpenTrace, Check], bytes]] = {
    PAYLOAD: lambda shown, check: payload_bytes(explorer_payload(shown.trace, shown.mode), check),
    "trace.npz": lambda shown, check: trace_bytes(shown.trace),
    "export.zip": lambda shown, check: export_bytes(shown.trace, shown.mode, check),
}
"""How each file is made that a browser may fetch: for the explorer, and to keep."""

_EXPORT = re.compile(r"export-([1-9]\d{0,2})\.zip")


def is_file(name: str) -> bool:
    """Whether a browser may fetch this: one of `FILES`, or `export-RUN.zip` with a run from 1."""
    return name in FILES or _EXPORT.fullmatch(name) is not None


class OpenTraces:
    """Open traces by key: the ready-made ones, and whatever a visit shows.

    What a visit shows stays for as long as the visit holds it, and goes with it.

    Args:
        freed: called when much memory may have become free.
    """

    def __init__(
        self, ready_made: Iterable[OpenTrace] = (), freed: Callable[[], None] = lambda: None
    ) -> None:
        self.ready_made = {open_trace.key: open_trace for open_trace in ready_made}
        self.freed = freed
        self._shown: WeakValueDictionary[str, OpenTrace] = WeakValueDictionary()

    @property
    def held_bytes(self) -> int:
        """Bytes that the traces of all visits take in memory, roughly."""
        return sum(open_trace.held_bytes for open_trace in list(self._shown.values()))

    def put(self, trace: Trace, mode: str) -> OpenTrace:
        """Open a trace that was made here.

        Raises:
            TraceError: no page can show it.
        """
        check_showable(trace)
        open_trace = OpenTrace(trace, mode)
        self._shown[open_trace.key] = open_trace
        return open_trace

    def receive(self, data: bytes, instead_of: OpenTrace | None = None) -> OpenTrace:
        """Open the trace of an uploaded file.

        Args:
            instead_of: what the visit shows now, whose place it takes.

        Raises:
            TraceError: the file is no sound trace, or the traces of other visits leave no room.
        """
        trace = load_trace(data)
        check_showable(trace)
        uploaded = OpenTrace(trace, UPLOAD)
        replaced = instead_of is not None and instead_of.key in self._shown
        others = self.held_bytes - (instead_of.held_bytes if instead_of and replaced else 0)
        if others + uploaded.held_bytes > MAX_HELD_BYTES:
            raise TraceError(
                "The traces of other visitors leave no room for this one: try again later."
            )
        check_clips(trace)
        self._shown[uploaded.key] = uploaded
        return uploaded

    def get(self, key: str) -> OpenTrace | None:
        return self._shown.get(key) or self.ready_made.get(key)


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
