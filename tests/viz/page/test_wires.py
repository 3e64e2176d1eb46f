"""Handlers by name, called as Gradio calls them."""

from __future__ import annotations

import inspect

import gradio as gr
import pytest
from gradio.helpers import special_args

from viz.page.wires import Wires


class Handlers:
    def __init__(self) -> None:
        self.is_closed = False

    def greet(self, name: str, request: gr.Request, event: gr.EventData) -> dict:
        return {"status": f"hello {name}"}

    def nothing(self) -> dict:
        return {}

    def stream(self, name: str):
        try:
            yield {"status": name}
            yield {}
            yield {"name": "never"}
        finally:
            self.is_closed = True


def wired(handler, inputs: str, outputs: str):
    """The function that Gradio calls for a handler, and the components by name."""
    with gr.Blocks() as blocks:
        components = {"name": gr.Textbox(), "status": gr.HTML(), "go": gr.Button()}
        go = components["go"]
        Wires(components).connect([go.click], handler, inputs, outputs)
    (block,) = blocks.fns.values()
    return block, components


def test_updates_go_to_components_by_their_names() -> None:
    block, components = wired(Handlers().greet, "name", "status")
    assert block.inputs == [components["name"]]
    assert block.outputs == [components["status"]]
    assert block.fn("ann", None, None) == {components["status"]: "hello ann"}
    assert block.fn.__name__ == "greet"


def test_gradio_still_sees_who_asks_and_what_happened() -> None:
    block, _ = wired(Handlers().greet, "name", "status")
    request, event = object(), gr.EventData(None, {"trace": "x"})
    inputs, _, event_index, _ = special_args(block.fn, ["ann"], request, event)
    assert inputs[:2] == ["ann", request]
    assert event_index == 2


def test_an_empty_update_leaves_all_as_it_is() -> None:
    block, _ = wired(Handlers().nothing, "", "status name")
    assert block.fn() == gr.skip()


def test_a_stream_is_closed_with_its_connection() -> None:
    handlers = Handlers()
    block, components = wired(handlers.stream, "name", "status name")
    assert inspect.isgeneratorfunction(block.fn)
    running = block.fn("ann")
    assert next(running) == {components["status"]: "ann"}
    assert next(running) == gr.skip()
    assert not handlers.is_closed
    running.close()
    assert handlers.is_closed


class OfVisits:
    def show(self, visit: object, name: str) -> dict:
        return {"status": name} if name else {}

    def leave_all(self, visit: object) -> None:
        return None

    def stream(self, visit: object):
        yield {"status": "one"}
        yield {}


@pytest.mark.parametrize(
    ("handler", "given", "updates"),
    [
        ("show", ["ann"], [{"status": "ann"}]),
        ("show", [""], [{}]),
        ("leave_all", [], [{}]),
        ("stream", [], [{"status": "one"}, {}]),
    ],
)
def test_each_event_of_a_visit_gives_it_back_and_so_renews_its_time(handler, given, updates):
    with gr.Blocks() as blocks:
        components = {"name": gr.Textbox(), "status": gr.HTML(), "visit": gr.State("first")}
        go = gr.Button()
        inputs = "visit name" if given else "visit"
        Wires(components).connect([go.click], getattr(OfVisits(), handler), inputs, "status")
    (block,) = blocks.fns.values()
    assert block.outputs == [components["visit"], components["status"]]
    mine = object()
    found = block.fn(mine, *given)
    for found_update, update in zip(
        found if handler == "stream" else [found], updates, strict=True
    ):
        named = {components[name]: value for name, value in update.items()}
        assert found_update == {components["visit"]: mine, **named}
