"""Jobs run one at a time, report the newest progress, and stop when asked."""

import threading
import weakref
from pathlib import Path

import pytest

from svg2.errors import Cancelled, ConfigError, ModelUnavailable, RequestError, TooBusy
from svg2.method.selection import METHODS
from svg2.models.catalogue import MODELS
from svg2.models.finding import model_spec
from svg2.models.request import Request
from svg2.runs import jobs
from svg2.runs.jobs import LINE, Job, Studio
from svg2.runs.limits import Limits, Pace, work_of
from svg2.runs.line import Line
from svg2.runs.progress import Progress, Watch
from svg2.runs.run import Run
from tests.svg2.pipelines import LAB, make_model_folder


@pytest.fixture(scope="module")
def studio(tiny_pipeline_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("jobs") / "tiny"
    return Studio(str(make_model_folder(tiny_pipeline_path, folder)))


def test_a_job_reports_and_returns() -> None:
    def work(report, is_cancelled):
        for step in range(3):
            report(Progress("dense", "denoise", step, 3))
        return "frames"

    job = Job(work)
    reports = list(job)
    assert reports[-1].step == 2
    assert job.result() == "frames"


def test_a_slow_reader_sees_the_newest_report_only() -> None:
    told = threading.Event()
    go_on = threading.Event()

    def work(report, is_cancelled):
        for step in range(100):
            report(Progress("dense", "denoise", step, 100))
        told.set()
        go_on.wait(10)

    job = Job(work)
    told.wait(10)
    assert next(iter(job)).step == 99
    go_on.set()
    job.result()


def test_cancel_reaches_the_work() -> None:
    def work(report, is_cancelled):
        while not is_cancelled():
            report(Progress("dense", "denoise"))
        return "stopped"

    job = Job(work)
    next(iter(job))
    job.cancel()
    assert job.is_cancelled
    assert job.result() == "stopped"


def test_an_error_ends_the_progress_and_is_raised_with_the_result() -> None:
    def work(report, is_cancelled):
        report(Progress("", "load"))
        raise RequestError("No such thing.")

    job = Job(work)
    assert [report.stage for report in job] == ["load"]
    with pytest.raises(RequestError, match="No such thing"):
        job.result()


def test_those_who_wait_are_told_how_many_go_first_and_for_how_long() -> None:
    go_on, told = threading.Event(), threading.Event()

    def work(report, is_cancelled):
        report(Progress("dense", "denoise", 1, 4, eta_seconds=30.0))
        told.set()
        go_on.wait(10)

    first = Job(work, seconds=40.0)
    assert told.wait(10)
    second = Job(lambda report, is_cancelled: "second", seconds=7.0)
    third = Job(lambda report, is_cancelled: "third")
    fourth = Job(lambda report, is_cancelled: "fourth")
    waiting = [next(iter(job)) for job in (second, third, fourth)]
    assert [(p.stage, p.ahead, p.eta_seconds) for p in waiting] == [
        ("wait", 1, 30.0),  # what is left of the first, as it says itself
        ("wait", 2, 37.0),
        ("wait", 3, None),  # nobody knows how long the third takes
    ]
    assert LINE.is_busy
    assert LINE.waiting == 3
    third.cancel()
    with pytest.raises(Cancelled):
        third.result()  # at once, while the first one goes on
    assert LINE.waiting == 2
    go_on.set()
    assert [first.result(), second.result(), fourth.result()] == [None, "second", "fourth"]
    assert LINE.wait_until_idle(10)
    assert not LINE.is_busy


def test_jobs_go_in_the_order_of_arrival() -> None:
    done = []
    go_on = threading.Event()
    jobs = [Job(lambda report, is_cancelled: go_on.wait(10))]
    jobs += [Job(lambda report, is_cancelled, i=i: done.append(i)) for i in range(8)]
    go_on.set()
    for job in jobs:
        job.result()
    assert done == list(range(8))


def test_other_work_comes_between_two_runs(studio: Studio) -> None:
    log, go_on = [], threading.Event()
    first = Job(lambda report, is_cancelled: go_on.wait(10) and log.append("first"))
    second = Job(lambda report, is_cancelled: log.append("second"))

    def export() -> None:
        with LINE.aside(patience=10):
            log.append("export begins")
            threading.Event().wait(0.2)
            log.append("export ends")

    thread = threading.Thread(target=export)
    thread.start()
    while LINE.waiting < 2:
        threading.Event().wait(0.01)
    go_on.set()
    for job in (first, second):
        job.result()
    thread.join(10)
    assert log == ["first", "export begins", "export ends", "second"]


@pytest.mark.parametrize("is_disturbed", [False, True])
def test_a_run_that_was_disturbed_says_so(studio: Studio, monkeypatch, is_disturbed) -> None:
    run = studio.run({"prompt": "a red ball", "num_inference_steps": 2})
    compare = jobs.compare

    def beside(*arguments, **names):
        made = compare(*arguments, **names)
        made.result["is_disturbed"] = False
        if is_disturbed:
            with LINE.aside(patience=0.05):
                pass
        return made

    monkeypatch.setattr(jobs, "compare", beside)
    made = Job(lambda report, stop: studio.compare(run, report, stop)).result()
    assert made.result["is_disturbed"] is is_disturbed
    assert made.trace.runs[0].result["is_disturbed"] is is_disturbed
    monkeypatch.undo()
    with LINE.aside(patience=0.0):  # where nothing runs there is nothing to disturb
        assert not LINE.is_disturbed


def test_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch, studio: Studio) -> None:
    monkeypatch.setattr("svg2.runs.jobs.LINE", Line(most_waiting=2))
    go_on = threading.Event()
    jobs = [Job(lambda report, is_cancelled: go_on.wait(10)) for _ in range(3)]
    with pytest.raises(TooBusy, match="2 runs wait here already"):
        Job(lambda report, is_cancelled: None)
    with pytest.raises(TooBusy, match="try again"):
        studio.admit(studio.run({"prompt": "a ball"}))
    go_on.set()
    for job in jobs:
        job.result()
    studio.admit(studio.run({"prompt": "a ball"}))
    assert Job(lambda report, is_cancelled: "room again").result() == "room again"


def test_two_jobs_never_run_at_once() -> None:
    at_work = []
    most = []

    def work(report, is_cancelled):
        at_work.append(1)
        most.append(len(at_work))
        threading.Event().wait(0.02)
        at_work.pop()

    for job in [Job(work) for _ in range(4)]:
        job.result()
    assert most == [1, 1, 1, 1]


def test_a_run_takes_defaults_from_the_model(studio: Studio) -> None:
    run = studio.run({"prompt": "a ball", "top_p": 0.5, "seed": None, "width": 64.0})
    assert run.request.num_frames == LAB["num_frames"]
    assert run.request.width == 64
    assert run.config.num_k_clusters == LAB["num_k_clusters"]
    assert run.config.top_p == 0.5
    assert studio.run({"prompt": "a ball", "method": "svg2-comp"}).method.compensates


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"prompt": " "}, RequestError, "empty"),
        ({"prompt": "a ball", "top_p": float("nan")}, ConfigError, "top_p"),
        ({"prompt": "a ball", "top_p": "half"}, ConfigError, "top_p"),
        ({"prompt": "a ball", "method": "magic"}, ConfigError, "Unknown method"),
        ({"prompt": "a ball", "num_q_clusters": 97}, ConfigError, "only 96 tokens"),
        ({"prompt": "a ball", "num_frames": 0}, RequestError, "num_frames"),
        ({"prompt": "a ball", "height": 1e9}, RequestError, "height"),
    ],
)
def test_an_invalid_run_is_refused_in_one_sentence(
    studio: Studio, values, error, sentence
) -> None:
    with pytest.raises(error, match=sentence):
        studio.run(values)


def test_a_studio_with_an_unknown_model_refuses_runs(tmp_path: Path) -> None:
    studio = Studio(str(tmp_path))
    with pytest.raises(RequestError, match="Unknown model"):
        studio.run({"prompt": "a ball"})


def test_compare_loads_the_model_once(studio: Studio) -> None:
    run = studio.run({"prompt": "a red ball", "num_inference_steps": 2})
    stages = []
    made = studio.compare(run, lambda p: stages.append(p.stage), lambda: False)
    assert made.trace.runs[0].method == "svg2"
    assert "denoise" in stages
    pipe = studio.pipe(studio.model, studio.spec, Watch())
    again = studio.compare(run, lambda p: None, lambda: False, dense=made.dense)
    assert again.result["dense_reused"]
    assert studio.pipe(studio.model, studio.spec, Watch()) is pipe


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_what_a_run_freed_is_given_back_however_it_ends(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, is_cancelled
) -> None:
    order = []
    monkeypatch.setattr(jobs, "trim_memory", lambda: order.append("given back"))
    run = studio.run({"prompt": "a ball"})
    stages = lambda progress: order.append(progress.stage)  # noqa: E731
    if is_cancelled:
        studio.pipe(run.request.model, run.spec, Watch())
        with pytest.raises(Cancelled):
            studio.compare(run, stages, lambda: "denoise" in order)
    else:
        studio.compare(run, stages, lambda: False)
    assert order.count("given back") == 1
    assert order[-1] == "given back"


def test_a_run_may_name_another_model_of_the_menu_and_nothing_else(studio: Studio) -> None:
    assert studio.models[0] == studio.model
    run = studio.run({"prompt": "a ball", "model": "wan2.1-1.3b", "negative_prompt": "blur"})
    assert (run.request.model, run.request.width) == ("wan2.1-1.3b", 832)
    assert run.request.negative_prompt == "blur"
    fast = studio.run({"prompt": "a ball", "model": "wan2.1-1.3b", "preset": "fast"})
    assert fast.config.warmup_fraction < run.config.warmup_fraction
    with pytest.raises(RequestError, match="starts from an image"):
        studio.run({"prompt": "a ball", "model": "wan2.1-i2v-480p"})
    for name in ("someone/else", "/etc", 7):
        with pytest.raises(RequestError, match="no model"):
            studio.run({"prompt": "a ball", "model": name})


def test_another_model_takes_the_place_of_the_loaded_one(studio: Studio, monkeypatch) -> None:
    loaded = []

    def load(spec, watch):
        loaded.append(spec.title)
        return spec.title

    monkeypatch.setattr("svg2.runs.jobs.load", load)
    monkeypatch.setattr(Studio, "why_not", lambda studio, model: None)
    fresh = Studio(studio.model)
    own, other = fresh.spec, fresh.spec_of("wan2.1-14b")

    def pipe(model, spec):
        return fresh.pipe(model, spec, Watch())

    assert pipe(studio.model, own) == own.title
    assert pipe("wan2.1-14b", other) == pipe("wan2.1-14b", other) == other.title
    fresh.preload()
    assert loaded == [own.title, other.title, own.title]


@pytest.fixture
def loads(studio: Studio, monkeypatch) -> list[str]:
    """Titles of what is loaded, in turn; nothing is."""
    titles = []
    monkeypatch.setattr(Studio, "why_not", lambda studio, model: None)
    monkeypatch.setattr(
        "svg2.runs.jobs.load", lambda spec, watch: titles.append(spec.title) or spec.title
    )
    return titles


def test_a_run_cancelled_before_its_load_frees_no_other_model(studio: Studio, loads) -> None:
    fresh = Studio(studio.model)
    fresh.preload()
    cancelled = Watch(should_cancel=lambda: True)
    with pytest.raises(Cancelled):
        fresh.pipe("wan2.1-14b", fresh.spec_of("wan2.1-14b"), cancelled)
    fresh.preload()
    assert loads == [fresh.spec.title]
    assert fresh.pipe(fresh.model, fresh.spec, cancelled) == fresh.spec.title


def test_a_model_whose_run_is_cancelled_meanwhile_stays_loaded(studio: Studio, loads) -> None:
    fresh = Studio(studio.model)
    with pytest.raises(Cancelled):
        fresh.pipe(fresh.model, fresh.spec, Watch(should_cancel=lambda: bool(loads)))
    fresh.preload()
    assert loads == [fresh.spec.title]


@pytest.mark.parametrize("model", ["wan2.1-1.3b", "wan2.2-t2v-a14b", "hunyuanvideo"])
def test_a_model_that_cannot_run_here_is_refused_and_the_loaded_one_stays(
    studio: Studio, monkeypatch, model: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    fresh = Studio(studio.model)
    before = fresh.pipe(fresh.model, fresh.spec, Watch())
    run = fresh.run({"prompt": "a ball", "model": model})
    with pytest.raises(ModelUnavailable, match="no GPU was found"):
        fresh.admit(run)  # before it waits
    with pytest.raises(ModelUnavailable, match="no GPU was found"):
        fresh.compare(run, lambda progress: None, lambda: False)
    assert fresh.pipe(fresh.model, fresh.spec, Watch()) is before


def test_a_visitor_starts_no_download(studio: Studio, monkeypatch) -> None:
    monkeypatch.setattr("svg2.runs.jobs.availability", lambda spec: None)  # a GPU, and online
    assert "visitors can't start a download" in str(Studio(studio.model).why_not("wan2.1-14b"))
    assert Studio(studio.model, may_download=True).why_not("wan2.1-14b") is None
    assert Studio("wan2.1-14b").why_not("wan2.1-14b") is None  # who runs the page wants it
    assert Studio(studio.model).why_not(studio.model) is None
    monkeypatch.setattr("svg2.runs.jobs.snapshot", lambda hub_id: Path("downloaded"))
    assert Studio(studio.model).why_not("wan2.1-14b") is None


@pytest.mark.parametrize("fails", [False, True])
def test_switching_models_frees_the_first_ones_memory(
    studio: Studio, tiny_pipeline_path: Path, tmp_path: Path, monkeypatch, fails: bool
) -> None:
    """Also after a run on it, and after one that failed in the middle of a step."""
    fresh = Studio(studio.model)
    run = fresh.run({"prompt": "a red ball", "num_inference_steps": 2})
    if fails:
        monkeypatch.setattr("svg2.hooks.session.sparse_call", _refuse)
        with pytest.raises(ArithmeticError):
            Job(lambda report, stop: fresh.compare(run, report, stop)).result()
        monkeypatch.undo()
    else:
        Job(lambda report, stop: fresh.compare(run, report, stop)).result()
    weights = weakref.ref(fresh.pipe(fresh.model, fresh.spec, Watch()).transformer)
    other = str(make_model_folder(tiny_pipeline_path, tmp_path / "other"))
    monkeypatch.setattr(Studio, "models", (fresh.model, other))
    alive = []

    def load(spec, watch):
        alive.append(weights())
        return "loaded"

    monkeypatch.setattr("svg2.runs.jobs.load", load)
    assert fresh.pipe(other, fresh.spec_of(other), Watch()) == "loaded"
    assert alive == [None], "the first model is still there while the second one loads"


def _refuse(*args, **kwargs):
    raise ArithmeticError("in the middle of a step")


def test_the_model_loads_while_nothing_else_runs(studio: Studio, loads) -> None:
    go_on, loaded = threading.Event(), []
    first = Job(lambda report, is_cancelled: go_on.wait(10) and loaded.append(list(loads)))
    preload = threading.Thread(target=Studio(studio.model).preload)
    preload.start()
    while not LINE.waiting:
        threading.Event().wait(0.01)
    go_on.set()
    first.result()
    preload.join(10)
    assert loaded == [[]], "the model was loaded beside a job"
    assert loads == [studio.spec.title]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_inference_steps": 200, "width": 128, "height": 128, "num_frames": 9}, "times the"),
        ({"width": 448, "height": 448, "num_inference_steps": 20}, "times the work"),
        ({"num_q_clusters": 1001, "width": 256, "height": 256}, "num_q_clusters is 1001"),
        ({"num_k_clusters": 3000, "width": 256, "height": 256}, "at most 1000 are taken here"),
    ],
)
def test_more_than_the_limits_allow_is_refused_in_one_sentence(
    tiny_pipeline_path: Path, tmp_path: Path, values, sentence
) -> None:
    model = str(make_model_folder(tiny_pipeline_path, tmp_path / "tiny", max_tokens=30_000))
    values = {"prompt": "a ball", **values}
    Studio(model).run(values)  # for a page of one's own there are none
    limited = Studio(model, Limits(work=0.5))
    with pytest.raises(RequestError, match=sentence):
        limited.run(values)
    assert limited.run({"prompt": "a ball"}).request.width == LAB["width"]


def test_a_default_video_of_every_model_is_within_the_limits() -> None:
    for model in MODELS:
        spec = model_spec(model)
        for method in METHODS:
            config = spec.config_of(method)
            request = Request("a ball", model=model)
            if spec.kind.needs_input:
                continue
            run = Run.of(request, spec=spec, settings={"method": method})
            assert work_of(run, spec) <= 1
            Limits(work=1.0).check(run, spec, seconds=1e9)
            assert run.config.kmeans_iters_init == config.kmeans_iters_init


def test_k_means_iterations_are_limited() -> None:
    spec = model_spec("builtin")
    for name in ("kmeans_iters_init", "kmeans_iters_step"):
        run = Run.of(Request("a ball"), spec=spec, settings={name: 1000})
        with pytest.raises(RequestError, match=f"{name} is 1000, and at most 50"):
            Limits().check(run, spec)


def test_what_was_measured_foretells_what_another_takes() -> None:
    pace, spec = Pace(), model_spec("builtin")

    def sized(side: int, steps: int, guidance_scale: float = 2.0) -> Run:
        fields = {"width": side, "height": side, "num_frames": 17, "num_inference_steps": steps}
        return Run.of(Request("a ball", guidance_scale=guidance_scale, **fields), spec=spec)

    assert pace.seconds(sized(192, 10)) is None
    totals = {"encode": 1.0, "decode": 2.0}
    result = {"dense_seconds": 40.0, "svg2_seconds": 20.0, "dense_stock_seconds": None}
    pace.note(sized(192, 10), result | {"total_seconds": totals, "dense_total_seconds": totals})
    assert pace.seconds(sized(192, 10)) == pytest.approx(66)
    assert pace.seconds(sized(192, 20)) == pytest.approx(126)
    assert pace.seconds(sized(192, 10), num_dense=0) == pytest.approx(26)
    assert pace.seconds(sized(384, 10)) == pytest.approx(16 * 60 + 4 * 6)
    assert pace.seconds(sized(96, 10)) == pytest.approx(60 / 4 + 6 / 4)
    assert pace.seconds(sized(192, 10, guidance_scale=1.0)) == pytest.approx(30 + 6)
    unguided, guided = sized(192, 10, guidance_scale=1.0), sized(192, 10, guidance_scale=3.0)
    assert work_of(guided, spec) == pytest.approx(2 * work_of(unguided, spec))
    limits = Limits(work=1e9, seconds=600)
    with pytest.raises(RequestError, match="about 16 minutes here, and a run may take 10"):
        limits.check(sized(384, 10), spec, seconds=pace.seconds(sized(384, 10)))


def test_a_run_that_takes_too_long_is_stopped_and_says_so(studio: Studio, monkeypatch) -> None:
    limited = Studio(studio.model, Limits(work=1e9, seconds=0.0))
    values = {"prompt": "a red ball", "num_inference_steps": 50}
    monkeypatch.setattr("svg2.runs.limits._LEAST_TOKENS", 1)
    monkeypatch.setattr("svg2.runs.limits._LEAST_FORWARDS", 1)
    with pytest.raises(RequestError, match="The run was stopped, since it takes longer"):
        limited.compare(limited.run(values), lambda progress: None, lambda: False)
    with pytest.raises(Cancelled):  # by who asked for it
        limited.compare(limited.run(values), lambda progress: None, lambda: True)
