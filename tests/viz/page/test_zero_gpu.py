"""Runs on a ZeroGPU Space, with a stand-in that forks, pickles and forbids CUDA outside a call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gradio.context import LocalContext

from kernels import impl
from svg2.errors import Cancelled, GpuUnavailable, RequestError, UsageError
from svg2.runs.jobs import Studio
from svg2.runs.run import Run
from tests.viz.page.stand_in_zero_gpu import StandIn, without_cuda
from viz.page import zero_gpu
from viz.page.handlers import Page
from viz.page.open_traces import OpenTraces
from viz.page.visit import Visit
from viz.page.zero_gpu import KEPT, TwoCalls, ZeroGpuRunner


@pytest.fixture
def space(studio: Studio, monkeypatch) -> Iterator[Studio]:
    """A studio whose model was loaded as on a Space."""
    alone = Studio(studio.model)
    monkeypatch.setattr(zero_gpu, "_loaded", None)
    zero_gpu.prepare(alone)
    with without_cuda():
        yield alone


@pytest.fixture
def scheduler() -> StandIn:
    return StandIn()


@pytest.fixture
def runner(space: Studio, scheduler: StandIn) -> ZeroGpuRunner:
    return ZeroGpuRunner(scheduler.GPU(zero_gpu.generate_side, duration=zero_gpu.seconds_for))


@pytest.fixture
def run(space: Studio) -> Run:
    return space.run({"prompt": "a red ball", "num_inference_steps": 4})


def read(execution: TwoCalls) -> list[tuple[str, str, int]]:
    return [(p.run, p.stage, p.step) for p in execution]


def test_each_side_is_a_call_with_progress_and_the_page_asks_for_no_cuda(
    runner: ZeroGpuRunner, scheduler: StandIn, run: Run, monkeypatch
) -> None:
    monkeypatch.setattr(impl, "_faults_here", [])  # what kernels run is found out in the call
    execution = runner.start(run)
    seen = read(execution)
    made = execution.result()
    for name in ("dense", run.method.name):
        assert (name, "gpu", 0) in seen
        assert (name, "denoise", 4) in seen
    assert seen.index(("dense", "denoise", 4)) < seen.index((run.method.name, "gpu", 0))
    assert made.result["order"] == "dense first"
    assert made.result["psnr_db"] is None or made.result["psnr_db"] > 10
    assert len(made.trace.runs) == 1
    assert len(scheduler.durations) == 2
    assert impl._faults_here == []


def test_the_sparse_side_alone_takes_one_call(
    runner: ZeroGpuRunner, scheduler: StandIn, run: Run
) -> None:
    first = runner.start(run)
    read(first)
    dense = first.result().dense
    again = runner.start(run.with_settings(top_p=0.5), dense)
    assert {name for name, *_ in read(again)} == {run.method.name}
    assert again.result().result["order"] == "dense earlier"
    assert len(scheduler.durations) == 3


@pytest.mark.parametrize("calls_left", [0, 1])
def test_an_exceeded_quota_is_a_sentence_and_keeps_what_is_done(
    runner: ZeroGpuRunner, scheduler: StandIn, run: Run, calls_left: int
) -> None:
    scheduler.quota_seconds = calls_left * zero_gpu.seconds_for(run, False) + 1
    execution = runner.start(run)
    read(execution)
    with pytest.raises(GpuUnavailable, match="gave no GPU: You have exceeded") as refused:
        execution.result()
    assert (refused.value.dense is not None) == bool(calls_left)
    assert str(refused.value).endswith(KEPT) == bool(calls_left)
    if calls_left:  # the kept side serves the next run of the same video
        scheduler.quota_seconds = 10_000
        rest = runner.start(run, refused.value.dense)
        read(rest)
        assert rest.result().dense is refused.value.dense


@pytest.mark.parametrize("aborts_at", [0, 3])
def test_a_gpu_that_is_taken_away_is_a_sentence(
    runner: ZeroGpuRunner, scheduler: StandIn, run: Run, aborts_at: int
) -> None:
    scheduler.aborts_at = aborts_at
    execution = runner.start(run)
    read(execution)
    with pytest.raises(GpuUnavailable, match="took the GPU away"):
        execution.result()


def raises(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (RequestError("The image is gone."), RequestError, "The image is gone."),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), RequestError, "GPU's memory"),
        (ZeroDivisionError("1/0"), GpuUnavailable, "failed on the Space's GPU"),
    ],
)
def test_what_fails_in_the_call_is_a_sentence(
    runner: ZeroGpuRunner, run: Run, monkeypatch, error, kind, says
) -> None:
    monkeypatch.setattr(zero_gpu, "generate_dense", raises(error))
    execution = runner.start(run)
    read(execution)
    with pytest.raises(kind, match=says):
        execution.result()


@pytest.mark.parametrize("error", [ConnectionError("refused"), RuntimeError("Unexpected end")])
def test_a_scheduler_that_cannot_be_reached_is_a_sentence(run: Run, error: Exception) -> None:
    def call(*_: Any) -> Any:
        raise error
        yield

    execution = ZeroGpuRunner(call).start(run)
    read(execution)
    with pytest.raises(GpuUnavailable, match=f"can't be used now .{type(error).__name__}"):
        execution.result()


def test_a_cancel_ends_the_call_after_its_step_and_keeps_the_dense_side(
    runner: ZeroGpuRunner, scheduler: StandIn, run: Run
) -> None:
    execution = runner.start(run)
    for progress in execution:
        if progress.run == run.method.name and progress.step == 1:
            execution.cancel()
    with pytest.raises(Cancelled) as stopped:
        execution.result()
    assert stopped.value.dense is not None
    assert [process.exitcode for process in scheduler.processes] == [0, 0]


def test_a_reader_who_leaves_ends_the_call(
    runner: ZeroGpuRunner, scheduler: StandIn, space: Studio
) -> None:
    long = space.run({"prompt": "a red ball", "num_inference_steps": 60})
    reading = iter(runner.start(long))
    while next(reading).step < 1:
        pass
    reading.close()
    assert [process.exitcode for process in scheduler.processes] == [0]


def test_longer_and_larger_videos_ask_for_more_and_a_measured_side_for_its_own_time(
    space: Studio, run: Run
) -> None:
    ask = zero_gpu.seconds_for
    longer = space.run({"prompt": "a red ball", "num_inference_steps": 40})
    assert ask(longer, False) > ask(run, False)
    alone = space.run(
        {"prompt": "a red ball", "num_inference_steps": 40, "guidance_scale": 1.0}
    )  # one pass a step
    assert ask(alone, False) < ask(longer, False)
    assert ask(run, True, None, 100.0) > ask(run, True, None, 10.0) > 10


def test_the_handler_asks_in_its_own_context_and_says_what_the_space_said(
    runner: ZeroGpuRunner, scheduler: StandIn, space: Studio, traces: OpenTraces, run: Run
) -> None:
    """The visitor's quota is found by the request of the event, so no other thread may ask."""
    page, visit = Page(space, traces, runner), Visit(None, space.model)
    visit.pending = run
    scheduler.quota_seconds = zero_gpu.seconds_for(run, False) + 1
    visitor = SimpleNamespace(headers={"x-ip-token": "theirs"})
    token = LocalContext.request.set(visitor)
    try:
        *_, last = page.run_pending(visit)
    finally:
        LocalContext.request.reset(token)
    assert scheduler.visitors == [visitor, visitor]
    assert "The Space gave no GPU" in last["status"]
    assert 'role="alert"' in last["status"]
    assert visit.dense is not None
    assert visit.execution is None


def test_visitors_of_a_space_run_its_own_model_alone(space: Studio) -> None:
    assert space.models == (space.model,)
    with pytest.raises(RequestError, match="choose one of its list"):
        space.spec_of("wan2.1-1.3b")


def test_a_model_that_is_moved_in_parts_is_refused_in_a_sentence(
    studio: Studio, monkeypatch
) -> None:
    pipe = SimpleNamespace(components={"transformer": SimpleNamespace(_hf_hook=object())})
    whole = Studio(studio.model)
    monkeypatch.setattr(whole, "pipe", lambda *_: pipe)
    with pytest.raises(UsageError, match="does not fit the GPU"):
        zero_gpu.prepare(whole)


def test_elsewhere_the_task_is_not_decorated() -> None:
    assert os.environ.get("SPACES_ZERO_GPU") is None
    assert zero_gpu.generate_on_gpu is zero_gpu.generate_side
