"""The header of a trace file: JSON, checked before anything is made of it."""

import json
import math
from typing import Any

from svg2.errors import TraceError
from svg2.trace.records import MAX_TOKENS, VERSION

_MAX_DEPTH = 32
_MAX_VALUES = 100_000
_MAX_COUNT = 1 << 24
_MAX_SIDE = 512  # rows and columns of tokens


def read_header(raw: bytes) -> dict[str, Any]:
    """The header out of the bytes of its JSON.

    Raises:
        TraceError: no JSON, or a field that is missing, of the wrong type, or out of range.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        header = json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise TraceError("The file is no trace: its header is not JSON.") from error
    _check_values(header)
    require(isinstance(header, dict), "its header is no object")
    if header.get("version") != VERSION:
        raise TraceError(
            f"The trace has version {str(header.get('version'))[:20]!r}, not {VERSION}."
        )
    for name in ("request", "policy", "provenance", "dense_result"):
        require(isinstance(header.get(name), dict), f"{name} is no object")
    for name in ("n_tokens", "n_text", "num_records"):
        require(_is_count(header.get(name), _MAX_COUNT), f"{name} is no count")
    _check_grid(header.get("grid"), header["n_tokens"])
    runs = header.get("runs")
    require(isinstance(runs, list), "runs is no list")
    for run in runs:
        sound = isinstance(run, dict) and isinstance(run.get("method"), str)
        sound = (
            sound and isinstance(run.get("config"), dict) and isinstance(run.get("result"), dict)
        )
        require(sound, "a run lacks its method, config or result")
    return header


def require(condition: Any, problem: str) -> None:
    """Raises: TraceError: the condition does not hold."""
    if not condition:
        raise TraceError(f"The trace is not sound: {problem}.")


def _check_values(header: Any) -> None:
    """What JSON may hold, but a page or an export fails on later."""
    level, depth, count = [header], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        require(depth <= _MAX_DEPTH, f"its header is nested deeper than {_MAX_DEPTH} levels")
        require(count <= _MAX_VALUES, f"its header holds more than {_MAX_VALUES} values")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                require(all(map(_is_text, value)), "a name in its header is no valid Unicode")
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                require(_is_text(value), "a text in its header is no valid Unicode")
            elif isinstance(value, int | float):
                require(_is_float(value), "a number in its header is too large for 64 bits")
        level = inner


def _check_grid(grid: Any, n_tokens: int) -> None:
    sides = isinstance(grid, list) and len(grid) == 3 and all(_is_count(g, 1 << 16) for g in grid)
    require(sides and min(grid) > 0, "grid is not three sizes")
    require(math.prod(grid) == n_tokens, "n_tokens is not the size of the grid")
    if n_tokens > MAX_TOKENS or max(grid[1:]) > _MAX_SIDE:
        raise TraceError(
            f"The trace has a grid of {grid[0]} by {grid[1]} by {grid[2]} tokens; at most "
            f"{MAX_TOKENS} are shown, in frames of at most {_MAX_SIDE} by {_MAX_SIDE}."
        )


def _is_text(value: str) -> bool:
    try:
        value.encode()  # half a surrogate pair is no character
    except UnicodeEncodeError:
        return False
    return True


def _is_float(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit
