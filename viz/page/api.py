"""What the page offers to programs: named endpoints with typed inputs, also as MCP tools."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from svg2.errors import Cancelled, RequestError
from svg2.runs.compare import Comparison, add_run
from svg2.runs.dense_sparse import DenseRun
from svg2.runs.jobs import Studio
from svg2.runs.progress import Progress
from svg2.runs.run import Run
from svg2.trace.records import Trace
from svg2.trace.scratch import is_full
from viz.page.handlers import BAD_INPUT, RELEASE_POLICY
from viz.page.open_traces import OpenTrace, OpenTraces
from viz.page.runner import Runner
from viz.page.words import DISK_FULL, FAILED, plain

log = logging.getLogger(__name__)

KEPT = 8  # traces that programs made
MAX_SWEEP_RUNS = 40
Said = dict[str, Any]


class Api:
    """The endpoints of one served page. The run endpoints yield progress and then the result."""

    def __init__(self, studio: Studio, traces: OpenTraces, runner: Runner) -> None:
        self._studio = studio
        self._traces = traces
        self._runner = runner
        self._kept: deque[OpenTrace] = deque(maxlen=KEPT)  # no visit holds them

    def register(self) -> None:
        """Add the endpoints to the page that is laid out now."""
        for endpoint in (self.compare, self.sweep, self.models, self.trace):
            gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)

    def compare(
        self,
        prompt: str,
        model: str | None = None,
        method: str | None = None,
        top_p: float | None = None,
        num_q_clusters: int | None = None,
        num_k_clusters: int | None = None,
        seed: int = 0,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        preset: str = "published",
    ) -> Generator[dict]:
        """Generate a video with dense and with sparse attention, and compare the two.

        What is left out takes the model's default.

        Args:
            prompt: what the video shows.
            model: an id that `models` lists.
            method: which pairs of clusters are computed; `trace` of a result names its method.
            top_p: the budget of the method, above 0 and at most 1.
            num_q_clusters: clusters of queries per head.
            num_k_clusters: clusters of keys per head.
            seed: seed of the starting noise.
            width: in pixels.
            height: in pixels.
            num_frames: frames of the video.
            num_inference_steps: denoising steps.
            guidance_scale: weight of the prompt.
            negative_prompt: what the video should not show.
            preset: published, fast, faithful or draft.

        Returns:
            Progress, then `trace` (a key), `files` (addresses to download from) and `result`, with
            the fields of result.json.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        with _refused_in_a_sentence(prompt, negative_prompt):
            run = self._studio.run(given)
            self._studio.admit(run)
            made = yield from self._made(run)
            opened = self._opened(made.trace)
        yield {"result": made.result, **_where(opened)}

    def sweep(
        self,
        prompt: str,
        methods: list[str],
        top_ps: list[float],
        model: str | None = None,
        seed: int = 0,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Generator[dict]:
        """Compare several methods and budgets with one dense run of the same video.

        Args:
            prompt: what the video shows.
            methods: names of methods.
            top_ps: budgets, each above 0 and at most 1.
            model: an id that `models` lists.
            seed: seed of the starting noise.
            width: in pixels.
            height: in pixels.
            num_frames: frames of the video.
            num_inference_steps: denoising steps.
            guidance_scale: weight of the prompt.

        Returns:
            Progress, then `trace` (a key), `files` (addresses to download from) and `points`, one
            per method and budget, with the fields of result.json.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        del given["methods"], given["top_ps"]
        with _refused_in_a_sentence(prompt):
            _check_lists(methods, top_ps)
            runs = [
                self._studio.run({**given, "method": method, "top_p": top_p})
                for method in dict.fromkeys(methods)
                for top_p in dict.fromkeys(top_ps)
            ]
            self._studio.within_limits(runs[0], num_sparse=len(runs))
            self._studio.admit(runs[0])
            dense, points = None, []
            trace: Trace | None = None
            for run in runs:
                made = yield from self._made(run, dense, len(points), len(runs))
                points.append(made.result)
                dense = made.dense
                trace = (
                    made.trace
                    if trace is None
                    else add_run(trace, dense, made.sparse, made.result)
                )
            assert trace is not None
            opened = self._opened(trace)
        yield {"points": points, **_where(opened)}

    def models(self) -> list[dict]:
        """The models of this server, and what keeps each from running.

        Returns:
            Per model its `model` id, `title`, whether it is `available`, and `why` not.
        """
        found = []
        for model in self._studio.models:
            try:
                title, why = self._studio.spec_of(model).title, self._studio.why_not(model)
            except BAD_INPUT as error:
                title, why = model, plain(error)
            found.append({"model": model, "title": title, "available": why is None, "why": why})
        return found

    def trace(self, key: str) -> dict:
        """What an open trace holds.

        Args:
            key: of a trace: as `compare` and `sweep` give it, or the name of a ready-made one.

        Returns:
            `request`, `runs` (method, config and result of each) and `files` to download.
        """
        opened = self._traces.get(key) if isinstance(key, str) else None
        if opened is None:
            said = f"There is no open trace {str(key)[:80]!r} here."
            raise gr.Error(said, print_exception=False)
        runs = [
            {"method": run.method, "config": run.config, "result": run.result}
            for run in opened.trace.runs
        ]
        return {"request": opened.trace.request, "runs": runs, **_where(opened)}

    def _opened(self, trace: Trace) -> OpenTrace:
        """Open what was made, for as long as few others are made after it."""
        opened = self._traces.put(trace, "service")
        self._kept.append(opened)
        return opened

    def _made(
        self, run: Run, dense: DenseRun | None = None, done: int = 0, count: int = 1
    ) -> Generator[Said, None, Comparison]:
        """Execute a run with its progress; a caller who goes away cancels it."""
        execution = self._runner.start(run, dense, RELEASE_POLICY if count > 1 else None)
        try:
            for progress in execution:
                yield _told(progress) | {"runs_done": done, "num_runs": count}
            return execution.result()
        finally:
            execution.cancel()


def _check_lists(methods: list[str], top_ps: list[float]) -> None:
    is_sound = isinstance(methods, list) and isinstance(top_ps, list)
    if not is_sound or not 1 <= len(methods) * len(top_ps) <= MAX_SWEEP_RUNS:
        raise RequestError(
            f"methods and top_ps must be lists that give from 1 to {MAX_SWEEP_RUNS} runs."
        )
    for name, values, kinds in (("methods", methods, str), ("top_ps", top_ps, int | float)):
        for value in values:
            if not isinstance(value, kinds):
                raise RequestError(f"{name} holds {str(value)[:80]!r}, which it can't.")


def _told(progress: Progress) -> Said:
    names = ("stage", "run", "step", "num_steps", "ahead", "eta_seconds")
    return {name: getattr(progress, name) for name in names}


def _where(opened: OpenTrace) -> Said:
    names = ("trace.npz", "export.zip")
    return {"trace": opened.key, "files": {name: f"lab/{opened.key}/{name}" for name in names}}


@contextmanager
def _refused_in_a_sentence(*hidden: str) -> Iterator[None]:
    """What goes wrong is one sentence for the caller; `hidden` stays out of the log."""
    try:
        yield
    except BAD_INPUT as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Cancelled as error:
        raise gr.Error("The run was cancelled.", print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        log.exception("A run failed.", extra={"hidden": hidden})
        sentence = DISK_FULL if is_full(error) else FAILED
        raise gr.Error(sentence, print_exception=False) from error
