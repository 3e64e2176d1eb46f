"""Every error whose message a person may see: one sentence that says what is wrong."""

from typing import Any


class InputError(ValueError):
    """What a person gave cannot work. The message says what is wrong and what would be right."""


class UsageError(InputError):
    """An argument of a command."""


class ConfigError(InputError):
    """A setting of the method."""


class RequestError(InputError):
    """What a video is asked to be: its prompt, size, model or device."""


class TraceError(InputError):
    """A trace file that cannot be read or is damaged."""


class MediaError(InputError):
    """A video or image that cannot be written or read."""


class ModelUnavailable(RuntimeError):
    """A known model that cannot be loaded on this machine."""


class SuiteUnavailable(RuntimeError):
    """A benchmark suite that cannot run on this machine."""


class Cancelled(Exception):
    """A generation stopped on request.

    Attributes:
        dense: the `svg2.runs.dense_sparse.DenseRun` where that was complete, else None.
    """

    def __init__(self, dense: Any = None) -> None:
        super().__init__("The generation was cancelled.")
        self.dense = dense
