"""Clips of a file of prompts, named and laid out as the benchmark VBench takes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg2.errors import RequestError
from svg2.runs.batch import identity_of, json_of
from svg2.runs.compare import Comparison
from svg2.runs.run import Run
from svg2.trace.atomic import json_bytes, write_atomic
from svg2.trace.records import RecordingPolicy

VBENCH_SAMPLES = 5  # VBench looks for the clips 0 to 4 of each prompt
MAX_SAMPLES = 100
SIDES = ("dense", "svg2")
_MAX_NAME_BYTES = 255
_RECORDS = "records"


class ClipSet:
    """Several clips of each prompt, dense and sparse, as `svg2.runs.batch.Layout` asks for.

    - `dense/` and `svg2/` (of any method) hold `{prompt}-{index}.mp4` and nothing else: VBench
      takes the suffix of the first file that it finds for that of all. Clip i has the seed of the
      run plus i.
    - `records/` has a file per pair of clips: what they were made of, and their numbers. A pair
      without one is made again.
    - manifest.json has all of these numbers, and prompts.json the prompt of each file name, as
      VBench's `--prompt_file`. Both are written when all clips are there.

    A prompt that is no file name (one with a slash, or too long) gives its start and a hash in
    its place. VBench has no rule for these: its own prompts are file names, and it reads others
    from `--prompt_file`.

    Args:
        samples: clips of each prompt.

    Raises:
        RequestError: too few or too many samples.
    """

    policy = RecordingPolicy(steps=())
    """No trace is kept, so nothing is recorded."""

    def __init__(
        self, folder: Path, prompts: Sequence[str], run: Run, samples: int = VBENCH_SAMPLES
    ) -> None:
        if not 1 <= samples <= MAX_SAMPLES:
            raise RequestError(f"samples must be from 1 to {MAX_SAMPLES}, not {samples}.")
        prompts = list(dict.fromkeys(prompts))  # VBench's own list has two prompts twice
        clips = [(prompt, index) for prompt in prompts for index in range(samples)]
        self.folder = folder
        self.summary = folder / "manifest.json"
        self.counts = {"prompts": len(prompts), "samples": samples}
        self.runs = [run.with_prompt(prompt, run.request.seed + i) for prompt, i in clips]
        self._indices = [index for _, index in clips]
        self._names = [clip_name(prompt, index) for prompt, index in clips]
        self._identities = [json.loads(identity_of(run)) for run in self.runs]

    def result(self, number: int) -> dict[str, Any] | None:
        """The manifest's entry of a pair of clips; None where it has yet to be made."""
        record = json_of(self._record(number))
        if record is None or record.get("run") != self._identities[number]:
            return None
        if not all((self.folder / side / self._names[number]).is_file() for side in SIDES):
            return None
        return record.get("clip")

    def save(self, number: int, comparison: Comparison) -> None:
        """Write a pair of clips, and then their record."""
        for name in (*SIDES, _RECORDS):
            (self.folder / name).mkdir(exist_ok=True)
        record, name = self._record(number), self._names[number]
        record.unlink(missing_ok=True)
        trace = comparison.trace
        for side, data in zip(SIDES, (trace.dense_mp4, trace.runs[0].mp4), strict=True):
            write_atomic(self.folder / side / name, data)
        files = {side: f"{side}/{name}" for side in SIDES}
        clip = {"index": self._indices[number], "files": files} | comparison.result
        write_atomic(record, json_bytes({"run": self._identities[number], "clip": clip}))

    def summarize(self, results: Sequence[dict[str, Any]]) -> None:
        """Write prompts.json and the manifest."""
        prompts = {n: run.request.prompt for n, run in zip(self._names, self.runs, strict=True)}
        write_atomic(self.folder / "prompts.json", json_bytes(prompts))
        write_atomic(self.summary, json_bytes({"layout": "vbench", "clips": list(results)}))

    def _record(self, number: int) -> Path:
        """Named by a hash: `.json` is longer than `.mp4`, and names may be as long as can be."""
        return self.folder / _RECORDS / f"{_hash(self._names[number])}.json"


def clip_name(prompt: str, index: int) -> str:
    """The file name that VBench looks for, or the nearest one that a file can have."""
    end = f"-{index}.mp4"
    room = _MAX_NAME_BYTES - len(end)
    if "/" in prompt or len(prompt.encode()) > room:
        end = f"_{_hash(prompt)}{end}"
        start = prompt.replace("/", "_").encode()[: _MAX_NAME_BYTES - len(end)]
        return start.decode(errors="ignore") + end
    return prompt + end


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
