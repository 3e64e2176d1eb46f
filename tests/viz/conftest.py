"""A small sound trace, and pages opened in a real Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svg2.trace.records import Trace
from tests.traces import make_synthetic_trace
from viz import explorer_html


@pytest.fixture(scope="session")
def trace() -> Trace:
    """9 latent frames over 17 video frames, ragged clusters, three runs of two methods."""
    return make_synthetic_trace(grid=(9, 6, 7), num_q=11, num_k=29, steps=6, layers=2, heads=2)


@pytest.fixture
def open_page(chromium, tmp_path: Path) -> Iterator[Callable]:
    """Opens a trace as a standalone page; anything the console complains of fails the test."""
    troubles: list[str] = []
    contexts = []

    def complain(kind: str, text: str) -> None:
        # the tests read canvases back, which no user does
        if kind in ("error", "warning") and "willReadFrequently" not in text:
            troubles.append(text)

    def visit(trace: Trace, link: str = "", width: int = 1280, theme: str = "light", **options):
        path = tmp_path / "explorer.html"
        path.write_text(explorer_html(trace, "ready-made trace"), encoding="utf-8")
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, **options
        )
        contexts.append(context)
        visit.context = context
        page = context.new_page()
        page.on("console", lambda m: complain(m.type, m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None
                if r.url.startswith(("file:", "blob:", "data:"))
                else troubles.append(f"request to {r.url}")
            ),
        )
        page.goto(path.as_uri() + link)
        page.wait_for_selector(".metrics")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not troubles, troubles
