"""A small sound trace, and pages opened in a real Chromium."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svg2.trace.records import Trace
from tests.traces import make_synthetic_trace
from viz import explorer_html, explorer_payload, payload_bytes

MODE = "ready-made trace"
RESET = """async ([text, link]) => {
    document.getElementById('explorer').shadowRoot.activeElement?.blur();
    delete document.documentElement.dataset.theme;
    explorer.receive({});
    if (text && !(await explorer.loadBase64(text))) throw new Error('The trace did not open.');
    const followed = new Promise((done) => addEventListener('hashchange', done, { once: true }));
    location.hash = link;
    await followed;
    scrollTo(0, 0);
}"""


@pytest.fixture(scope="session")
def trace() -> Trace:
    """9 latent frames over 17 video frames, ragged clusters, three runs of two methods."""
    return make_synthetic_trace(grid=(9, 6, 7), num_q=11, num_k=29, steps=6, layers=2, heads=2)


class Opener:
    """Opens traces as standalone pages, and hears what their consoles complain of.

    A warm page is kept from test to test: it loads the next trace and follows the next link anew,
    so that all views are made again.
    """

    def __init__(self, chromium, folder: Path) -> None:
        self.chromium, self.folder = chromium, folder
        self.files: list[tuple[Any, Path]] = []
        self.warm: dict[tuple, WarmPage] = {}
        self.troubles: list[str] = []
        self.contexts: list[Any] = []  # of the fresh pages of the test that runs

    def address(self, shown: Trace | dict) -> str:
        """The address of a trace's page, which is written once."""
        for known, path in self.files:
            if known is shown:
                return path.as_uri()
        path = self.folder / f"explorer{len(self.files)}.html"
        path.write_text(explorer_html(shown, MODE), encoding="utf-8")
        self.files.append((shown, path))
        return path.as_uri()

    def fresh(self, shown: Trace | dict, link: str, width: int, theme: str, options: dict):
        context = self.chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, **options
        )
        self.contexts.append(context)
        page = context.new_page()
        self.listen(page)
        page.goto(self.address(shown) + link)
        page.wait_for_selector(".metrics", state="attached")
        return page

    def reset(self, shown: Trace | dict, link: str, width: int, theme: str, options: dict):
        key = (theme, *sorted(options.items()))
        if key not in self.warm:
            page = self.fresh(shown, link, width, theme, options)
            self.warm[key] = WarmPage(self.contexts.pop(), page, shown)
            return page
        warm = self.warm[key]
        warm.page.set_viewport_size({"width": width, "height": 900})
        warm.page.mouse.move(0, 0)
        warm.show(shown, link)
        return warm.page

    def listen(self, page) -> None:
        def complain(kind: str, text: str) -> None:
            # the tests read canvases back, which no user does
            if kind in ("error", "warning") and "willReadFrequently" not in text:
                self.troubles.append(text)

        def see(address: str) -> None:
            if not address.startswith(("file:", "blob:", "data:")):
                self.troubles.append(f"request to {address}")

        page.on("console", lambda m: complain(m.type, m.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", lambda request: see(request.url))

    def end_test(self) -> None:
        for warm in self.warm.values():
            warm.page.evaluate("() => explorer.select({ playing: false, compare: 'side' })")
        for context in self.contexts:
            context.close()
        self.contexts.clear()

    def close(self) -> None:
        for warm in self.warm.values():
            warm.context.close()


class WarmPage:
    """A page that goes from test to test, and the trace that it shows."""

    def __init__(self, context, page, shown: Trace | dict) -> None:
        self.context, self.page, self.shown = context, page, shown
        self.uses = 0

    def show(self, shown: Trace | dict, link: str) -> None:
        self.uses += 1  # a link that is the same as before is followed too
        text = None
        if shown is not self.shown:
            payload = shown if isinstance(shown, dict) else explorer_payload(shown, MODE)
            text = base64.b64encode(payload_bytes(payload)).decode()
        self.shown = shown
        self.page.evaluate(RESET, [text, f"{link or '#'}&use={self.uses}"])


@pytest.fixture(scope="session")
def opener(chromium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    opener = Opener(chromium, tmp_path_factory.mktemp("pages"))
    yield opener
    opener.close()


@pytest.fixture
def open_page(opener: Opener) -> Iterator[Callable]:
    """Opens a trace; anything that the console complains of fails the test.

    One page serves all tests that ask for the same theme and options, so that a second call in a
    test takes the first page away. `fresh` opens a page of the test's own: for tests that change
    what no reset puts back, load traces themselves, or look at two pages.
    """
    opener.troubles.clear()

    def visit(
        trace: Trace | dict,
        link: str = "",
        width: int = 1280,
        theme: str = "light",
        fresh: bool = False,
        **options,
    ):
        show = opener.fresh if fresh else opener.reset
        page = show(trace, link, width, theme, options)
        visit.context = page.context
        return page

    yield visit
    opener.end_test()
    assert not opener.troubles, opener.troubles


def wait_for_clips(page) -> None:
    """Until every frame of both clips on show is decoded."""
    page.wait_for_function("() => explorer.inspect().decoded.every((clip) => clip.every(Boolean))")
