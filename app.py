"""The page: inputs on the left, the explorer on the right, and the wires between them."""

from __future__ import annotations

import argparse
import base64
import html
import logging
import os
import secrets
import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

from svg2.config import METHODS, SVG2Config, method_config
from svg2.errors import Cancelled, ConfigError, ModelUnavailable, RequestError, TraceError
from svg2.models.catalogue import MODELS
from svg2.models.finding import BUILTIN_FOLDER, model_spec
from svg2.models.loading import availability
from svg2.models.prompts import knowledge_of
from svg2.models.request import Request, ResolvedRequest
from svg2.models.spec import PRESETS
from svg2.runs.dense_sparse import Comparison, DenseRun, Progress, add_run
from svg2.runs.jobs import Job, Studio, Wish
from svg2.trace.file import load_trace
from svg2.trace.records import RecordingPolicy
from viz import explorer_component, explorer_value
from viz.frames import png_bytes
from viz.shelf import Shelf, Shown, read_traces, without_records, without_run

ROOT = Path(__file__).resolve().parent
TRACES = ROOT / "assets" / "traces"
STYLE = ROOT / "assets" / "static" / "page.css"
KNOWN = knowledge_of(BUILTIN_FOLDER)
MAX_RECORDED = 10  # runs of one trace with their clusters; older ones keep clip and numbers
MAX_RUNS = 40
HOUR_SECONDS = 3600  # uploads are looked through each hour, and gone after a day
RELEASE_POLICY = RecordingPolicy(max_bytes=2 << 20)
BAD_INPUT = (RequestError, ConfigError, ModelUnavailable, TraceError)

METHOD_TITLES = {"svg2": "SVG2", "svg2-comp": "SVG2 + compensation"}
RUN_TITLES = {
    "": "Model",
    "stock": "Dense run, prompt padding masked",
    "dense": "Dense run",
    **METHOD_TITLES,
}
STAGES = {
    "load": "loading",
    "warm up": "warming up",
    "encode": "reading the prompt",
    "decode": "decoding frames",
    "measure": "measuring",
}
MASTHEAD = """
<h1>SVG2 Lab</h1>
<p>One video, made twice: with dense attention, and with
<a href="https://arxiv.org/abs/2505.18875" target="_blank" rel="noreferrer">SVG2</a> sparse
attention. See what was skipped, what it saved, and what it cost.</p>
<button id="settings" type="button" aria-expanded="false" aria-controls="controls"
  onclick="this.setAttribute('aria-expanded', this.getAttribute('aria-expanded') !== 'true')"
>Make or open another video</button>
"""
EMPTY = """
<div class="nothing"><h2>No trace is open</h2>
<p>There is no ready-made trace in this copy. Press <strong>Generate</strong> to make one, or open
a trace file.</p></div>
"""
NUMBERS: dict[str, type] = {
    "top_p": float,
    "num_q_clusters": int,
    "num_k_clusters": int,
    "seed": int,
    "num_inference_steps": int,
    "num_frames": int,
    "height": int,
    "width": int,
    "guidance_scale": float,
}
SETTINGS = ("prompt", "method", *NUMBERS)
# Not in the address: what they mean for the rest depends on the model, and files stay here.
CHOICES = ("model", "preset", "image", "negative_prompt")
# Runs in the browser before the inputs are sent: the address then opens the same settings again.
WRITE_ADDRESS = f"""(visit, ...values) => {{
  const query = new URLSearchParams(window.location.search);
  {list(SETTINGS)!r}.forEach((name, i) => {{
    const text = String(values[i] ?? '');
    if (!text || text.length > 600) query.delete(name);
    else query.set(name, text);
  }});
  window.history.replaceState(null, '', '?' + query + window.location.hash);
  return [visit, ...values];
}}"""

# A slide shows the workspace alone: `?embed=1`, and `&view=masks` or another for one view of it.
HEAD = """<script>
if (new URLSearchParams(location.search).get('embed') === '1')
  document.documentElement.classList.add('embed');
</script>"""

REQUEST_NAMES = (
    *("prompt", "negative_prompt", "seed", "height", "width", "num_frames"),
    *("num_inference_steps", "guidance_scale"),
)

Update = dict[Any, Any]  # component to its new value: each wire gives back only what it changes

log = logging.getLogger("app")


# What lies open ----------------------------------------------------------------------------------


class Visit:
    """One open page: what is shown, this visit's dense run, what was asked for, what runs."""

    def __init__(self, shown: Shown | None = None, model: str = "") -> None:
        self.model = model
        self.dense: DenseRun | None = None
        self.wish: Wish | None = None
        self.release: Wish | None = None
        self.job: Job[Comparison] | None = None
        self.is_making_both = False
        self.open(shown)

    def __deepcopy__(self, memo: dict[int, Any]) -> Visit:
        return Visit(self.shown, self.model)  # gr.State copies its first value for each visitor

    def open(self, shown: Shown | None) -> None:
        self.shown = shown
        self.num_given = len(shown.trace.runs) if shown else 0
        self.request: ResolvedRequest | None = None  # of what is shown, where this visit made it

    def cancel(self) -> None:
        self.wish = self.release = None
        if self.job is not None:
            self.job.cancel()

    def view(self, **extra: Any) -> dict[str, Any]:
        """The explorer's value. A budget can be run where the trace is of the model at hand."""
        if self.shown is None:
            return {}
        is_ours = self.shown.trace.request.get("model") == self.model
        can_run = is_ours or self.request is not None
        return explorer_value(f"lab/{self.shown.key}/payload", can_run=can_run, **extra)

    def wish_at(self, studio: Studio, run: int, method: str, top_p: float) -> Wish:
        """The request of the trace that is shown, with the settings of one of its runs.

        Raises:
            RequestError, ConfigError: it can't be run.
        """
        if self.shown is None or not 0 <= run < len(self.shown.trace.runs):
            raise RequestError("This run is no longer open.")
        trace, request = self.shown.trace, self.request
        if request is None:
            given = {name: trace.request[name] for name in REQUEST_NAMES if name in trace.request}
            request = Request(model=studio.model, **given).resolve(studio.spec)
        config = SVG2Config().replace(**trace.runs[run].config | {"top_p": top_p})
        config.check_tokens(trace.n_tokens)
        return Wish(request, method, method_config(method, config))

    def dense_of(self, wish: Wish) -> DenseRun | None:
        """This visit's dense run, where it is of the same request."""
        same = self.dense is not None and self.dense.request == wish.request
        return self.dense if same else None

    def add(self, made: Comparison, shelf: Shelf) -> None:
        """Show what was made: one more run of the trace at hand where both share a dense clip."""
        self.dense = made.dense
        live = f"live {'GPU' if 'cuda' in str(made.result['device']) else 'CPU'}"
        shown, new = self.shown, made.trace
        same = shown is not None and shown.trace.dense_mp4 == new.dense_mp4
        for name in ("model", "fps", *REQUEST_NAMES):
            same = same and shown.trace.request.get(name) == new.request.get(name)
        if shown is None or not same:
            self.open(shelf.put(new, live))
            self.request = made.dense.request
            return
        self.request = made.dense.request
        trace = add_run(shown.trace, made.dense, made.sparse, made.result)
        recorded = sorted({record.run for record in trace.records})
        older = [r for r in recorded if self.num_given <= r < len(trace.runs) - 1]
        if len(recorded) > MAX_RECORDED and older:
            trace = without_records(trace, older[0])
        if len(trace.runs) > MAX_RUNS and older:
            trace = without_run(trace, self.num_given)
        mode = shown.mode if live in shown.mode else f"{shown.mode} + {live}"
        self.shown = shelf.put(trace, mode)


VISITS: WeakValueDictionary[str, Visit] = WeakValueDictionary()


# Words on the page -------------------------------------------------------------------------------


def plain(error: Exception) -> str:
    """The error's own sentence, without where our files are on this machine."""
    return str(error).replace(f"{ROOT}{os.sep}", "")


def say(text: str, kind: str = "quiet") -> str:
    """One sentence under the buttons; kind is quiet, done or warn."""
    role = "alert" if kind == "warn" else "status"
    return f'<p class="say {kind}" role="{role}">{html.escape(text)}</p>'


def progress_parts(progress: Progress) -> tuple[str, str, str]:
    """Which run, which stage or step k of n, and the time left."""
    who = RUN_TITLES.get(progress.run, progress.run)
    stage = STAGES.get(progress.stage, progress.stage)
    if progress.stage == "denoise":
        stage = f"step {progress.step} of {progress.num_steps}"
    left = ""
    if progress.eta_seconds is not None:
        seconds = max(1, round(progress.eta_seconds))
        left = f"{seconds} s" if seconds < 100 else f"{seconds // 60} min {seconds % 60} s"
        left = f"about {left} left"
    return who, stage, left


def runs_of(wish: Wish, with_dense: bool) -> tuple[str, ...]:
    """The runs that a wish takes, as progress names them; a joint model's dense side takes two."""
    if not with_dense:
        return (wish.method,)
    is_joint = model_spec(wish.request.model).kind_for(wish.request).joint_text
    return (*(["stock"] if is_joint else []), "dense", wish.method)


def share_done(progress: Progress, runs: tuple[str, ...]) -> float:
    """How much of all `runs` is done, 0 to 1."""
    done = progress.step / progress.num_steps if progress.num_steps else 0.0
    done = 1.0 if progress.stage in ("decode", "measure") else done
    before = runs.index(progress.run) if progress.run in runs else 0
    return (before + done) / len(runs)


def progress_bar(progress: Progress, done: float) -> str:
    who, stage, left = map(html.escape, progress_parts(progress))
    return (
        f'<div class="progress" role="progressbar" aria-label="Generation" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{100 * done:.0f}">'
        f"<p><strong>{who}</strong><span>{stage}</span><span class='left'>{left}</span></p>"
        f'<div class="track"><i style="width:{100 * done:.1f}%"></i></div></div>'
    )


def live_of(progress: Progress, done: float, lead: str = "") -> dict[str, Any]:
    """A run in progress as the explorer shows it."""
    live: dict[str, Any] = {
        "text": lead + ", ".join(filter(None, progress_parts(progress))) + ".",
        "done": done,
        "stage": progress.stage,
        "step": progress.step,
        "num_steps": progress.num_steps,
        "density": list(progress.density),
        "release": bool(lead),
    }
    if progress.preview is not None:
        stride = max(1, max(progress.preview.shape) // 256)
        png = base64.b64encode(png_bytes(progress.preview[::stride, ::stride]))
        live["preview"] = f"data:image/png;base64,{png.decode()}"
    return live


def outcome(result: dict[str, Any]) -> str:
    psnr = result["psnr_db"]
    fidelity = "identical to dense" if psnr is None else f"{psnr:.1f} dB against dense"
    return f"Done: {result['speedup']:.2f}× as fast as dense here, {fidelity}."


def grammar_note(prompt: str) -> str:
    """Said of prompts that the built-in model was not trained on."""
    if KNOWN.covers(prompt):
        return ""
    new = ", ".join(KNOWN.unknown_words(prompt)[:8])
    return say(
        "The built-in model knows only its own grammar, so expect a guess."
        + (f" New words to it: {new}." if new else "")
        + f" It knows {'one object' if KNOWN.max_bodies == 1 else 'one object or two'}"
        f" ({', '.join(KNOWN.colours)}; {', '.join(KNOWN.shapes)})"
        f" on a {' or a '.join(KNOWN.grounds)}."
    )


def model_title(studio: Studio, model: str) -> str:
    return MODELS.get(model) or studio.spec_of(model).title


def model_note(studio: Studio, model: str) -> str:
    """What a chosen model takes, and why it can't run here where it can't."""
    spec = studio.spec_of(model)
    missing = availability(spec)
    parts = [missing or spec.needs]
    need = spec.memory(spec.num_frames, spec.height, spec.width)
    if need is not None and spec.published is not None:
        parts.append(
            f"At {spec.width} by {spec.height} SVG2 adds about {100 * need.added_share:.0f} % "
            f"to the memory of a dense step. Licence: {spec.published.license}. "
            f"Settings: {spec.published.source}."
        )
    return say(" ".join(parts), "warn" if missing else "quiet")


def model_list(studio: Studio) -> str:
    """Every model of the menu, and what keeps it from running here."""
    rows = []
    for model in studio.models:
        try:
            missing = availability(studio.spec_of(model))
        except RequestError as error:
            missing = plain(error)
        state = "runs here" if missing is None else missing
        rows.append(
            f"<li><strong>{html.escape(model_title(studio, model))}</strong>: "
            f"{html.escape(state)}</li>"
        )
    return f"<ul>{''.join(rows)}</ul>"


def links_to(shown: Shown | None) -> str:
    if shown is None:
        return ""
    return (
        f"<p class='source'>{html.escape(shown.source)}</p>"
        f'<p><a href="lab/{shown.key}/trace.npz" download>Download this trace</a></p>'
        f'<p><a href="lab/{shown.key}/export.zip" download>Download clips, pictures and an offline'
        " page</a></p>"
    )


def read_address(studio: Studio, query: dict[str, str]) -> tuple[dict[str, Any], str]:
    """The settings in the address that can be used, and a sentence about the first that can't."""
    found: dict[str, Any] = {}
    complaint = ""
    for name in SETTINGS:
        if name not in query:
            continue
        try:
            value = NUMBERS.get(name, str)(query[name])
            studio.wish({"prompt": KNOWN.examples[0], name: value})
            found[name] = value
        except BAD_INPUT as error:
            complaint = complaint or f"In this page's address: {plain(error)}"
        except ValueError:
            complaint = complaint or f"In this page's address: {name} must be a number."
    return found, complaint


# The page ----------------------------------------------------------------------------------------


def build_page(studio: Studio, shelf: Shelf) -> gr.Blocks:
    """Layout first, then the wires."""
    try:
        spec = studio.spec
        preset = {**vars(spec), **spec.config.to_dict()}
    except RequestError:
        preset = {}  # the page opens without a model too, and Generate says what is missing
    ready_made = list(shelf.ready_made.values())
    # The page opens on the prompt that its form starts with, where there is a trace of that.
    first = min(ready_made, key=lambda t: t.prompt != KNOWN.examples[0], default=None)
    start = Visit(first, studio.model if preset else "")

    def number(label: str, name: str) -> gr.Number:
        return gr.Number(preset.get(name), label=label, min_width=80, elem_id=name)

    with gr.Blocks(
        title="SVG2 Lab", fill_width=True, delete_cache=(HOUR_SECONDS, 24 * HOUR_SECONDS)
    ) as page:
        visit = gr.State(start, delete_callback=Visit.cancel)
        with gr.Row(elem_id="lab"):
            with gr.Column(elem_id="controls", scale=0, min_width=280):
                gr.HTML(MASTHEAD, elem_id="masthead")
                ready = gr.Dropdown(
                    [(shown.title, shown.key) for shown in ready_made],
                    value=first.key if first else None,
                    label="Ready-made comparisons",
                    visible=bool(ready_made),
                    elem_id="ready",
                )
                prompt = gr.Textbox(
                    KNOWN.examples[0], label="Prompt", lines=3, max_lines=6, elem_id="prompt"
                )
                with gr.Accordion("Examples", open=False):
                    gr.Examples(
                        [[text] for text in KNOWN.examples], prompt, label="", elem_id="examples"
                    )
                    surprise = gr.Button("Surprise me", size="sm", elem_id="surprise")
                with gr.Accordion("Model", open=False, elem_id="models"):
                    model = gr.Dropdown(
                        [(model_title(studio, name), name) for name in studio.models],
                        value=studio.model,
                        label="Model",
                        elem_id="model",
                    )
                    about_model = gr.HTML(elem_id="about_model")
                    image = gr.Image(
                        label="Start from this image",
                        type="filepath",
                        sources=["upload"],
                        visible=False,
                        elem_id="image",
                    )
                    negative = gr.Textbox("", label="Negative prompt", elem_id="negative")
                    preset_choice = gr.Radio(
                        [(name.capitalize(), name) for name in PRESETS],
                        value="published",
                        label="Settings",
                        elem_id="preset",
                    )
                    menu = gr.HTML(elem_id="menu")
                method = gr.Radio(
                    [(METHOD_TITLES.get(name, name), name) for name in METHODS],
                    value="svg2-comp",
                    label="Method",
                    elem_id="method",
                )
                top_p = gr.Slider(
                    *(0, 1),
                    value=preset.get("top_p", 0.9),
                    step=0.01,
                    label="Budget of the next run (top-p)",
                    info="Share of its attention mass that each query cluster keeps.",
                    elem_id="top_p",
                )
                with gr.Accordion("Clusters", open=False), gr.Row():
                    num_q = number("Of queries", "num_q_clusters")
                    num_k = number("Of keys", "num_k_clusters")
                with gr.Accordion("Video and sampling", open=False):
                    with gr.Row():
                        seed = gr.Number(0, label="Seed", min_width=80, elem_id="seed")
                        steps = number("Steps", "num_inference_steps")
                    with gr.Row():
                        width, height = number("Width", "width"), number("Height", "height")
                    with gr.Row():
                        frames = number("Frames", "num_frames")
                        guidance = number("Guidance", "guidance_scale")
                with gr.Row(elem_id="buttons"):
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    cancel = gr.Button("Cancel", visible=False, elem_id="cancel")
                status = gr.HTML(elem_id="status")
                note = gr.HTML(elem_id="note")
                with gr.Accordion("This trace", open=False, elem_id="traces"):
                    upload = gr.UploadButton(
                        "Open a trace file", type="binary", size="sm", elem_id="upload"
                    )
                    links = gr.HTML(links_to(first), elem_id="links")
            with gr.Column(elem_id="workspace", min_width=280):
                nothing = gr.HTML(EMPTY, visible=first is None, elem_id="nothing")
                explorer = gr.HTML(
                    **explorer_component(start.view()),
                    visible=first is not None,
                    elem_id="explorer",
                )

        fields = {
            "prompt": prompt,
            "method": method,
            "top_p": top_p,
            "num_q_clusters": num_q,
            "num_k_clusters": num_k,
            "seed": seed,
            "num_inference_steps": steps,
            "num_frames": frames,
            "height": height,
            "width": width,
            "guidance_scale": guidance,
        }
        choices = [model, preset_choice, image, negative]
        inputs = [*fields.values(), *choices]
        assert tuple(fields) == SETTINGS

        def buttons(is_busy: bool, is_release: bool = False) -> Update:
            return {
                generate: gr.update(interactive=not is_busy or is_release),
                cancel: gr.update(visible=is_busy, interactive=True),
            }

        def over(visit: Visit, text: str, kind: str = "quiet") -> Update:
            """A run has come to its end; another that waits keeps its own words and buttons."""
            if visit.wish is not None:
                return workspace(visit)
            return {status: say(text, kind), **buttons(False), **workspace(visit)}

        def workspace(visit: Visit, **extra: Any) -> Update:
            return {
                explorer: gr.update(value=visit.view(**extra), visible=visit.shown is not None),
                nothing: gr.update(visible=visit.shown is None),
                links: links_to(visit.shown),
            }

        def refuse(error: Exception) -> Update:
            return {status: say(plain(error), "warn")}

        def arrive(visit: Visit, request: gr.Request) -> Update:
            VISITS[str(request.session_hash)] = visit
            found, complaint = read_address(studio, dict(request.query_params))
            update: Update = {fields[name]: value for name, value in found.items()}
            if complaint:
                update[status] = say(complaint, "warn")
            return update or gr.skip()

        def pick(chosen: str, preset_name: str) -> Update:
            """Another model or preset: the fields take its settings."""
            try:
                spec = studio.spec_of(chosen).preset(preset_name)
                about = model_note(studio, chosen)
            except BAD_INPUT as error:
                return {about_model: say(plain(error), "warn")}
            size = (spec.num_frames, spec.height, spec.width)
            defaults = {**vars(spec), **spec.config_for(*size).to_dict()}
            known = (name for name in NUMBERS if name in defaults and name != "seed")
            update: Update = {fields[name]: defaults[name] for name in known}
            takes_image = spec.kind.takes == "image" or spec.expand_timesteps
            shown_image = gr.update(visible=takes_image, value=None)
            return {**update, about_model: about, image: shown_image}

        def leave(request: gr.Request) -> None:
            """Nobody waits for this run any more."""
            gone = VISITS.pop(str(request.session_hash), None)
            if gone is not None:
                gone.cancel()

        def prepare(visit: Visit, *values: Any) -> Update:
            """Check the inputs. A bad one changes nothing but the message."""
            try:
                wish = studio.wish(dict(zip((*SETTINGS, *CHOICES), values, strict=True)))
            except BAD_INPUT as error:
                return refuse(error)
            visit.cancel()  # a release gives way to a whole run
            visit.wish = wish
            is_builtin = wish.request.model == "builtin"
            about = grammar_note(wish.request.prompt) if is_builtin else ""
            return {status: say("Waiting for its turn."), note: about, **buttons(True)}

        def follow(
            visit: Visit, wish: Wish, is_release: bool
        ) -> Generator[Update, None, Comparison | None]:
            """Run a wish, show its progress, and return what it made; None where it did not."""
            dense = visit.dense_of(wish)
            policy = RELEASE_POLICY if is_release else None
            lead = f"Measuring top-p {wish.config.top_p:g}: " if is_release else ""
            runs = runs_of(wish, with_dense=dense is None)
            job = visit.job = Job(
                lambda report, stop: studio.compare(wish, report, stop, dense, policy)
            )
            try:
                for progress in job:
                    if job.is_cancelled:
                        continue
                    done = share_done(progress, runs)
                    yield {
                        status: progress_bar(progress, done),
                        **buttons(True, is_release),
                        explorer: visit.view(live=live_of(progress, done, lead)),
                    }
                return job.result()
            except Cancelled as stopped:
                final = ("Cancelled. What was shown before stays.",)
                if stopped.dense is not None:
                    visit.dense = stopped.dense
                    final = (
                        "Cancelled. The dense run is done and kept: the same video again makes"
                        " the sparse side alone.",
                    )
            except BAD_INPUT as error:
                final = (plain(error), "warn")
            except Exception:
                log.exception("A run failed.")
                final = ("The run failed. What was shown before stays.", "warn")
            finally:
                job.cancel()
                visit.job = None
            yield over(visit, *final)
            return None

        def run(visit: Visit, is_release: bool) -> Generator[Any]:
            """A wish, whole or the sparse side alone, and the trace with what it made."""
            wish = visit.release if is_release else visit.wish
            visit.release = None
            if not is_release:
                visit.wish = None
            if wish is None:  # refused, replaced by a newer one, or cancelled while it waited
                yield gr.skip()  # a generator that gives nothing would empty its outputs
                return
            before = visit.shown
            visit.is_making_both = not is_release
            try:
                made = yield from follow(visit, wish, is_release)
            finally:  # a visitor who went away closes this where it waits
                visit.is_making_both = False
            if made is None:
                return
            if is_release and visit.shown is not before:  # it belongs to what is gone from sight
                visit.dense = made.dense
            else:
                visit.add(made, shelf)
            yield over(visit, outcome(made.result), "done")

        def run_wish(visit: Visit) -> Generator[Any]:
            yield from run(visit, is_release=False)

        def run_release(visit: Visit) -> Generator[Any]:
            yield from run(visit, is_release=True)

        def released(visit: Visit, event: gr.EventData) -> Update:
            """The budget slider was let go: ask for a real run there. The newest wish counts."""
            if visit.wish is not None or visit.is_making_both:
                waits = "A run is under way; the budget can be run after it."
                return {explorer: visit.view(notice=waits)}  # the status is the run's own
            if visit.shown is None or event.trace != visit.shown.key:
                late = "A newer run was just opened: let go of the slider again to measure there."
                return {explorer: visit.view(notice=late)}
            try:
                visit.release = visit.wish_at(studio, event.run, event.method, event.top_p)
            except BAD_INPUT as error:
                return {**refuse(error), explorer: visit.view(notice=plain(error))}
            waiting = f"Waiting to measure top-p {event.top_p:g}."
            live = {"text": waiting, "done": 0, "release": True}
            return {explorer: visit.view(live=live), cancel: gr.update(visible=True)}

        def stop(visit: Visit) -> Update:
            is_running = visit.job is not None
            visit.cancel()
            if is_running:
                stopping = "Stopping after this step."
                is_release = not visit.is_making_both
                live = {"text": stopping, "stopping": True, "release": is_release}
                return {
                    status: say(stopping),
                    cancel: gr.update(interactive=False),
                    explorer: visit.view(live=live),
                }
            return {status: say("Cancelled."), **buttons(False), **workspace(visit)}

        def choose(visit: Visit, key: str) -> Update:
            shown = shelf.get(key) if isinstance(key, str) else None
            if shown is None:
                return workspace(visit)
            visit.open(shown)
            return {prompt: shown.prompt, **workspace(visit)}

        def linked(visit: Visit, event: gr.EventData) -> Update:
            """A link in the browser opened another trace."""
            update = choose(visit, event.trace)
            if visit.shown is not None and visit.shown.key in shelf.ready_made:
                update[ready] = visit.shown.key
            return update

        def receive(visit: Visit, data: bytes | None) -> Update:
            try:
                shown = shelf.put(load_trace(data or b""), "upload")
            except TraceError as error:
                return refuse(error)
            visit.open(shown)
            return {status: say("The trace is open.", "done"), **workspace(visit)}

        run_outputs = [status, explorer, nothing, links, generate, cancel]
        opened = [explorer, nothing, links, prompt]
        quick: dict[str, Any] = {
            "show_progress": "hidden",
            "concurrency_limit": None,
            "api_visibility": "private",
        }
        # One generation at a time, whoever asked for it.
        heavy = quick | {"concurrency_limit": 1, "concurrency_id": "model"}

        page.load(arrive, [visit], [*inputs, status], **quick)
        page.load(lambda: model_list(studio), None, menu, **quick)
        page.unload(leave)
        gr.on(
            [model.input, preset_choice.input],
            pick,
            [model, preset_choice],
            [*fields.values(), about_model, image],
            **quick,
        )
        gr.on(
            [generate.click, prompt.submit],
            prepare,
            [visit, *inputs],
            [status, note, generate, cancel],
            js=WRITE_ADDRESS,
            **quick,
        ).success(run_wish, [visit], run_outputs, **heavy)
        explorer.release(
            released, [visit], [status, explorer, cancel], trigger_mode="multiple", **quick
        ).success(run_release, [visit], run_outputs, trigger_mode="multiple", **heavy)
        surprise.click(
            lambda: KNOWN.random_prompt(secrets.randbelow(2**31)), None, prompt, **quick
        )
        gr.on([cancel.click, explorer.stop], stop, [visit], run_outputs, **quick)
        ready.input(choose, [visit, ready], opened, **quick)
        explorer.select(linked, [visit], [*opened, ready], **quick)
        upload.upload(receive, [visit, upload], [status, *opened], **quick)
    return page


def theme() -> gr.themes.Base:
    """The explorer's colours, so that both halves are one page; no font is fetched."""
    sans = ["-apple-system", "BlinkMacSystemFont", "Segoe UI", "Inter", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(font=sans, font_mono=mono, radius_size="md").set(
        body_background_fill="#f6f6f4",
        body_background_fill_dark="#121316",
        body_text_color="#1a1c21",
        body_text_color_dark="#ececea",
        body_text_color_subdued="#5a5f69",
        body_text_color_subdued_dark="#a3a8b2",
        background_fill_primary="#f6f6f4",
        background_fill_primary_dark="#121316",
        background_fill_secondary="#ffffff",
        background_fill_secondary_dark="#191b20",
        border_color_primary="#e2e2dd",
        border_color_primary_dark="#2d3038",
        border_color_accent="#2f56d0",
        border_color_accent_dark="#8eaeff",
        color_accent="#2f56d0",
        color_accent_soft="#eaeffc",
        color_accent_soft_dark="#232b42",
        link_text_color="#2f56d0",
        link_text_color_dark="#8eaeff",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_padding="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_title_text_color="#5a5f69",
        block_title_text_color_dark="#a3a8b2",
        block_title_text_weight="500",
        input_background_fill="#ffffff",
        input_background_fill_dark="#191b20",
        input_border_color="#c9cbd0",
        input_border_color_dark="#454a55",
        input_border_color_focus="#2f56d0",
        input_border_color_focus_dark="#8eaeff",
        input_shadow="none",
        input_shadow_focus="none",
        slider_color="#2f56d0",
        slider_color_dark="#8eaeff",
        button_primary_background_fill="#2f56d0",
        button_primary_background_fill_dark="#8eaeff",
        button_primary_background_fill_hover="#2447b4",
        button_primary_background_fill_hover_dark="#a8c1ff",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#10131c",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#191b20",
        button_secondary_border_color="#8a8f99",
        button_secondary_border_color_dark="#6d737f",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_border_width="0px",
        checkbox_label_padding="2px 0",
        checkbox_background_color_selected="#2f56d0",
        checkbox_background_color_selected_dark="#8eaeff",
        checkbox_border_color_selected="#2f56d0",
        checkbox_border_color_selected_dark="#8eaeff",
    )


def launch(studio: Studio, shelf: Shelf, **options: Any) -> gr.Blocks:
    """Serve the page; `options` go to Gradio."""
    page = build_page(studio, shelf)
    page.queue().launch(
        theme=theme(),
        css_paths=STYLE,
        head=HEAD,
        footer_links=[],
        ssr_mode=False,
        max_file_size="64mb",
        app_kwargs={"routes": [shelf.route()]},
        **options,
    )
    return page


def load_in_background(studio: Studio) -> None:
    """Have the model ready by the time somebody asks; what fails then is said when they do."""

    def load() -> None:
        try:
            studio.pipe()
        except BAD_INPUT as error:
            log.warning("%s", error)

    threading.Thread(target=load, name="load-model", daemon=True).start()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    parser = argparse.ArgumentParser(prog="python app.py", description="Serve the SVG2 Lab page.")
    parser.add_argument(
        "--model",
        default=os.environ.get("SVG2_MODEL", "builtin"),
        help="a menu name, a pipeline's folder or a hub id (default: SVG2_MODEL or builtin)",
    )
    parser.add_argument(
        "--port", type=int, help="default: GRADIO_SERVER_PORT or the first free one from 7860"
    )
    parser.add_argument("--share", action="store_true", help="also make Gradio's public link")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    studio = Studio(args.model)
    shelf = Shelf(read_traces(TRACES))
    options = {"server_port": args.port, "share": args.share, "prevent_thread_lock": True}
    try:
        page = launch(studio, shelf, **options)
    except (OSError, OverflowError) as error:
        sys.exit(f"python app.py: can't be served ({error}); name a free port by --port")
    load_in_background(studio)  # after the page is up, which needs none of it
    page.block_thread()


if __name__ == "__main__":
    main()
