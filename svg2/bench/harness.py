"""What the suites share: the device, how progress is reported and how a record is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from svg2.errors import SuiteUnavailable
from svg2.trace.atomic import json_bytes, write_atomic

Progress = Callable[[str], object]
"""Takes one line about what was just measured, for a person."""

MAX_REASON_CHARS = 300


def suite_device(suite: str, toy: bool) -> torch.device:
    """The device that a GPU suite runs on: the GPU; for a toy run, the CPU if there is no GPU.

    Args:
        suite: name of the suite in the error message.
        toy: whether the suite runs at toy sizes.

    Raises:
        SuiteUnavailable: there is no GPU, and `toy` is false.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if toy:
        return torch.device("cpu")
    raise SuiteUnavailable(
        f"The {suite} suite needs an NVIDIA GPU, and none was found; --toy tries out the harness "
        "at toy sizes."
    )


def save_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all.

    Raises:
        OSError: `path` can't be written.
    """
    write_atomic(path, json_bytes(record))


def reason(error: object) -> str:
    """An error as a record states it: its message on one line, cut to 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:MAX_REASON_CHARS]
