"""The environment of a served page: what Gradio would fail on is refused in a sentence."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svg2.errors import InputError, UsageError
from svg2.trace import scratch

_NUMBERS = {  # least and greatest; Gradio reads them when it is loaded
    "GRADIO_SERVER_PORT": (1, 65535),
    "GRADIO_NUM_PORTS": (1, 65535),
    "GRADIO_NODE_NUM_PORTS": (1, 65535),
    "GRADIO_ANALYTICS_MAX_EVENTS": (1, 10**9),
    "GRADIO_DEBUG": (0, 1),
}
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_OURSELVES = "localhost,127.0.0.1,::1"


@contextmanager
def refused_at_start() -> Iterator[None]:
    """What keeps the program from starting is one sentence on stderr, and ends it."""
    try:
        yield
    except InputError as error:
        print(f"python app.py: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, OverflowError) as error:
        advice = "; name a free port by --port" if "port" in str(error).lower() else ""
        sys.exit(f"python app.py: can't be served ({error}){advice}")


def before_gradio() -> None:
    """What must come before Gradio is loaded: its numbers are checked, and `spaces` comes first.

    On a ZeroGPU Space `spaces` changes gradio and torch, so it must be there before both.

    Raises:
        UsageError: a number that Gradio would fail on, or no `spaces` where it is needed.
    """
    check_numbers()
    if not is_on_zero_gpu():
        return
    try:
        import spaces  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, AssertionError, RuntimeError) as error:
        raise UsageError(f"SPACES_ZERO_GPU is set, but ZeroGPU can't be used: {error}") from error


def check_numbers() -> None:
    """Check the numbers that Gradio reads from the environment, before it is loaded.

    Raises:
        UsageError: one that is no number, or out of range.
    """
    for name, (least, most) in _NUMBERS.items():
        text = os.environ.get(name)
        if text is None:
            continue
        is_number = text.strip().isascii() and text.strip().isdigit()
        if not is_number or not least <= int(text) <= most:
            raise UsageError(
                f"{name} is {text!r}: set it to a number from {least} to {most}, or unset it."
            )


def is_on_zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space, as the package `spaces` reads it from the environment."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in {"1", "t", "true"}


def check_upload_folder() -> None:
    """Have uploads written to a folder of this process, which goes with it, or to the one given.

    Raises:
        UsageError: it can't be made or written, as where it belongs to another user.
    """
    folder = os.environ.get("GRADIO_TEMP_DIR")
    try:
        folder = folder or str(scratch.root() / "uploads")
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"The folder for uploads {folder or tempfile.tempdir or ''!r} can't be written "
            f"({reason}): set GRADIO_TEMP_DIR to a folder of your own."
        ) from error
    os.environ["GRADIO_TEMP_DIR"] = folder


@contextmanager
def reaching_itself(needs_network: bool = False) -> Iterator[None]:
    """Gradio asks its own server whether it is up: for that no proxy is in between.

    Args:
        needs_network: whether Gradio needs the proxies too, as for a public link.
    Raises:
        UsageError: it does, and they can't be used.
    """
    names = (*_PROXIES, "no_proxy")
    before = {name: value for name, value in os.environ.items() if name.lower() in names}
    if needs_network:
        _check_proxies(before)
        given = before.get("no_proxy", before.get("NO_PROXY", ""))
        own = os.environ.get("GRADIO_SERVER_NAME", "")
        os.environ["no_proxy"] = ",".join(filter(None, (given, _OURSELVES, own)))
    else:
        for name in before:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.pop("no_proxy", None)
        os.environ.update(before)


def _check_proxies(given: dict[str, str]) -> None:
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        named = " and ".join(name for name in given if name.lower() in _PROXIES)
        raise UsageError(f"The proxy that {named} names can't be used: {error}") from error
