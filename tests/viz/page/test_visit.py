"""One open page: what it can run again, and how what it made joins what is open."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from svg2.errors import ConfigError, InputError, RequestError
from svg2.models.request import Request
from svg2.runs.compare import Comparison
from svg2.runs.jobs import Studio
from svg2.runs.limits import Limits
from svg2.runs.run import Run
from svg2.trace import records
from tests.traces import make_synthetic_trace
from viz.page import visit as visits
from viz.page.open_traces import OpenTrace, OpenTraces
from viz.page.visit import Visit


def made_at(studio: Studio, top_p: float, seed: int = 0, dense=None) -> Comparison:
    run = studio.run({"prompt": "a red ball", "num_inference_steps": 2, "top_p": top_p})
    run = replace(run, request=replace(run.request, seed=seed))
    return studio.compare(run, lambda progress: None, lambda: False, dense=dense)


@pytest.fixture(scope="module")
def made(studio: Studio) -> Comparison:
    return made_at(studio, 0.8)


@pytest.fixture(scope="module")
def made_too(studio: Studio, made: Comparison) -> Comparison:
    """Of the same video at another budget, against the same dense run."""
    return made_at(studio, 0.5, dense=made.dense)


def with_config(open_trace: OpenTrace, index: int, **changes) -> OpenTrace:
    """The trace with one run that has another method or config."""
    runs = list(open_trace.trace.runs)
    runs[index] = replace(runs[index], **changes)
    return replace(open_trace, trace=replace(open_trace.trace, runs=tuple(runs)))


def test_a_budget_is_run_with_the_method_and_settings_of_its_run(
    studio: Studio, traces: OpenTraces
) -> None:
    stored = {"top_p": 0.9, "num_q_clusters": 4, "num_k_clusters": 9, "warmup_fraction": 0.5}
    opened = with_config(
        traces.ready_made["blue-cube"], 0, config=stored | {"min_keep_ratio": 0.0}
    )
    run = Visit(opened, studio.model).run_at(studio, 0, 0.65)
    assert run.request.prompt == opened.prompt
    assert (run.request.height, run.request.width, run.request.num_frames) == (48, 48, 5)
    assert (run.method.name, run.config.top_p) == ("svg2", 0.65)
    assert (run.config.num_q_clusters, run.config.num_k_clusters) == (4, 9)
    assert (run.config.warmup_fraction, run.config.min_keep_ratio) == (0.5, 0.0)


@pytest.mark.parametrize("named", [{"compensate": True}, {"method": "svg2-comp"}, {}])
def test_the_method_is_the_runs_whatever_its_config_says(
    studio: Studio, traces: OpenTraces, named: dict
) -> None:
    config = {"top_p": 0.9, "num_q_clusters": 4, "num_k_clusters": 9, **named}
    opened = with_config(traces.ready_made["blue-cube"], 2, config=config)
    assert opened.trace.runs[2].method == "svg2-comp"
    assert Visit(opened, studio.model).run_at(studio, 2, 0.5).method.name == "svg2-comp"


def test_what_cannot_be_run_again_is_refused_in_a_sentence(
    studio: Studio, traces: OpenTraces
) -> None:
    opened = traces.ready_made["blue-cube"]
    for visit, index in ((Visit(), 0), (Visit(opened), 3), (Visit(opened), -1)):
        with pytest.raises(RequestError, match="no longer open"):
            visit.run_at(studio, index, 0.5)
    with pytest.raises(InputError, match="top_p must be a number"):
        Visit(opened).run_at(studio, 0, 0)
    foreign = with_config(opened, 0, method="elsewhere")
    with pytest.raises(ConfigError, match="Unknown method 'elsewhere'"):
        Visit(foreign).run_at(studio, 0, 0.5)
    many = with_config(opened, 0, config={"top_p": 0.9, "num_k_clusters": 5000})
    with pytest.raises(ConfigError, match="has only 108 tokens"):
        Visit(many).run_at(studio, 0, 0.5)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("wan2.2-t2v-a14b", {"guidance_scale": 4.0, "guidance_scale_2": 2.5}),
        ("hunyuanvideo", {"true_cfg_scale": 4.0, "negative_prompt": "blur"}),
    ],
)
def test_a_budget_is_run_with_every_guidance_of_the_trace(
    traces: OpenTraces, model: str, fields: dict
) -> None:
    opened = traces.ready_made["blue-cube"]
    request = Run.of(Request("a fox", model=model, **fields)).request
    opened = replace(opened, trace=replace(opened.trace, request=request.to_dict()))
    assert Visit(opened, model).run_at(Studio(model), 0, 0.5).request == request


def test_a_budget_can_be_run_where_the_trace_is_of_the_model_at_hand(
    studio: Studio, traces: OpenTraces, made: Comparison
) -> None:
    opened = traces.ready_made["red-ball"]
    assert Visit().view() == {}
    assert Visit(opened, studio.model).view()["can_run"] is False
    assert Visit(opened, "synthetic").view()["can_run"] is True
    assert Visit(opened, "synthetic").view()["has_dense"] is False  # it would be made first
    visit = Visit(opened, "another model")
    visit.add(made, traces)  # made by this visit, whatever the server's own model is
    assert visit.view(notice="x") == {
        "src": f"lab/{visit.open_trace.key}/payload",
        "can_run": True,
        "has_dense": True,
        "notice": "x",
    }


def test_a_second_run_of_the_same_video_joins_the_first(
    studio: Studio, traces: OpenTraces, made: Comparison, made_too: Comparison
) -> None:
    visit = Visit(traces.ready_made["red-ball"], studio.model)
    visit.add(made, traces)
    assert visit.open_trace.mode == "live CPU"
    first = visit.open_trace.key
    visit.add(made_too, traces)
    assert [run.config["top_p"] for run in visit.open_trace.trace.runs] == [0.8, 0.5]
    assert visit.open_trace.key != first
    again = visit.run_at(studio, 0, 0.7)
    assert again.request == made.dense.request
    assert visit.dense_of(again) is made_too.dense
    visit.add(made_at(studio, 0.8, seed=1), traces)
    assert len(visit.open_trace.trace.runs) == 1
    assert visit.dense_of(again) is None


def test_a_run_of_an_uploaded_video_joins_it_and_says_both_sources(
    studio: Studio, traces: OpenTraces, made: Comparison, made_too: Comparison
) -> None:
    visit = Visit(traces.put(made.trace, "upload"), studio.model)
    visit.add(made_too, traces)
    assert visit.open_trace.mode == "upload + live CPU"
    assert len(visit.open_trace.trace.runs) == 2


def test_old_runs_lose_their_clusters_and_then_go_but_never_those_given(
    traces: OpenTraces, made: Comparison, made_too: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "MAX_RECORDED", 2)
    monkeypatch.setattr(visits, "MAX_RUNS", 3)
    visit = Visit(traces.put(made.trace, "upload"))
    for _ in range(2):
        visit.add(made_too, traces)
    trace = visit.open_trace.trace
    assert [run.config["top_p"] for run in trace.runs] == [0.8, 0.5, 0.5]
    assert {record.run for record in trace.records} == {0, 2}
    visit.add(made_too, traces)
    trace = visit.open_trace.trace
    assert [run.config["top_p"] for run in trace.runs] == [0.8, 0.5, 0.5]
    assert 0 in {record.run for record in trace.records}
    assert trace.records[-1].run == 2


def test_each_visitor_has_a_visit_of_their_own(studio: Studio, traces: OpenTraces) -> None:
    first = Visit(traces.ready_made["red-ball"], studio.model)
    first.pending = Run.of(studio.run({"prompt": "a ball"}).request, spec=studio.spec)
    second = copy.deepcopy(first)
    assert second is not first
    assert second.open_trace is first.open_trace
    assert second.pending is None


@pytest.mark.parametrize("given", [0, 1])
def test_a_trace_that_grows_can_always_be_opened_again(
    traces: OpenTraces,
    made: Comparison,
    made_too: Comparison,
    monkeypatch: pytest.MonkeyPatch,
    given: int,
) -> None:
    first = sum(record.P.size for record in made.trace.records)
    monkeypatch.setattr(records, "MAX_PAIRS", 2 * first)
    visit = Visit(traces.put(made.trace, "upload")) if given else Visit()
    if not given:
        visit.add(made, traces)
    for _ in range(4):
        visit.add(made_too, traces)
    trace = visit.open_trace.trace
    assert len(trace.runs) == 5  # no clip and no number is lost
    assert not trace.is_too_large
    recorded = {record.run for record in trace.records}
    assert recorded == {0, 4}  # the first, and the newest


def test_a_page_that_goes_frees_all_it_held(
    studio: Studio, traces: OpenTraces, made: Comparison
) -> None:
    visit = Visit(None, studio.model)
    visit.add(made, traces)
    visit.pending = visit.run_at(studio, 0, 0.5)
    key = visit.open_trace.key
    assert traces.get(key) is not None
    visit.free()
    assert traces.get(key) is None
    assert (visit.open_trace, visit.dense, visit.pending, visit.made_by) == (None,) * 4


def test_an_upload_lends_its_budget_and_cluster_counts_and_nothing_else(
    studio: Studio, traces: OpenTraces, made: Comparison
) -> None:
    costly = {"kmeans_iters_init": 1000, "kmeans_iters_step": 1000, "impl": "reference"}
    costly |= {"warmup_fraction": 1.0, "min_keep_ratio": 1.0, "seed": 7, "dense_layers": 3}
    config = {**made.trace.runs[0].config, **costly, "num_q_clusters": 4, "num_k_clusters": 9}
    opened = with_config(traces.put(made.trace, "upload"), 0, config=config, method="svg2-comp")
    visit = Visit(opened, studio.model)
    run = visit.run_at(studio, 0, 0.65)
    own = studio.run({"prompt": "a ball", "method": "svg2-comp"}).config
    assert (run.method.name, run.config.top_p) == ("svg2-comp", 0.65)
    assert (run.config.num_q_clusters, run.config.num_k_clusters) == (4, 9)
    for name in costly:
        assert getattr(run.config, name) == getattr(own, name)
    joined = Visit(replace(opened, mode="upload + live CPU"), studio.model)
    assert joined.run_at(studio, 0, None).config.kmeans_iters_init == own.kmeans_iters_init


@pytest.mark.parametrize("mode", ["upload", "ready-made trace", "live CPU"])
def test_a_trace_of_too_large_a_video_is_not_run(studio: Studio, traces: OpenTraces, mode) -> None:
    opened = replace(traces.ready_made["blue-cube"], mode=mode)
    opened.trace.request["num_inference_steps"], before = (
        200,
        opened.trace.request["num_inference_steps"],
    )
    try:
        with pytest.raises(RequestError, match="times the work of a default video"):
            Visit(opened).run_at(Studio(studio.model, Limits(work=0.01)), 0, 0.5)
    finally:
        opened.trace.request["num_inference_steps"] = before


def test_one_run_of_a_visit_at_a_time_and_the_newest_wish_counts() -> None:
    visit, log = Visit(), []
    go_on = threading.Event()

    def wish(name: str, kind: str) -> None:
        with visit.turn(kind) as is_mine:
            log.append((name, is_mine))
            if is_mine:
                go_on.wait(10)

    threads = []
    for name, kind in (("a", "release"), ("b", "release"), ("c", "release"), ("d", "run")):
        threads.append(threading.Thread(target=wish, args=(name, kind)))
        threads[-1].start()
        threading.Event().wait(0.1)
    assert log == [("a", True), ("c", False)]  # b waits, and does what c wanted
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert sorted(log[2:]) == [("b", True), ("d", True)]


def test_a_visit_that_another_takes_over_holds_nothing_more() -> None:
    traces = OpenTraces()
    left, came = Visit(), Visit()
    left.show(traces.put(make_synthetic_trace(), "upload"))
    running = left.execution = SimpleNamespace(cancel=lambda: pytest.fail("it was cancelled"))
    key = left.open_trace.key
    came.take_over(left)
    assert (came.execution, came.open_trace) == (running, traces.get(key))
    assert (left.open_trace, left.dense, left.execution) == (None, None, None)
    came.execution = None
    came.free()
    assert traces.get(key) is None
