"""The real page, served for real with a tiny model, in a real Chromium."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import app
from svg2.runs.jobs import Studio
from tests.svg2.pipelines import make_model_folder
from tests.traces import make_synthetic_trace
from viz.shelf import READY_MADE, Shelf, Shown


@pytest.fixture(scope="session")
def studio(tiny_pipeline_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("studio") / "tiny"
    return Studio(str(make_model_folder(tiny_pipeline_path, folder)))


@pytest.fixture(scope="session")
def shelf() -> Shelf:
    """Two ready-made traces, the second of another prompt."""
    first = make_synthetic_trace(grid=(5, 6, 7), num_q=7, num_k=15, steps=5)
    second = make_synthetic_trace(grid=(3, 6, 6), num_q=5, num_k=9, steps=5, seed=1)
    second.request["prompt"] = "a blue cube bouncing"
    named = zip((first, second), ("red-ball", "blue-cube"), strict=True)
    return Shelf([Shown(trace, READY_MADE, name) for trace, name in named])


@pytest.fixture(scope="module")
def address(studio: Studio, shelf: Shelf) -> Iterator[str]:
    """The page, served. One thread for torch: on tensors this small more only wait."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = app.launch(
        *(studio, shelf), server_name="127.0.0.1", server_port=port, prevent_thread_lock=True
    )
    yield f"http://127.0.0.1:{port}/"
    page.close()
    torch.set_num_threads(num_threads)


@pytest.fixture
def visit(chromium, address: str) -> Iterator[Callable]:
    """Opens the page; a complaint in the console or a request to another host fails the test."""
    troubles: list[str] = []
    contexts = []

    def opened(query: str = "", width: int = 1280, theme: str = "light", checked: bool = True):
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            reduced_motion="reduce",
            accept_downloads=True,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on(
            "console",
            lambda m: (
                troubles.append(m.text) if checked and m.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: troubles.append(str(error)))
        local = (address, "blob:", "data:")
        page.on(
            "request",
            lambda r: None if r.url.startswith(local) else troubles.append(f"asked {r.url}"),
        )
        page.goto(address + query)
        page.wait_for_selector("#explorer .metrics", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not troubles, troubles
