"""What each event of the page does: the new values of components, by name."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Generator
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr

from svg2.errors import (
    Cancelled,
    GpuUnavailable,
    InputError,
    ModelUnavailable,
    NotFinite,
    TooBusy,
    TraceError,
)
from svg2.models.request import MAX_PROMPT_CHARS, MAX_SIDE_PX
from svg2.runs.compare import Comparison
from svg2.runs.jobs import Studio
from svg2.runs.run import Run
from svg2.trace.clip_settings import is_mp4
from svg2.trace.records import RecordingPolicy
from svg2.trace.scratch import is_full
from viz.page import words
from viz.page.address import CHOICES, NUMBERS, OF_METHOD, SETTINGS, read_address, read_clip
from viz.page.open_traces import READY_MADE, OpenTraces
from viz.page.runner import Execution, Runner, runner_for
from viz.page.visit import Visit
from viz.page.words import plain, say

Update = dict[str, Any]
"""Component name to its new value; what is not named stays as it is."""

BAD_INPUT = (InputError, ModelUnavailable, NotFinite, TooBusy)
GRACE_SECONDS = 600.0  # for a tab that comes back, as from a phone that slept
RELEASE_POLICY = RecordingPolicy(max_bytes=2 << 20)

log = logging.getLogger(__name__)


class Page:
    """The handlers of one served page, over the visits to it.

    Attributes:
        studio: the models. traces: what is open, for all visits. runner: where runs are executed.
    """

    def __init__(self, studio: Studio, traces: OpenTraces, runner: Runner | None = None) -> None:
        self.studio = studio
        self.traces = traces
        self.runner = runner or runner_for(studio)
        self._visits: WeakValueDictionary[str, Visit] = WeakValueDictionary()
        self._kept: dict[str, tuple[Visit, threading.Timer]] = {}  # by ticket
        self._keeping = threading.Lock()

    # Coming and going ----------------------------------------------------------------------------

    def arrive(self, visit: Visit, ticket: str, request: gr.Request) -> Update:
        """Fill the form from the address, and find the run that this tab left behind."""
        self._visits[str(request.session_hash)] = visit
        found, complaint = read_address(self.studio, dict(request.query_params))
        update = found | ({"status": say(complaint, "warn")} if complaint else {})
        visit.ticket = ticket if isinstance(ticket, str) and 8 <= len(ticket) <= 80 else ""
        with self._keeping:
            left, timer = self._kept.pop(visit.ticket, (None, None))
        if left is None or timer is None:
            return update
        timer.cancel()
        visit.take_over(left)
        if visit.doing is not None:
            update["note"] = self._before(visit.doing[0])
        return {**update, **_workspace(visit), **_buttons(True)}

    def resume(self, visit: Visit) -> Generator[Update]:
        """Show a run that goes on since before the page was loaded again."""
        execution = visit.execution
        if execution is None or visit.doing is None:
            yield {}
            return
        run, _, is_release = visit.doing
        with visit.turn("run") as is_mine:
            if is_mine:
                yield from self._run(visit, run, is_release, execution)
            else:
                yield {}

    def leave(self, request: gr.Request) -> None:
        """The tab was closed, or a phone sleeps: cancel its run, if it does not come back."""
        gone = self._visits.pop(str(request.session_hash), None)
        if gone is not None and (gone.execution is None or not self._keep(gone)):
            gone.free()
            self.traces.freed()

    def _keep(self, visit: Visit) -> bool:
        """Keep a visit and its run for a while, in case its tab comes back; whether it can."""
        ticket = visit.ticket
        if not ticket:
            return False

        def give_up() -> None:
            with self._keeping:
                kept, _ = self._kept.get(ticket, (None, None))
                if kept is visit:
                    del self._kept[ticket]
            visit.free()
            self.traces.freed()

        with self._keeping:
            if self._kept.get(ticket, (None, None))[0] is not visit:
                timer = threading.Timer(GRACE_SECONDS, give_up)
                timer.daemon = True
                timer.start()
                self._kept[ticket] = (visit, timer)
        return True

    # The form ------------------------------------------------------------------------------------

    def list_models(self) -> Update:
        return {"menu": words.model_list(self.studio)}

    def pick_model(self, model: str, preset: str) -> Update:
        """Another model or preset: the fields take its settings, with the model's own method."""
        try:
            spec = self.studio.spec_of(model).preset(preset)
            about = words.model_note(self.studio, model)
        except BAD_INPUT as error:
            return {"about_model": say(plain(error), "warn")}
        takes_image = spec.kind.takes == "image" or spec.expand_timesteps
        return {
            **{name: getattr(spec, name) for name in NUMBERS if hasattr(spec, name)},
            **self.pick_method(model, preset, spec.config.method),
            "method": spec.config.method,
            "about_model": about,
            "image": gr.update(visible=takes_image, value=None),
        }

    def pick_method(self, model: str, preset: str, method: str) -> Update:
        """Another method: budget and clusters become those that the model has for it."""
        try:
            spec = self.studio.spec_of(model).preset(preset)
            config = spec.config_for(spec.num_frames, spec.height, spec.width, method).to_dict()
        except BAD_INPUT as error:
            return {"about_model": say(plain(error), "warn")}
        return {name: config[name] for name in OF_METHOD}

    def hint(self, model: str, prompt: str) -> Update:
        """What the built-in model makes of the prompt as it is typed."""
        is_asked = model == "builtin" and 0 < len(prompt) <= MAX_PROMPT_CHARS
        return {"note": words.grammar_note(prompt) if is_asked else ""}

    def describe_method(self, method: str) -> Update:
        return {"about_method": words.about_method(method)}

    def show_cut(self, image: str | None, width: float | None, height: float | None) -> Update:
        """The start image as the video will have it: what is cut away is dimmed, and said."""
        sides = (width or 0, height or 0)
        if not image or not all(1 <= side <= MAX_SIDE_PX for side in sides):
            return {"image_cut": ""}
        try:
            return {"image_cut": words.image_cut(image, *map(round, sides))}
        except BAD_INPUT as error:
            return {"image_cut": say(plain(error), "warn")}

    def suggest_prompt(self) -> Update:
        return {"prompt": words.KNOWN.random_prompt(secrets.randbelow(2**31))}

    def prepare(self, visit: Visit, *values: Any) -> Update:
        """Check the form. A bad value changes nothing but the message."""
        try:
            run = self.studio.run(dict(zip((*SETTINGS, *CHOICES), values, strict=True)))
            self.studio.admit(run)
        except BAD_INPUT as error:
            return _refusal(error)
        visit.cancel()  # a release gives way to a whole run
        visit.pending = run
        return {"status": say(words.WAITING), "note": self._before(run), **_buttons(True)}

    def _before(self, run: Run) -> str:
        """What to expect of a run."""
        return words.before_run(run, self.traces.ready_made.values())

    # Runs ----------------------------------------------------------------------------------------

    def release_budget(self, visit: Visit, event: gr.EventData) -> Update:
        """A budget is to be measured: ask for a real run there. The newest request counts."""
        if visit.pending is not None or visit.is_comparing:
            return {"explorer": visit.view(notice=words.UNDER_WAY)}  # the status is the run's own
        if visit.open_trace is None:
            return {"status": say(words.NO_LONGER_OPEN, "warn")}
        if _sent(event, "trace") != visit.open_trace.key:
            return {"explorer": visit.view(notice=words.JUST_REPLACED)}
        again = _sent(event, "again") is True
        try:
            run = visit.run_at(
                self.studio, _sent(event, "run"), None if again else _sent(event, "top_p"), again
            )
            self.studio.admit(run)
        except BAD_INPUT as error:
            return {**_refusal(error), "explorer": visit.view(notice=plain(error))}
        visit.pending_release, visit.wants_race = run, again
        text = f"{words.AGAIN}." if again else words.waiting_to_measure(run.config.top_p)
        live = {"text": text, "done": 0, "release": True}
        return {"explorer": visit.view(live=live), "cancel": gr.update(visible=True)}

    def run_pending(self, visit: Visit) -> Generator[Update]:
        """The run that waits: both sides, or the sparse one where this visit has the dense one."""
        with visit.turn("run") as is_mine:
            if is_mine:
                run, visit.pending, visit.pending_release = visit.pending, None, None
                yield from self._run(visit, run, is_release=False)
            else:
                yield {}

    def run_release(self, visit: Visit) -> Generator[Update]:
        """The run that the budget slider asked for."""
        with visit.turn("release") as is_mine:
            if is_mine:
                run, visit.pending_release = visit.pending_release, None
                yield from self._run(visit, run, is_release=True)
            else:
                yield {}

    def stop(self, visit: Visit) -> Update:
        """Cancel what runs and what waits."""
        is_running = visit.execution is not None
        visit.cancel()
        if not is_running:
            return {"status": say(words.CANCELLED), **_buttons(False), **_workspace(visit)}
        live = {"text": words.STOPPING, "stopping": True, "release": not visit.is_comparing}
        return {
            "status": say(words.STOPPING),
            "cancel": gr.update(interactive=False),
            "explorer": visit.view(live=live),
        }

    def _run(
        self, visit: Visit, run: Run | None, is_release: bool, started: Execution | None = None
    ) -> Generator[Update]:
        """Execute a run, and show what came of it in one sentence; whatever fails, all stays.

        Args:
            started: the run, where it goes on already.
        """
        if run is None:  # refused, replaced by a newer one, or cancelled while it waited
            yield {}
            return
        before = visit.open_trace
        visit.is_comparing = not is_release
        try:
            made = yield from self._execute(visit, run, is_release, started)
            joins = True
            if is_release and visit.open_trace is not before:  # its trace is not the open one
                visit.dense = made.dense
            else:
                joins = visit.add(made, self.traces)
            text = words.outcome(made.result)
            if is_release and not joins:
                text += f" {words.APART}"
            final = (text, "warn" if made.result.get("warnings") else "done")
        except Cancelled as stopped:
            final = (words.CANCELLED_RUN,)
            if stopped.dense is not None:
                visit.dense = stopped.dense
                final = (words.CANCELLED_AFTER_DENSE,)
        except GpuUnavailable as error:
            visit.dense = error.dense or visit.dense
            final = (plain(error), "warn")
        except BAD_INPUT as error:
            final = (plain(error), "warn")
        except Exception as error:
            hidden = (run.request.prompt, run.request.negative_prompt)
            log.exception("A run failed.", extra={"hidden": hidden})
            final = (words.DISK_FULL if is_full(error) else words.FAILED, "warn")
        finally:  # a visitor who went away closes this where it waits
            visit.is_comparing = False
        yield _end(visit, *final)

    def _execute(
        self, visit: Visit, run: Run, is_release: bool, started: Execution | None
    ) -> Generator[Update, None, Comparison]:
        """Show the progress of a run, and return what it made; raises whatever stopped it."""
        if started is None:
            dense = None if is_release and visit.wants_race else visit.dense_of(run)
            policy = RELEASE_POLICY if is_release else None
            visit.execution = self.runner.start(run, dense, policy)
            visit.doing, visit.latest = (run, dense, is_release), None
        _, dense, _ = visit.doing or (None, None, None)
        execution = started or visit.execution
        assert execution is not None
        lead = words.measuring(run.config.top_p) if is_release else ""
        if is_release and visit.wants_race:
            lead = f"{words.AGAIN}: "
        runs = words.runs_of(run, with_dense=dense is None)
        is_kept = False
        known = [visit.latest] if visit.latest else []  # the next may be a long step away
        try:
            for progress in chain(known, execution):
                if execution.is_cancelled:
                    continue
                visit.latest = progress
                done = words.share_done(progress, runs)
                yield {
                    "status": words.progress_bar(progress, done),
                    **_buttons(True, is_release),
                    "explorer": visit.view(live=words.live_of(progress, done, lead)),
                }
            return execution.result()
        except GeneratorExit:  # the connection was lost; the tab may have come back before
            is_kept = visit.execution is not execution or self._keep(visit)
            raise
        finally:
            if not is_kept:
                execution.cancel()
                visit.execution = visit.doing = None

    # Traces --------------------------------------------------------------------------------------

    def choose_trace(self, visit: Visit, key: Any) -> Update:
        """Open the trace of a key; the open one stays where there is none."""
        chosen = self.traces.get(key) if isinstance(key, str) else None
        if chosen is None:
            return _workspace(visit)
        visit.show(chosen)
        return {"prompt": chosen.prompt, **_workspace(visit)}

    def follow_link(self, visit: Visit, event: gr.EventData) -> Update:
        """A link in the browser opened another trace."""
        return self.choose_trace(visit, _sent(event, "trace"))

    def receive_trace(self, visit: Visit, data: bytes | None) -> Update:
        """Open an uploaded trace; a bad one changes nothing but the message.

        A clip in its place fills the form with what it was made with.
        """
        if data is not None and is_mp4(data):
            return self._like_clip(data)
        try:
            visit.show(self.traces.receive(data or b"", visit.open_trace))
        except TraceError as error:
            return _refusal(error)
        finally:
            self.traces.freed()
        return {"status": say(words.TRACE_OPEN, "done"), **_workspace(visit)}

    def _like_clip(self, data: bytes) -> Update:
        """The form as it was for an uploaded clip; one that does not tell changes nothing."""
        try:
            found, left_out = read_clip(self.studio, data)
        except BAD_INPUT as error:
            return _refusal(error)
        return {"status": say(words.like_clip(left_out), "warn" if left_out else "done"), **found}


def _sent(event: gr.EventData, name: str) -> Any:
    """A field of what the browser sent, which may be anything; None where it is missing."""
    return getattr(event, name, None)


def _refusal(error: Exception) -> Update:
    return {"status": say(plain(error), "warn")}


def _buttons(is_busy: bool, is_release: bool = False) -> Update:
    return {
        "generate": gr.update(interactive=not is_busy or is_release),
        "cancel": gr.update(visible=is_busy, interactive=True),
    }


def _workspace(visit: Visit) -> Update:
    shown = visit.open_trace
    is_open = shown is not None
    return {
        "ready": shown.key if is_open and shown.mode == READY_MADE else None,
        "explorer": gr.update(value=visit.view(), visible=is_open),
        "nothing": gr.update(visible=not is_open),
        "links": words.links_to(shown),
    }


def _end(visit: Visit, text: str, kind: str = "quiet") -> Update:
    """A run has come to its end; another that waits keeps its own words and buttons."""
    if visit.pending is not None:
        return _workspace(visit)
    return {"status": say(text, kind), **_buttons(False), **_workspace(visit)}
