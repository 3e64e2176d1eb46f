"""Connects events of Gradio components to handlers that know components by name only."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import wraps
from typing import Any

import gradio as gr

from viz.page.handlers import Update

QUICK: Mapping[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}

FAILED = "This failed, and nothing was changed. The server's log says why."

log = logging.getLogger(__name__)


class Wires:
    """Components by name, and events wired to handlers by those names."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        self._components = components

    def connect(
        self, events: Sequence[Any], handler: Callable, inputs: str, outputs: str, **options: Any
    ) -> Any:
        """Call `handler` on any of the events; the result has `success` for what comes next.

        Args:
            inputs, outputs: names of components, with blanks between.
            options: of `gr.on`.
        """
        return gr.on(events, *self._ends(handler, inputs, outputs), **{**QUICK, **options})

    def then(
        self, event: Any, handler: Callable, inputs: str, outputs: str, **options: Any
    ) -> None:
        """Call `handler` where an event's own handler succeeded."""
        event.success(*self._ends(handler, inputs, outputs), **{**QUICK, **options})

    def _ends(self, handler: Callable, inputs: str, outputs: str) -> tuple[Any, ...]:
        if "visit" in inputs.split():  # the first input wherever there is one
            handler, outputs = _renewing(handler), f"visit {outputs}"
        found = ([self._components[name] for name in names.split()] for names in (inputs, outputs))
        return self._by_component(handler), *found

    def _by_component(self, handler: Callable) -> Callable:
        """The handler as Gradio calls it: what it gives back is keyed by component."""

        def keyed(update: Update | None) -> Any:
            if not update:
                return gr.skip()  # Gradio would empty the outputs
            return {self._components[name]: value for name, value in update.items()}

        if inspect.isgeneratorfunction(handler):

            @wraps(handler)
            def stream(*args: Any) -> Any:
                # A lost connection ends the run too.
                with in_a_sentence(handler.__name__), closing(handler(*args)) as updates:
                    for update in updates:
                        yield keyed(update)

            return stream

        @wraps(handler)
        def call(*args: Any) -> Any:
            with in_a_sentence(handler.__name__):
                return keyed(handler(*args))

        return call


def _renewing(handler: Callable) -> Callable:
    """The handler with its visit among what it gives back: its time to live begins anew.

    Gradio frees a state only after an event that gave it back.
    """
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def stream(visit: Any, *args: Any) -> Any:
            with closing(handler(visit, *args)) as updates:
                for update in updates:
                    yield {**update, "visit": visit}

        return stream

    @wraps(handler)
    def call(visit: Any, *args: Any) -> Any:
        return {**(handler(visit, *args) or {}), "visit": visit}

    return call


@contextmanager
def in_a_sentence(name: str) -> Iterator[None]:
    """What the handler of this name did not foresee is logged, and the caller reads a sentence."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        log.exception("The handler %s failed.", name)
        raise gr.Error(FAILED, print_exception=False) from error
