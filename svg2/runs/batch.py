"""A file of prompts, shared out over processes: a folder each, and what is there is not redone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg2.errors import RequestError
from svg2.models.request import Request
from svg2.runs.call import load_for
from svg2.runs.compare import compare, save_comparison
from svg2.runs.distributed import Processes
from svg2.runs.progress import Watch
from svg2.runs.run import Run
from svg2.trace.atomic import json_bytes, write_atomic

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
    run: Run,
    folder: Path,
    share: Processes,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Compare every prompt that falls to this process and is not done yet.

    Prompt i goes into `folder/i`; results.json holds all results as soon as the last is there,
    whichever process made it. What an earlier run left counts as done where prompt, request
    (the device aside), method and settings are the same, which request.json beside it says.

    Raises: as `svg2.runs.dense_sparse.compare`.
    """
    places = [folder / f"{i:04d}" for i in range(len(prompts))]
    runs = [run.with_prompt(prompt) for prompt in prompts]
    asked = [_asked(one) for one in runs]
    watch = watch or Watch()

    def results() -> list[dict[str, Any] | None]:
        return [_result(place, wish) for place, wish in zip(places, asked, strict=True)]

    if None in results():
        (folder / "results.json").unlink(missing_ok=True)
    pipe = None
    made = []
    for i in range(share.rank, len(prompts), share.world):
        place = places[i]
        if _result(place, asked[i]) is not None:
            continue
        pipe = load_for(run, watch) if pipe is None else pipe
        comparison = compare(runs[i], pipe, watch=watch)
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


def _asked(run: Run) -> bytes:
    """All that a result depends on but the machine; files by their whole paths."""
    fields = dataclasses.asdict(run.request)
    del fields["device"]
    return json_bytes({"request": fields, "config": run.config.to_dict()})


def _result(place: Path, asked: bytes) -> dict[str, Any] | None:
    """The result kept at a place, if it is of what is asked."""
    try:
        if (place / "request.json").read_bytes() != asked:
            return None
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None
