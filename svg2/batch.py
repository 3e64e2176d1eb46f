"""A file of prompts, shared out over processes: a folder each, and what is there is not redone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg2.config import SVG2Config
from svg2.distributed import Processes
from svg2.generate import OnProgress, ShouldCancel, compare, json_bytes, save_comparison
from svg2.media import write_atomic
from svg2.models import load_pipeline
from svg2.request import Request, RequestError, ResolvedRequest

MAX_PROMPTS = 10_000


def read_prompts(path: str) -> list[str]:
    """The lines of a text file, without empty ones and those that begin with #.

    Raises:
        RequestError: it can't be read, holds no prompt or too many, or one that can't work.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"The prompts in {path!r} can't be read as text.") from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise RequestError(
            f"{path!r} holds {len(prompts):,} prompts: from 1 to {MAX_PROMPTS:,} would do."
        )
    for prompt in prompts:
        Request(prompt)
    return prompts


def compare_all(
    prompts: Sequence[str],
    request: ResolvedRequest,
    method: str,
    config: SVG2Config,
    folder: Path,
    share: Processes,
    *,
    on_progress: OnProgress | None = None,
    should_cancel: ShouldCancel | None = None,
) -> dict[str, Any]:
    """Compare every prompt that falls to this process and is not done yet.

    Prompt i goes into `folder/i`; results.json holds all results as soon as the last is there,
    whichever process made it. What an earlier run left counts as done where prompt, request,
    method and settings are the same.

    Raises: as `svg2.generate.compare`.
    """
    pipe = None
    made = []
    for i in range(share.rank, len(prompts), share.world):
        wanted = dataclasses.replace(request, prompt=prompts[i])
        place = folder / f"{i:04d}"
        if _is_done(place, wanted, method, config):
            continue
        pipe = pipe or load_pipeline(request.model, request.dtype, request.device)
        comparison = compare(
            *(wanted, method, config),
            pipe=pipe,
            on_progress=on_progress,
            should_cancel=should_cancel,
        )
        place.mkdir(exist_ok=True)
        (place / "result.json").unlink(missing_ok=True)  # it is written last, and says all is here
        save_comparison(comparison, place)
        made.append(i)
    results = [
        _result(folder / f"{i:04d}", dataclasses.replace(request, prompt=prompt), method, config)
        for i, prompt in enumerate(prompts)
    ]
    if all(result is not None for result in results):
        write_atomic(folder / "results.json", json_bytes({"results": results}))
    left = sum(result is None for result in results)
    return {"prompts": len(prompts), "made": made, "left": left, "rank": share.rank}


def _is_done(place: Path, request: ResolvedRequest, method: str, config: SVG2Config) -> bool:
    return _result(place, request, method, config) is not None


def _result(
    place: Path, request: ResolvedRequest, method: str, config: SVG2Config
) -> dict[str, Any] | None:
    """The result kept at a place, if it is of this request."""
    try:
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {
        name: value for name, value in request.to_dict().items() if name not in ("dtype", "device")
    } | {"method": method, "config": config.to_dict()}
    is_same = isinstance(result, dict) and all(result.get(k) == v for k, v in wanted.items())
    return result if is_same else None
