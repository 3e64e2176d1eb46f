"""The page as a moving picture for the README: `python -m viz.film`, with Chromium installed.

It opens the first ready-made trace, lets the clips play, goes to the masks and moves the budget.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from svg2.trace.atomic import write_atomic

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "assets" / "page.webp"
_VIEW = {"width": 1280, "height": 800}
_SHOWN = (960, 600)
_FRAME_MS = 140


@contextmanager
def served() -> Iterator[str]:
    """The address of the page, served for the block."""
    server = subprocess.Popen(
        [sys.executable, "-u", "app.py"],
        cwd=ROOT,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if found := re.search(r"http://[\w.]+:\d+", line):
                yield found[0]
                return
        raise RuntimeError("The page ended before it was served.")
    finally:
        server.terminate()
        server.wait()


def record(address: str) -> list[Image.Image]:
    """Pictures of the page in the order of the film."""
    from playwright.sync_api import sync_playwright

    frames: list[Image.Image] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-background-networking"],
        )
        page = browser.new_page(viewport=_VIEW, color_scheme="light")
        page.goto(address)
        page.locator("#explorer .outlinenote").wait_for()
        page.wait_for_timeout(3_000)
        _film(page, frames, 14)
        for view in ("clusters", "masks"):
            _go_to(page, view, frames)
            _film(page, frames, 5)
        slider = page.locator("#explorer input.budget")
        for top_p in (
            0.32,
            0.36,
            0.42,
            0.5,
            0.6,
            0.7,
            0.8,
            0.6,
            0.4,
            0.3,
            0.2,
            0.14,
            0.2,
            0.26,
            0.3,
        ):
            slider.evaluate(
                "(s, p) => { s.value = p; s.dispatchEvent(new Event('input')) }",
                top_p,
            )
            page.wait_for_timeout(60)
            _film(page, frames, 1)
        _go_to(page, "tradeoff", frames)
        _film(page, frames, 6)
        browser.close()
    return frames


def _film(page: Any, frames: list[Image.Image], count: int) -> None:
    """Add so many pictures of the page as it goes on."""
    for _ in range(count):
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        frames.append(picture.resize(_SHOWN, Image.Resampling.LANCZOS))
        page.wait_for_timeout(_FRAME_MS // 2)


def _go_to(page: Any, view: str, frames: list[Image.Image]) -> None:
    """Scroll to a view in a few steps."""
    target = page.locator(f"#explorer [data-view={view}]")
    top = target.evaluate("(node) => node.getBoundingClientRect().top + scrollY - 8")
    start = page.evaluate("() => scrollY")
    for share in (0.25, 0.6, 0.9, 1.0):
        page.evaluate("(y) => scrollTo(0, y)", start + share * (top - start))
        _film(page, frames, 1)


def main() -> None:
    """Film the page and write the picture."""
    with served() as address:
        frames = record(address)
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=_FRAME_MS,
        loop=0,
        quality=55,
        method=4,
    )
    write_atomic(OUT, buffer.getvalue())
    print(f"{OUT}: {len(frames)} frames, {len(buffer.getvalue()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
