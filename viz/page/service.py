"""The page as a service: its options, its health, its log, and how it ends."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from svg2.errors import Cancelled, UsageError
from svg2.runs.jobs import LINE, Studio
from svg2.runs.limits import NO_LIMITS, Limits
from svg2.runs.provenance import commit, versions
from viz.page.handlers import BAD_INPUT

log = logging.getLogger(__name__)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of `python app.py`; what is wrong with them ends the program."""
    parser = argparse.ArgumentParser(prog="python app.py", description="Serve the SVG2 Lab page.")
    parser.add_argument(
        "--model",
        default=os.environ.get("SVG2_MODEL", "builtin"),
        help="a menu name, a pipeline's folder or a hub id (default: SVG2_MODEL or builtin)",
    )
    parser.add_argument(
        "--port", type=int, help="default: GRADIO_SERVER_PORT or the first free one from 7860"
    )
    parser.add_argument("--share", action="store_true", help="also make Gradio's public link")
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=Limits.seconds / 60,
        help="what a run may take that is more than a default video (default: %(default)g)",
    )
    parser.add_argument(
        "--no-limits", action="store_true", help="for a page of your own: a run may take anything"
    )
    parser.add_argument(
        "--downloads",
        action="store_true",
        help="a run may download a model of the menu, which can be hundreds of GB",
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="also serve compare, sweep, models and trace as MCP tools (needs gradio[mcp])",
    )
    return parser.parse_args(argv)


def check_mcp(options: argparse.Namespace) -> None:
    """Check that MCP tools can be served, where they are asked for.

    Raises:
        UsageError: the package that it takes is missing.
    """
    if options.mcp and find_spec("mcp") is None:
        raise UsageError("--mcp needs a package that is missing: pip install 'gradio[mcp]'.")


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= 100_000:
        raise ValueError
    return minutes


def studio_of(options: argparse.Namespace) -> Studio:
    """The models that the options ask for, with the limits of a run."""
    limits = NO_LIMITS if options.no_limits else Limits(seconds=60 * options.minutes)
    return Studio(options.model, limits, options.downloads)


def health_route(studio: Studio) -> Route:
    """`/health`: whether runs are taken, how many wait, and which versions answer."""
    about = {"commit": commit(), **versions()}

    def answer(request: Request) -> JSONResponse:
        state = {
            "status": "busy" if LINE.is_busy else "idle",
            "waiting": LINE.waiting,
            "has_room": LINE.has_room,
            "model": studio.model,
            "loaded": studio.loaded,
            "version": about,
        }
        return JSONResponse(state, headers={"Cache-Control": "no-store"})

    return Route("/health", answer)


class JsonLines(logging.Formatter):
    """A line of JSON per record, with the fields of its `facts` and without those of `hidden`."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": when,
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        text = json.dumps(line, ensure_ascii=False, default=str)
        for secret in getattr(record, "hidden", ()):
            if secret:
                text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], "…")
        return text


def log_as_json() -> None:
    """Write the log of this process to stderr, a line of JSON per event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("viz.page").setLevel(logging.INFO)


def check_mcp_is_up(blocks: Any) -> None:
    """Check that MCP tools are served, where they were asked for.

    Raises:
        UsageError: they are not, as with another version of the package.
    """
    if blocks.mcp_error:
        raise UsageError(f"--mcp can't be served ({blocks.mcp_error}): pip install 'gradio[mcp]'.")


def load_in_background(studio: Studio) -> None:
    """Have the model ready by the time somebody asks; what fails then is said when they do."""

    def load() -> None:
        try:
            studio.preload()
        except BAD_INPUT as error:
            log.warning("%s", error)
        except Cancelled:  # the server ends
            pass

    threading.Thread(target=load, name="load-model", daemon=True).start()


def told_to_end() -> threading.Event:
    """An event that SIGTERM sets from now on."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    return told


def serve_until_told(blocks: Any, told: threading.Event) -> None:
    """Serve a page that is up until Ctrl-C or SIGTERM, then end its runs and close it."""
    signal.signal(signal.SIGINT, lambda *_: told.set())
    told.wait()
    LINE.close()
    blocks.close(verbose=False)
