"""A request for one video: prompt, size, seed and input files. It needs no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svg2.errors import RequestError

MAX_PROMPT_CHARS = 2_000
MAX_STEPS = 200
MAX_GUIDANCE = 50
MIN_SIDE_PX = 16
MAX_SIDE_PX = 4096
DTYPES = ("auto", "fp32", "bf16", "fp16")
MODEL_DEFAULTS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
"""Fields of a request that take the model's default where they are None."""


@dataclass(frozen=True)
class Request:
    """One video to generate. The fields of `MODEL_DEFAULTS` may be None.

    Attributes:
        model: an id of `svg2.models.catalogue.MODELS`, a hub id, or the path of a folder with a
            pipeline.
        seed: seed of the starting noise.
        height, width: in pixels.
        dtype: `auto`, `fp32`, `bf16` or `fp16`; see `svg2.models.loading.resolve_dtype`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        image, video: path of a file to start from, for models that take one.
        guidance_scale_2: guidance scale of the second expert, in models with two.
        true_cfg_scale: weight of the negative prompt in models with embedded guidance. At 1 the
            negative prompt has no effect and each step takes one pass.

    Raises:
        RequestError: a value of the wrong type or out of the range of every model.
    """

    prompt: str
    negative_prompt: str = ""
    model: str = "builtin"
    seed: int = 0
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    dtype: str = "auto"
    device: str = "auto"
    image: str | None = None
    video: str | None = None
    guidance_scale_2: float | None = None
    true_cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise RequestError("The prompt is empty: say what the video should show.")
        if not isinstance(self.negative_prompt, str):
            raise RequestError("The negative prompt must be text.")
        for name in ("prompt", "negative_prompt"):
            length = len(getattr(self, name))
            if not _is_unicode(getattr(self, name)):
                raise RequestError(f"The {name.replace('_', ' ')} is not valid text.")
            if length > MAX_PROMPT_CHARS:
                raise RequestError(
                    f"The {name.replace('_', ' ')} has {length:,} characters: at most "
                    f"{MAX_PROMPT_CHARS:,} are allowed."
                )
        self._integer("seed", 0, 2**63 - 1)
        self._integer("height", MIN_SIDE_PX, MAX_SIDE_PX, optional=True)
        self._integer("width", MIN_SIDE_PX, MAX_SIDE_PX, optional=True)
        self._integer("num_frames", 1, 1000, optional=True)
        self._integer("num_inference_steps", 1, MAX_STEPS, optional=True)
        self._guidance("guidance_scale", optional=True)
        self._guidance("guidance_scale_2", optional=True)
        self._guidance("true_cfg_scale")
        for name in ("image", "video"):
            path = getattr(self, name)
            if path is not None and not (isinstance(path, str) and path and _is_unicode(path)):
                raise RequestError(f"{name} must be the path of a file, not {str(path)[:100]!r}.")
        if self.dtype not in DTYPES:
            raise RequestError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        kind, _, number = str(self.device).partition(":")
        known = self.device in ("auto", "cpu", "cuda")
        if not known and not (kind == "cuda" and number.isascii() and number.isdigit()):
            raise RequestError(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}.")

    def _guidance(self, name: str, *, optional: bool = False) -> None:
        value: Any = getattr(self, name)
        if optional and value is None:
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= MAX_GUIDANCE:
            raise RequestError(f"{name} must be a number from 0 to {MAX_GUIDANCE}, not {value!r}.")
        object.__setattr__(self, name, float(value))

    def _integer(self, name: str, low: int, high: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        number = _whole(value)
        if number is None or not low <= number <= high:
            raise RequestError(
                f"{name} must be a whole number from {low} to {high}, not {value!r}."
            )
        object.__setattr__(self, name, number)


def _whole(value: object) -> int | None:
    """The value as an int, also for a float like 17.0 from a page; None if it is not whole."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):  # also one too large for a float
        return value
    return int(value) if math.isfinite(value) and value == int(value) else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates: undecodable bytes of a command line
        return False
    return "\0" not in text


@dataclass(frozen=True)
class ResolvedRequest(Request):
    """A request in which the model's defaults are filled in."""

    height: int = 0
    width: int = 0
    num_frames: int = 0
    num_inference_steps: int = 0
    guidance_scale: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON values by name. Of file paths only the file name is kept."""
        values = dataclasses.asdict(self)
        for name in ("image", "video"):
            if values[name] is not None:
                values[name] = Path(values[name]).name
        return values
