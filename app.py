"""The page: its layout, the wires between components and handlers, and how it is served."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The program owns the process: both are read when a library is loaded, so they come first.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of torch leave their cores

from viz.page import environment

with environment.refused_at_start(), environment.reaching_itself():
    environment.before_gradio()
    import gradio as gr  # makes a client, and fails on a proxy that it can't use

from svg2.models.catalogue import MODELS
from svg2.process import keep_freed_memory, trim_memory
from svg2.runs.jobs import Studio
from viz.page import service
from viz.page.address import CHOICES, FIND_TICKET, OF_METHOD, SETTINGS, WRITE_ADDRESS
from viz.page.api import Api
from viz.page.files import routes
from viz.page.handlers import Page
from viz.page.layout import Controls, Start, Workspace, visit_state
from viz.page.open_traces import OpenTraces, read_traces
from viz.page.theme import HEAD, STYLE, theme
from viz.page.wires import Wires

TRACES = Path(__file__).resolve().parent / "assets" / "traces"
MAX_EVENTS = 100  # of all visitors at once; a run that waits or goes on is one of them
HOUR_SECONDS = 3600  # uploads are looked through each hour, and gone after a day


def build_page(studio: Studio, traces: OpenTraces) -> gr.Blocks:
    """Layout first, then the wires."""
    page, start = Page(studio, traces), Start.of(studio, traces)  # a Page may load the model
    with gr.Blocks(
        title="SVG2 Lab", fill_width=True, delete_cache=(HOUR_SECONDS, 24 * HOUR_SECONDS)
    ) as blocks:
        visit, ticket = visit_state(start.visit), gr.Textbox(visible=False)
        with gr.Row(elem_id="lab"):
            controls = Controls.of(start)
            workspace = Workspace.of(start)
        wires = Wires({"visit": visit, "ticket": ticket, **vars(controls), **vars(workspace)})
        connect(wires, blocks, controls, workspace, page)
        Api(studio, traces, page.runner).register()
    return blocks


def connect(
    wires: Wires, blocks: gr.Blocks, controls: Controls, workspace: Workspace, page: Page
) -> None:
    """Each event of the page to its handler, with what it reads and what it may change."""
    c, explorer, to = controls, workspace.explorer, wires.connect
    settings, inputs = " ".join(SETTINGS), " ".join((*SETTINGS, *CHOICES))
    methods = " ".join(OF_METHOD)
    opened = "explorer nothing links prompt ready"
    ran = "status explorer nothing links ready generate cancel"
    checked, asked = "status note generate cancel", "status explorer cancel"

    found = f"{settings} status note {opened} cancel generate"
    arrived = to([blocks.load], page.arrive, "visit ticket", found, js=FIND_TICKET)
    wires.then(arrived, page.resume, "visit", ran)
    to([blocks.load], page.list_models, "", "menu")
    blocks.unload(page.leave)
    models = [c.model.input, c.preset.input]
    to(models, page.pick_model, "model preset", f"{settings} about_model image")
    to([c.method.input], page.pick_method, "model preset method", f"{methods} about_model")
    to([c.method.change], page.describe_method, "method", "about_method")
    shapes = [c.image.change, c.width.change, c.height.change]
    to(shapes, page.show_cut, "image width height", "image_cut")
    to([c.prompt.input], page.hint, "model prompt", "note", trigger_mode="always_last")
    to([c.surprise.click], page.suggest_prompt, "", "prompt")
    starts = [c.generate.click, c.prompt.submit]
    prepared = to(starts, page.prepare, f"visit {inputs}", checked, js=WRITE_ADDRESS)
    wires.then(prepared, page.run_pending, "visit", ran)
    every = {"trigger_mode": "multiple"}
    released = to([explorer.release], page.release_budget, "visit", asked, **every)
    wires.then(released, page.run_release, "visit", ran, **every)
    to([c.cancel.click, explorer.stop], page.stop, "visit", ran)
    to([c.ready.input], page.choose_trace, "visit ready", opened)
    to([explorer.select], page.follow_link, "visit", opened)
    one = {"concurrency_limit": 1}  # reading a file takes memory
    to([c.upload.upload], page.receive_trace, "visit upload", f"{inputs} {ran}", **one)


def launch(studio: Studio, traces: OpenTraces, **options: Any) -> gr.Blocks:
    """Serve the page; `options` go to Gradio."""
    blocks = build_page(studio, traces)
    with environment.reaching_itself(needs_network=bool(options.get("share"))):
        blocks.queue(max_size=MAX_EVENTS).launch(
            theme=theme(),
            css_paths=STYLE,
            head=HEAD,
            footer_links=[],
            ssr_mode=False,
            max_file_size="64mb",
            max_threads=MAX_EVENTS,
            state_session_capacity=2000,  # Gradio keeps 0.1 MB of each, also of closed pages
            app_kwargs={"routes": [*routes(traces), service.health_route(studio)]},
            **options,
        )
    return blocks


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    asked = service.parse_options(argv)
    keep_freed_memory()
    service.log_as_json()
    studio = service.studio_of(asked)
    with environment.refused_at_start():
        service.check_mcp(asked)
        if studio.model not in MODELS:
            _ = studio.spec
        environment.check_upload_folder()
        traces = OpenTraces(read_traces(TRACES), freed=trim_memory)
        options = {
            "server_port": asked.port,
            "share": asked.share,
            "mcp_server": asked.mcp or None,
        }
        told = service.told_to_end()
        blocks = launch(studio, traces, prevent_thread_lock=True, **options)
        service.check_mcp_is_up(blocks)
    service.load_in_background(studio)  # after the page is up, which needs none of it
    service.serve_until_told(blocks, told)


if __name__ == "__main__":
    main()
