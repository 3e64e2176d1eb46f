"""The components of the page by name: the column of controls, and the workspace beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from svg2.errors import RequestError
from svg2.method.selection import METHODS, ROUTED_METHOD
from svg2.models.spec import PRESETS
from svg2.runs.jobs import Studio
from viz.explorer_page import explorer_component
from viz.lessons import worksheets
from viz.page.open_traces import OpenTraces
from viz.page.visit import Visit
from viz.page.words import BEYOND, EMPTY, KNOWN, MASTHEAD, about_method, links_to, model_title

FORM = {"budget": "#top_p input[type=number]", "generate": "#generate"}
VISIT_SECONDS = 6 * 3600


def visit_state(first: Visit) -> gr.State:
    """Holds a visit per page, until the page is closed or was not used for `VISIT_SECONDS`."""
    return gr.State(first, time_to_live=VISIT_SECONDS, delete_callback=Visit.free)


@dataclass(frozen=True)
class Start:
    """What the page opens with.

    Attributes:
        visit: of a visitor who has done nothing yet.
        defaults: settings of the server's model by name; empty where there is none.
    """

    studio: Studio
    traces: OpenTraces
    visit: Visit
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, studio: Studio, traces: OpenTraces) -> Start:
        try:
            spec = studio.spec
            defaults = {**vars(spec), **spec.config_of().to_dict()}
        except RequestError:
            defaults = {}  # the page opens without a model too, and Generate says what is missing
        # The page opens on the prompt that its form starts with, where there is a trace of that.
        ready_made = traces.ready_made.values()
        first = min(ready_made, key=lambda t: t.prompt != KNOWN.examples[0], default=None)
        return cls(studio, traces, Visit(first, studio.model if defaults else ""), defaults)

    def number(self, label: str, name: str) -> gr.Number:
        return gr.Number(self.defaults.get(name), label=label, min_width=80, elem_id=name)


@dataclass(frozen=True)
class Controls:
    """The column of controls, top to bottom."""

    ready: gr.Dropdown
    prompt: gr.Textbox
    surprise: gr.Button
    model: gr.Dropdown
    about_model: gr.HTML
    image: gr.Image
    image_cut: gr.HTML
    negative_prompt: gr.Textbox
    preset: gr.Radio
    menu: gr.HTML
    method: gr.Dropdown
    about_method: gr.HTML
    top_p: gr.Slider
    num_q_clusters: gr.Number
    num_k_clusters: gr.Number
    seed: gr.Number
    num_inference_steps: gr.Number
    width: gr.Number
    height: gr.Number
    num_frames: gr.Number
    guidance_scale: gr.Number
    generate: gr.Button
    cancel: gr.Button
    status: gr.HTML
    note: gr.HTML
    upload: gr.UploadButton
    links: gr.HTML

    @classmethod
    def of(cls, start: Start) -> Controls:
        """Lay them out in the row at hand."""
        with gr.Column(elem_id="controls", scale=0, min_width=280):
            gr.HTML(MASTHEAD, elem_id="masthead")
            with gr.Column(elem_id="fields"):
                fields = {
                    **_prompt_part(start),
                    **_model_part(start),
                    **_method_part(start),
                    **_video_part(start),
                }
            return cls(**fields, **_run_part(), **_trace_part(start))


@dataclass(frozen=True)
class Workspace:
    """The explorer, or a word in its place where no trace is open; what was measured beyond it."""

    nothing: gr.HTML
    explorer: gr.HTML
    beyond: gr.HTML

    @classmethod
    def of(cls, start: Start) -> Workspace:
        """Lay it out in the row at hand."""
        is_open = start.visit.open_trace is not None
        with gr.Column(elem_id="workspace", min_width=280):
            workspace = cls(
                nothing=gr.HTML(EMPTY, visible=not is_open, elem_id="nothing"),
                explorer=gr.HTML(
                    **explorer_component(start.visit.view(), FORM),
                    visible=is_open,
                    elem_id="explorer",
                ),
                beyond=gr.HTML(BEYOND, elem_id="beyond"),
            )
            with gr.Column(elem_id="lessons"):
                for title, text in worksheets().items():
                    with gr.Accordion(title, open=False):
                        gr.Markdown(text)
            return workspace


def _prompt_part(start: Start) -> dict[str, Any]:
    ready_made, first = start.traces.ready_made.values(), start.visit.open_trace
    ready = gr.Dropdown(
        [(open_trace.title, open_trace.key) for open_trace in ready_made],
        value=first.key if first else None,
        label="Ready-made comparisons",
        visible=bool(ready_made),
        elem_id="ready",
    )
    prompt = gr.Textbox(KNOWN.examples[0], label="Prompt", lines=3, max_lines=6, elem_id="prompt")
    with gr.Accordion("Examples", open=False):
        gr.Examples([[text] for text in KNOWN.examples], prompt, label="", elem_id="examples")
        surprise = gr.Button("Surprise me", size="sm", elem_id="surprise")
    return {"ready": ready, "prompt": prompt, "surprise": surprise}


def _model_part(start: Start) -> dict[str, Any]:
    studio = start.studio
    with gr.Accordion("Model", open=False, elem_id="models"):
        return {
            "model": gr.Dropdown(
                [(model_title(studio, name), name) for name in studio.models],
                value=studio.model,
                label="Model",
                elem_id="model",
            ),
            "about_model": gr.HTML(elem_id="about_model"),
            "image": gr.Image(
                label="Start from this image",
                type="filepath",
                image_mode=None,  # the file as it is: Gradio turns 16-bit grey white
                sources=["upload"],
                visible=False,
                elem_id="image",
            ),
            "image_cut": gr.HTML(elem_id="image_cut"),
            "negative_prompt": gr.Textbox("", label="Negative prompt", elem_id="negative"),
            "preset": gr.Radio(
                [(name.capitalize(), name) for name in PRESETS],
                value="published",
                label="Settings",
                elem_id="preset",
            ),
            "menu": gr.HTML(elem_id="menu"),
        }


def _method_part(start: Start) -> dict[str, Any]:
    chosen = start.defaults.get("method", ROUTED_METHOD)
    method = gr.Dropdown(
        [(method.title, method.name) for method in METHODS.values()],
        value=chosen,
        label="Method",
        filterable=False,
        elem_id="method",
    )
    about = gr.HTML(about_method(chosen), elem_id="about_method")
    top_p = gr.Slider(
        *(0, 1),
        value=start.defaults.get("top_p", 0.9),
        step=0.005,
        label="Budget (top-p)",
        info="Share of the attention mass. It sets how many pairs are computed.",
        elem_id="top_p",
    )
    with gr.Accordion("Clusters", open=False), gr.Row():
        num_q = start.number("Of queries", "num_q_clusters")
        num_k = start.number("Of keys", "num_k_clusters")
    return {
        "method": method,
        "about_method": about,
        "top_p": top_p,
        "num_q_clusters": num_q,
        "num_k_clusters": num_k,
    }


def _video_part(start: Start) -> dict[str, Any]:
    part: dict[str, Any] = {}
    with gr.Accordion("Video and sampling", open=False):
        with gr.Row():
            part["seed"] = gr.Number(0, label="Seed", min_width=80, elem_id="seed")
            part["num_inference_steps"] = start.number("Steps", "num_inference_steps")
        for pair in (
            {"width": "Width", "height": "Height"},
            {"num_frames": "Frames", "guidance_scale": "Guidance"},
        ):
            with gr.Row():
                part |= {name: start.number(label, name) for name, label in pair.items()}
    return part


def _run_part() -> dict[str, Any]:
    with gr.Row(elem_id="buttons"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
        cancel = gr.Button("Cancel", visible=False, elem_id="cancel")
    status, note = gr.HTML(elem_id="status"), gr.HTML(elem_id="note")
    return {"generate": generate, "cancel": cancel, "status": status, "note": note}


def _trace_part(start: Start) -> dict[str, Any]:
    with gr.Accordion("This trace", open=False, elem_id="traces"):
        upload = gr.UploadButton(
            "Open a trace or a clip", type="binary", size="sm", elem_id="upload"
        )
        links = gr.HTML(links_to(start.visit.open_trace), elem_id="links")
    return {"upload": upload, "links": links}
