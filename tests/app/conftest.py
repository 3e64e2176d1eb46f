"""The real page, served for real with a tiny model, in a real Chromium."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr
import pytest

import app
from svg2.runs.jobs import Studio
from tests.viz.page.fixtures import studio, traces
from viz.page.open_traces import OpenTraces

__all__ = ["studio", "traces"]


@pytest.fixture(scope="module")
def blocks(studio: Studio, traces: OpenTraces) -> Iterator[gr.Blocks]:
    """The page, served. One thread for torch: on tensors this small more only wait."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = app.launch(
        *(studio, traces), server_name="127.0.0.1", server_port=port, prevent_thread_lock=True
    )
    yield page
    page.close()
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def address(blocks: gr.Blocks) -> str:
    """Where the page is served."""
    return blocks.local_url


@pytest.fixture(scope="module")
def window(chromium) -> Iterator:
    """One for all pages of a module: the second page has the scripts of the first in its cache.

    The page keeps what belongs to a visit in `sessionStorage`, which is each tab's own.
    """
    window = chromium.new_context(reduced_motion="reduce", accept_downloads=True)
    yield window
    window.close()


@contextmanager
def opener(window, address: str) -> Iterator[Callable]:
    """Opens the page; a complaint in the console or a request to another host is an error."""
    troubles: list[str] = []
    pages = []

    def opened(query: str = "", width: int = 1280, theme: str = "light", checked: bool = True):
        page = window.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.set_default_timeout(90_000)

        def complain(message) -> None:
            if checked and message.type in ("error", "warning"):
                troubles.append(f"{message.text} at {message.location['url']}")

        page.on("console", complain)
        # A page that is loaded again cuts off Gradio's own stream, which says so.
        cut_off = ("AbortError", "Connection errored out") if not checked else ()
        page.on(
            "pageerror",
            lambda error: None if str(error).startswith(cut_off) else troubles.append(str(error)),
        )
        local = (address, "blob:", "data:")
        page.on(
            "request",
            lambda r: None if r.url.startswith(local) else troubles.append(f"asked {r.url}"),
        )
        page.goto(address + query)
        page.wait_for_selector("#explorer .metrics", state="attached")
        return page

    yield opened
    for page in pages:
        page.close()
    assert not troubles, troubles


@pytest.fixture
def visit(window, address: str) -> Iterator[Callable]:
    """Opens a page for one test."""
    with opener(window, address) as opened:
        yield opened


@pytest.fixture(scope="module")
def visit_all(window, address: str) -> Iterator[Callable]:
    """Opens a page for all tests of a module that leave it fit for the next."""
    with opener(window, address) as opened:
        yield opened
