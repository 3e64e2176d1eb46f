"""Comparisons of many prompts from a file, shared among processes."""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from svg2.errors import RequestError
from svg2.git_lfs import ADVICE, is_pointer
from svg2.models.request import Request
from svg2.runs.call import load_for
from svg2.runs.compare import Comparison, compare, save_comparison
from svg2.runs.distributed import Processes
from svg2.runs.progress import Watch
from svg2.runs.run import Run
from svg2.trace.atomic import json_bytes, write_atomic
from svg2.trace.records import RecordingPolicy

MAX_PROMPTS = 10_000
_BLANKS = re.compile("[\\s\ufeff]+")


def read_prompts(path: str) -> list[str]:
    """Read the prompts of a text file, one per line. Empty lines and lines with # are skipped.

    The text is UTF-8, or UTF-16 with its byte order mark. Only a line feed or a carriage return
    ends a line: other separators of Unicode are blanks of a prompt.

    Raises:
        RequestError: a file that can't be read; no prompt or too many; or an invalid prompt.
    """
    try:
        data = Path(path).read_bytes()
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_utf16 else "utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(
            f"The prompts in {path!r} can't be read as text: save them as UTF-8."
        ) from error
    if is_pointer(data):
        raise RequestError(f"The file {path!r} {ADVICE}.")
    # Files put together have marks in the middle.
    lines = [_BLANKS.sub(" ", line).strip() for line in re.split(r"[\r\n]", text)]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise RequestError(
            f"{path!r} must hold from 1 to {MAX_PROMPTS:,} prompts, not {len(prompts):,}."
        )
    for prompt in prompts:
        Request(prompt)
    return prompts


class Layout(Protocol):
    """Where the comparisons of a batch are kept, and what of each.

    Attributes:
        runs: one per comparison.
        policy: what their traces record.
        summary: a file with all results, there only when all are.
        counts: how many of what there are, for the report.
    """

    runs: Sequence[Run]
    policy: RecordingPolicy | None
    summary: Path
    counts: dict[str, int]

    def result(self, number: int) -> dict[str, Any] | None:
        """What the summary says of a comparison; None where that has yet to be made."""

    def save(self, number: int, comparison: Comparison) -> None:
        """Keep a comparison."""

    def summarize(self, results: Sequence[dict[str, Any]]) -> None:
        """Write the summary."""


class PromptFolders:
    """One folder per prompt with all files of a comparison, and results.json.

    The files of prompt i are in `folder/i`. An earlier result is kept if its request.json has the
    same request (except the device), method and settings.

    Args:
        run: the request and settings of all prompts; its own prompt is not used.
    """

    policy: RecordingPolicy | None = None

    def __init__(self, folder: Path, prompts: Sequence[str], run: Run) -> None:
        self.runs = [run.with_prompt(prompt) for prompt in prompts]
        self.summary = folder / "results.json"
        self.counts = {"prompts": len(prompts)}
        self._folders = [folder / f"{i:04d}" for i in range(len(prompts))]
        self._identities = [identity_of(prompt_run) for prompt_run in self.runs]

    def result(self, number: int) -> dict[str, Any] | None:
        """The content of result.json, if it is of the same run; else None."""
        folder = self._folders[number]
        try:
            is_same = (folder / "request.json").read_bytes() == self._identities[number]
        except OSError:
            return None
        return json_of(folder / "result.json") if is_same else None

    def save(self, number: int, comparison: Comparison) -> None:
        """Write the files of a comparison. result.json is the last: with it, all are complete."""
        folder = self._folders[number]
        folder.mkdir(exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        write_atomic(folder / "request.json", self._identities[number])
        save_comparison(comparison, folder)

    def summarize(self, results: Sequence[dict[str, Any]]) -> None:
        """Write results.json."""
        write_atomic(self.summary, json_bytes({"results": list(results)}))


def compare_all(
    layout: Layout, share: Processes, watch: Watch | None = None, in_turns: bool = True
) -> dict[str, Any]:
    """Make those comparisons of this process that have no result yet.

    The process that finishes the last one writes the summary.

    Args:
        share: this process among all. Process r of n makes the comparisons r, r + n, r + 2n, ...
        in_turns: as in `svg2.runs.compare.compare`.

    Returns:
        The layout's counts, numbers `made` now, number `left` without a result, and the `rank`.
    Raises:
        As `svg2.runs.compare.compare`.
    """
    watch = watch or Watch()
    numbers = range(len(layout.runs))
    if any(layout.result(number) is None for number in numbers):
        layout.summary.unlink(missing_ok=True)
    pipe = None
    made = []
    for number in numbers[share.rank :: share.world]:
        if layout.result(number) is not None:
            continue
        run = layout.runs[number]
        pipe = load_for(run, watch) if pipe is None else pipe
        made_now = compare(run, pipe, watch=watch, policy=layout.policy, in_turns=in_turns)
        layout.save(number, made_now)
        made.append(number)
    found = [layout.result(number) for number in numbers]
    results = [result for result in found if result is not None]
    left = len(found) - len(results)
    if not left:
        layout.summarize(results)
    return {**layout.counts, "made": made, "left": left, "rank": share.rank}


def identity_of(run: Run) -> bytes:
    """Everything that a result depends on except the machine, as JSON."""
    fields = dataclasses.asdict(run.request)
    del fields["device"]
    return json_bytes({"request": fields, "config": run.config.to_dict()})


def json_of(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
