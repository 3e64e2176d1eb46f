"""Comparisons of many prompts from a file: one folder per prompt, shared among processes."""

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
    """Read the prompts of a text file, one per line. Empty lines and lines with # are skipped.

    Raises:
        RequestError: a file that can't be read; no prompt or too many; or an invalid prompt.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"The prompts in {path!r} can't be read as text.") from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise RequestError(
            f"{path!r} must hold from 1 to {MAX_PROMPTS:,} prompts, not {len(prompts):,}."
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
    """Compare the prompts of this process that have no result yet.

    The files of prompt i are in `folder/i`. The process that finishes the last prompt writes
    results.json with all results. An earlier result is kept if its request.json has the same
    request (except the device), method and settings.

    Args:
        run: the request and settings of all prompts; its own prompt is not used.
        share: this process among all. Process r of n compares the prompts r, r + n, r + 2n, ...

    Returns:
        Number of `prompts`, indices `made` now, number `left` without a result, and the `rank`.
    Raises:
        As `svg2.runs.compare.compare`.
    """
    folders = [folder / f"{i:04d}" for i in range(len(prompts))]
    runs = [run.with_prompt(prompt) for prompt in prompts]
    identities = [_identity(prompt_run) for prompt_run in runs]
    watch = watch or Watch()

    def results() -> list[dict[str, Any] | None]:
        return [_result(*pair) for pair in zip(folders, identities, strict=True)]

    if None in results():
        (folder / "results.json").unlink(missing_ok=True)
    pipe = None
    made = []
    for i in range(share.rank, len(prompts), share.world):
        if _result(folders[i], identities[i]) is not None:
            continue
        pipe = load_for(run, watch) if pipe is None else pipe
        comparison = compare(runs[i], pipe, watch=watch)
        folders[i].mkdir(exist_ok=True)
        # result.json is written last: where it exists, all files are complete
        (folders[i] / "result.json").unlink(missing_ok=True)
        write_atomic(folders[i] / "request.json", identities[i])
        save_comparison(comparison, folders[i])
        made.append(i)
    found = results()
    left = found.count(None)
    if not left:
        write_atomic(folder / "results.json", json_bytes({"results": found}))
    return {"prompts": len(prompts), "made": made, "left": left, "rank": share.rank}


def _identity(run: Run) -> bytes:
    """Everything that a result depends on except the machine, as JSON."""
    fields = dataclasses.asdict(run.request)
    del fields["device"]
    return json_bytes({"request": fields, "config": run.config.to_dict()})


def _result(folder: Path, identity: bytes) -> dict[str, Any] | None:
    """The result in a folder, if it is of the same run; else None."""
    try:
        if (folder / "request.json").read_bytes() != identity:
            return None
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None
