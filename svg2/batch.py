"""A file of prompts, shared out over processes: a folder each, and what is there is not redone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg2.config import SVG2Config
from svg2.distributed import Processes
from svg2.generate import OnProgress, ShouldCancel, compare, save_comparison
from svg2.media import json_bytes, write_atomic
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
    whichever process made it. What an earlier run left counts as done where prompt, request
    (the device aside), method and settings are the same, which request.json beside it says.

    Raises: as `svg2.generate.compare`.
    """
    places = [folder / f"{i:04d}" for i in range(len(prompts))]
    requests = [dataclasses.replace(request, prompt=prompt) for prompt in prompts]
    asked = [_asked(one, method, config) for one in requests]

    def results() -> list[dict[str, Any] | None]:
        return [_result(place, wish) for place, wish in zip(places, asked, strict=True)]

    if None in results():
        (folder / "results.json").unlink(missing_ok=True)
    pipe = None
    made = []
    for i in range(share.rank, len(prompts), share.world):
        wanted, place = requests[i], places[i]
        if _result(place, asked[i]) is not None:
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
        write_atomic(place / "request.json", asked[i])
        save_comparison(comparison, place)
        made.append(i)
    found = results()
    left = found.count(None)
    if not left:
        write_atomic(folder / "results.json", json_bytes({"results": found}))
    return {"prompts": len(prompts), "made": made, "left": left, "rank": share.rank}


def _asked(request: ResolvedRequest, method: str, config: SVG2Config) -> bytes:
    """All that a result depends on but the machine; files by their whole paths."""
    fields = dataclasses.asdict(request)
    del fields["device"]
    return json_bytes({"request": fields, "method": method, "config": config.to_dict()})


def _result(place: Path, asked: bytes) -> dict[str, Any] | None:
    """The result kept at a place, if it is of what is asked."""
    try:
        if (place / "request.json").read_bytes() != asked:
            return None
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None
