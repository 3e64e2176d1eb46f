"""Links, forms, events and requests that nobody wrote: each is answered in a sentence.

A hundred of each; `make nightly` tries thousands.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svg2.errors import Cancelled
from svg2.method.selection import METHODS
from svg2.models.spec import PRESETS
from svg2.runs.jobs import Studio
from svg2.runs.limits import Limits
from viz.page.address import CHOICES, NUMBERS, SETTINGS
from viz.page.api import Api
from viz.page.handlers import Page
from viz.page.open_traces import OpenTraces
from viz.page.visit import Visit

many = settings(
    max_examples=int(os.environ.get("SVG2_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXT = st.text(max_size=30) | st.sampled_from(
    ["nan", "-inf", "1e999", "0x10", "١٢", "\0", "\ud800", "a" * 3000, "9" * 5000, "../../etc", ""]
)
NUMBER = (
    st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([0, 1, 4, 16, 17, 32, 48, 64, 0.5, 0.9, 10**400])
)
SCALAR = st.none() | st.booleans() | NUMBER | TEXT
ANY = st.recursive(
    SCALAR, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=5
)
# What is likely to be right, so that generated requests come further than their first field.
LIKELY: dict[str, st.SearchStrategy] = {
    "prompt": st.just("a red ball"),
    "method": st.sampled_from(list(METHODS)),
    "top_p": st.floats(0.01, 1),
    "num_q_clusters": st.integers(1, 20),
    "num_k_clusters": st.integers(1, 20),
    "seed": st.integers(0, 10),
    "num_inference_steps": st.integers(1, 300),
    "num_frames": st.sampled_from([5, 9]),
    "height": st.sampled_from([32, 64]),
    "width": st.sampled_from([32, 64]),
    "guidance_scale": st.floats(0, 50),
    "model": st.none(),
    "preset": st.sampled_from(list(PRESETS)),
    "image": st.none(),
    "negative_prompt": st.just(""),
}


def forms() -> st.SearchStrategy[dict[str, Any]]:
    """Forms with some fields right and others anything."""
    return st.fixed_dictionaries({name: right | ANY for name, right in LIKELY.items()})


class Refusing:
    """A runner that starts nothing and says that it was cancelled."""

    is_cancelled = True

    def start(self, run, dense=None, policy=None) -> Refusing:
        return self

    def cancel(self) -> None:
        pass

    def __iter__(self) -> Iterator:
        return iter(())

    def result(self):
        raise Cancelled


@pytest.fixture(scope="module")
def limited(studio: Studio) -> Studio:
    return Studio(studio.model, Limits(work=4))


@pytest.fixture(scope="module")
def page(limited: Studio, traces: OpenTraces) -> Page:
    return Page(limited, traces, Refusing())


@pytest.fixture
def visit(limited: Studio, traces: OpenTraces) -> Visit:
    return Visit(traces.ready_made["blue-cube"], limited.model)


def is_said(update: dict[str, Any] | None) -> bool:
    """Whether what an event answers can be sent, and holds no traceback."""
    return update is not None and "Traceback" not in str(update)


@many
@given(query=st.dictionaries(st.sampled_from(SETTINGS) | TEXT, TEXT, max_size=8))
def test_any_link_opens_the_page(page: Page, visit: Visit, query: dict[str, str]) -> None:
    tab = SimpleNamespace(session_hash="tab", query_params=query)
    update = page.arrive(visit, query.get("seed", ""), tab)
    assert set(update) <= {*SETTINGS, "status"}
    for name in NUMBERS:
        assert isinstance(update.get(name, 0), int | float)


@many
@given(form=forms())
def test_any_form_is_run_or_refused_in_a_sentence(page: Page, visit: Visit, form: dict) -> None:
    visit = copy.deepcopy(visit)
    update = page.prepare(visit, *(form[name] for name in (*SETTINGS, *CHOICES)))
    assert update["status"].count("<p") == 1
    assert (visit.pending is None) == (set(update) == {"status"})
    for last in page.run_pending(visit):
        assert is_said(last)
    assert visit.execution is None
    assert not visit.is_comparing


@many
@given(
    event=st.fixed_dictionaries(
        {},
        optional={
            "trace": st.just("blue-cube") | ANY,
            "run": st.sampled_from([0, 1, 2]) | ANY,
            "top_p": st.floats(0.01, 1) | ANY,
            "again": st.booleans() | ANY,
            "method": ANY,
        },
    )
)
def test_any_release_and_any_link_of_the_explorer_is_answered(
    page: Page, visit: Visit, event: dict
) -> None:
    visit = copy.deepcopy(visit)
    sent = SimpleNamespace(**event)
    update = page.release_budget(visit, sent)
    assert is_said(update)
    if visit.pending_release is not None:
        assert 0 < visit.pending_release.config.top_p <= 1
    for last in page.run_release(visit):
        assert is_said(last)
    assert is_said(page.follow_link(visit, sent))
    assert visit.open_trace is not None


HANDLERS: dict[str, int] = {
    "pick_model": 2,
    "pick_method": 3,
    "describe_method": 1,
}


@pytest.mark.parametrize("handler", HANDLERS)
@many
@given(values=st.lists(ANY, min_size=3, max_size=3))
def test_any_choice_is_answered(page: Page, handler: str, values: list) -> None:
    call: Callable = getattr(page, handler)
    assert is_said(call(*values[: HANDLERS[handler]]))


@many
@given(prompt=TEXT, width=st.none() | NUMBER, height=st.none() | NUMBER, key=ANY)
def test_any_prompt_size_and_key_is_answered(
    page: Page, visit: Visit, prompt: str, width, height, key
) -> None:
    visit = copy.deepcopy(visit)
    assert is_said(page.hint("builtin", prompt))
    assert is_said(page.show_cut("no such file", width, height))
    assert is_said(page.choose_trace(visit, key))


@many
@given(data=st.none() | st.binary(max_size=200))
def test_any_upload_is_answered(page: Page, visit: Visit, data: bytes | None) -> None:
    before = visit.open_trace
    assert set(page.receive_trace(visit, data)) == {"status"}
    assert visit.open_trace is before


@many
@given(form=forms(), methods=ANY | st.just(["svg2"]), top_ps=ANY | st.just([0.5]), key=ANY)
def test_any_request_of_a_program_is_one_sentence(
    limited: Studio, traces: OpenTraces, form: dict, methods, top_ps, key
) -> None:
    api = Api(limited, traces, Refusing())
    del form["image"]
    swept = {
        name: value
        for name, value in form.items()
        if name in NUMBERS and name not in ("top_p", "num_q_clusters", "num_k_clusters")
    }
    for call in (
        lambda: list(api.compare(**form)),
        lambda: list(api.sweep(form["prompt"], methods, top_ps, model=form["model"], **swept)),
        lambda: api.trace(key) if key not in ("blue-cube", "red-ball") else _none(),
    ):
        with pytest.raises(gr.Error) as refused:
            call()
        assert refused.value.print_exception is False
        assert "This failed" not in str(refused.value.message)
        assert "The run failed" not in str(refused.value.message)


def _none() -> None:
    raise gr.Error("", print_exception=False)
