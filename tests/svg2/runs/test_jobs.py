"""Jobs run one at a time, report the newest progress, and stop when asked."""

import threading
from pathlib import Path

import pytest

from svg2.errors import Cancelled, ConfigError, RequestError
from svg2.runs.jobs import Job, Studio
from svg2.runs.progress import Progress, Watch
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
