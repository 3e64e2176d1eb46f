"""Errors whose messages are shown to people. Each message is one sentence."""

from typing import Any


class InputError(ValueError):
    """Invalid input. The message says what is wrong and what would be right."""


class UsageError(InputError):
    """Invalid argument on the command line."""


class ConfigError(InputError):
    """Invalid setting of the method."""


class RequestError(InputError):
    """Invalid request: its prompt, size, model, device or input file."""


class TraceError(InputError):
    """Unreadable or damaged trace file."""


class MediaError(InputError):
    """Video or image that can't be read or written."""


class ModelUnavailable(RuntimeError):
    """Known model that can't be loaded on this machine."""


class TooBusy(RuntimeError):
    """As many runs wait here as may. The message says how many, and what to do."""


class NotFinite(RuntimeError):
    """Run with infinite or NaN latents or frames. The message says where, and what to try."""


class GpuUnavailable(RuntimeError):
    """GPU of a shared machine that was not given, or was taken away. The message says why.

    Attributes:
        dense: the `svg2.runs.dense_sparse.DenseRun` if it was complete, else None.
    """

    def __init__(self, message: str, dense: Any = None) -> None:
        super().__init__(message)
        self.dense = dense


class SuiteUnavailable(RuntimeError):
    """Benchmark suite that can't run on this machine."""


class Cancelled(Exception):
    """Generation stopped on request.

    Attributes:
        dense: the `svg2.runs.dense_sparse.DenseRun` if it was complete, else None.
    """

    def __init__(self, dense: Any = None) -> None:
        super().__init__("The generation was cancelled.")
        self.dense = dense
