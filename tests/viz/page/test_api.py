"""The endpoints for programs, as `gradio_client` calls them on a served page."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

import app
from svg2.runs.jobs import LINE, Job, Studio
from svg2.runs.limits import Limits
from svg2.trace.file import load_trace
from tests.tree import ROOT
from viz.page.open_traces import OpenTraces

SMALL = {"num_inference_steps": 2, "width": 64, "height": 32}


@pytest.fixture(scope="module")
def address(studio: Studio, traces: OpenTraces) -> Iterator[str]:
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    limited = Studio(studio.model, Limits())
    page = app.launch(
        *(limited, traces), server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
    )
    yield page.local_url
    page.close(verbose=False)
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def client(address: str) -> Client:
    return Client(address, verbose=False)


def health(address: str) -> dict:
    with urllib.request.urlopen(f"{address}health") as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        return json.load(answer)


def test_the_example_of_the_guide_runs(address: str, capsys) -> None:
    guide = (ROOT / "viz" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert example.count("http://127.0.0.1:7860") == 1
    exec(example.replace("http://127.0.0.1:7860", address))
    said = capsys.readouterr().out
    assert "denoise 4" in said
    assert "lab/" in said
    assert said.rstrip().endswith("a red ball rolling to the right")


def test_the_endpoints_are_named_and_typed(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/compare", "/sweep", "/models", "/trace"}
    kinds = {
        p["parameter_name"]: p["python_type"]["type"] for p in endpoints["/compare"]["parameters"]
    }
    assert (kinds["prompt"], kinds["seed"]) == ("str", "int")
    assert kinds["top_p"] == "None | float"


def test_a_comparison_is_made_and_its_trace_downloaded(
    client: Client, address: str, studio: Studio, tmp_path
) -> None:
    job = client.submit("a red ball", top_p=0.5, api_name="/compare", **SMALL)
    made = job.result()
    assert made["result"]["prompt"] == "a red ball"
    assert made["result"]["config"]["top_p"] == 0.5
    stages = [told["stage"] for told in job.outputs()[:-1]]
    assert "denoise" in stages
    with urllib.request.urlopen(address + made["files"]["trace.npz"]) as answer:
        (tmp_path / "made.npz").write_bytes(answer.read())
    trace = load_trace(tmp_path / "made.npz")
    described = client.predict(made["trace"], api_name="/trace")
    assert described["request"]["prompt"] == trace.request["prompt"] == "a red ball"
    assert [run["result"]["psnr_db"] for run in described["runs"]] == [made["result"]["psnr_db"]]


def test_a_sweep_shares_one_dense_run(client: Client, address: str) -> None:
    made = client.predict(
        "a blue cube", ["svg2", "svg2-comp"], [0.9, 0.5], api_name="/sweep", **SMALL
    )
    told = [(p["method"], p["config"]["top_p"], p["dense_reused"]) for p in made["points"]]
    assert told == [
        ("svg2", 0.9, False),
        ("svg2", 0.5, True),
        ("svg2-comp", 0.9, True),
        ("svg2-comp", 0.5, True),
    ]
    assert len(client.predict(made["trace"], api_name="/trace")["runs"]) == 4


def test_models_say_what_keeps_them_from_running(client: Client, studio: Studio) -> None:
    listed = {entry["model"]: entry for entry in client.predict(api_name="/models")}
    assert listed[studio.model]["available"] is True
    assert "no GPU was found" in listed["wan2.1-14b"]["why"]
    assert listed["builtin"]["title"]


@pytest.mark.parametrize(
    ("endpoint", "values", "sentence"),
    [
        ("/compare", {"prompt": ""}, "The prompt is empty"),
        ("/compare", {"prompt": "a", "top_p": 7}, "top_p must be a number above 0"),
        ("/compare", {"prompt": "a", "top_p": "much"}, "top_p must be a number"),
        ("/compare", {"prompt": "a", "method": ["x"]}, "Unknown method"),
        ("/compare", {"prompt": "a", "preset": {}}, "Unknown preset"),
        ("/compare", {"prompt": "a", "model": "/etc"}, "has no model"),
        ("/compare", {"prompt": "a", "model": "wan2.1-14b"}, "no GPU was found"),
        ("/compare", {"prompt": "a", "num_inference_steps": 10**9}, "num_inference_steps must"),
        ("/sweep", {"prompt": "a", "methods": [], "top_ps": [0.5]}, "from 1 to 40 runs"),
        ("/sweep", {"prompt": "a", "methods": "svg2", "top_ps": [0.5]}, "must be lists"),
        ("/sweep", {"prompt": "a", "methods": ["svg2"], "top_ps": [{}]}, "top_ps holds"),
        ("/sweep", {"prompt": "a", "methods": ["svg2"], "top_ps": [0.5] * 41}, "from 1 to 40"),
        ("/trace", {"key": "nobody"}, "no open trace 'nobody'"),
        ("/trace", {"key": ["x"]}, "no open trace"),
    ],
)
def test_what_is_wrong_is_one_sentence(client: Client, endpoint, values, sentence) -> None:
    with pytest.raises(AppError, match=sentence) as refused:
        client.predict(api_name=endpoint, **values)
    assert "Traceback" not in str(refused.value)


def test_health_says_who_waits(address: str, client: Client, studio: Studio) -> None:
    LINE.wait_until_idle(10)
    idle = health(address)
    assert (idle["status"], idle["waiting"], idle["has_room"]) == ("idle", 0, True)
    assert idle["model"] == studio.model
    assert idle["version"]["torch"]
    go_on = threading.Event()
    first = Job(lambda report, is_cancelled: go_on.wait(20))
    job = client.submit("a red ball", api_name="/compare", **SMALL)
    while not LINE.waiting:
        threading.Event().wait(0.01)
    busy = health(address)
    assert (busy["status"], busy["waiting"]) == ("busy", 1)
    go_on.set()
    first.result()
    assert job.result()["result"]["prompt"] == "a red ball"
    waited = [told for told in job.outputs()[:-1] if told["stage"] == "wait"]
    assert waited[0]["ahead"] == 1


def test_a_caller_who_goes_away_ends_the_run(studio: Studio, traces: OpenTraces) -> None:
    from viz.page.api import Api
    from viz.page.runner import ThreadRunner

    running = Api(studio, traces, ThreadRunner(studio)).compare("a ball", num_inference_steps=60)
    assert next(running)["runs_done"] == 0
    running.close()
    assert LINE.wait_until_idle(20)


def test_no_error_of_an_endpoint_is_printed(studio: Studio, traces: OpenTraces, capsys) -> None:
    from viz.page.api import Api
    from viz.page.runner import ThreadRunner

    with pytest.raises(gr.Error) as refused:
        Api(studio, traces, ThreadRunner(studio)).trace("nobody")
    assert refused.value.print_exception is False
