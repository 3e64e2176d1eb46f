"""Every sentence that the page says, and how each is marked up."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from svg2.errors import RequestError
from svg2.method.selection import METHODS
from svg2.models.catalogue import MODELS
from svg2.models.finding import BUILTIN_FOLDER
from svg2.models.inputs import describe_cut, picture_of_cut
from svg2.models.loading import resolve_device
from svg2.models.prompts import knowledge_of
from svg2.runs.jobs import Studio
from svg2.runs.outlook import budget_warning, forecast
from svg2.runs.progress import Progress
from svg2.runs.provenance import hardware
from svg2.runs.run import Run
from viz.bench_figures import page_markup
from viz.frames import png_bytes
from viz.page.environment import is_on_zero_gpu
from viz.page.open_traces import OpenTrace

ROOT = Path(__file__).resolve().parents[2]
KNOWN = knowledge_of(BUILTIN_FOLDER)

RUN_TITLES = {
    "": "Model",
    "stock": "Dense run, prompt padding masked",
    "dense": "Dense run",
    **{method.name: method.title for method in METHODS.values()},
}
STAGES = {
    "gpu": "waiting for a GPU",
    "load": "loading",
    "warm up": "warming up",
    "encode": "reading the prompt",
    "decode": "decoding frames",
    "measure": "measuring",
}
MASTHEAD = """
<a class="skip" href="#workspace" onclick="const place = document.getElementById('workspace');
  place.tabIndex = -1; place.focus(); return false">Skip to the comparison</a>
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
BEYOND = f"""
<details><summary>Beyond this clip: every method, other sizes, a GPU</summary>
{page_markup("bench")}</details>
"""

WAITING = "Waiting for its turn."
UNDER_WAY = "A run is under way; the budget can be run after it."
JUST_REPLACED = "A newer run was just opened: measure the budget there."
NO_LONGER_OPEN = "This trace is no longer open here: open it again, or generate anew."
APART = (
    "The dense clip made here differs from the one that was open, so this is a comparison of its "
    "own; the other is still in the list above."
)
STOPPING = "Stopping after this layer."
CANCELLED = "Cancelled."
CANCELLED_RUN = "Cancelled. What was shown before stays."
CANCELLED_AFTER_DENSE = (
    "Cancelled. The dense run is done and kept: the same video again makes the sparse side alone."
)
FAILED = "The run failed. What was shown before stays."
DISK_FULL = (
    "The run was made, but there is no room for its clips: the disk of this server is full. What "
    "was shown before stays."
)
TRACE_OPEN = "The trace is open."


def like_clip(left_out: list[str]) -> str:
    """Said where a clip has filled the form."""
    filled = "The form is as it was for this clip"
    if not left_out:
        return f"{filled}."
    return f"{filled}, but for what the page can't take from it: {', '.join(left_out)}."


_FIELDS = {
    "num_inference_steps": "steps",
    "num_frames": "frames",
    "num_q_clusters": "query clusters",
    "num_k_clusters": "key clusters",
    "guidance_scale": "guidance",
    "guidance_scale_2": "guidance of the second transformer",
    "true_cfg_scale": "true guidance",
    "negative_prompt": "negative prompt",
    "min_keep_ratio": "least share kept",
    "warmup_fraction": "share of dense steps",
    "dense_layers": "dense layers",
    "kmeans_iters_init": "first k-means iterations",
    "kmeans_iters_step": "k-means iterations a step",
    "top_p": "top-p",
}


def named(field: str) -> str:
    """A field of a request or of settings as the page names it."""
    return _FIELDS.get(field, field.replace("_", " "))


_FIELD = re.compile(rf"(^|: |\. )?\b({'|'.join(_FIELDS)})\b")


def plain(error: Exception) -> str:
    """The error's own sentence, with fields as the page names them and no folders of ours."""
    return _as_named(str(error).replace(f"{ROOT}{os.sep}", ""))


def _as_named(text: str) -> str:
    def as_named(found: re.Match[str]) -> str:
        start, name = found[1], _FIELDS[found[2]]
        return name if start is None else f"{start}{name[0].upper()}{name[1:]}"

    return _FIELD.sub(as_named, text)


def say(text: str, kind: str = "quiet") -> str:
    """One sentence under the buttons; kind is quiet, done or warn."""
    role = "alert" if kind == "warn" else "status"
    return f'<p class="say {kind}" role="{role}">{html.escape(text)}</p>'


def image_cut(path: str, width: int, height: int) -> str:
    """The start image with what the video cuts away dimmed; empty where nothing is.

    Raises:
        RequestError: an image that can't be read.
    """
    sentence = describe_cut(path, width, height)
    if not sentence:
        return ""
    picture = base64.b64encode(png_bytes(np.asarray(picture_of_cut(path, width, height))))
    return (
        f'<img class="cut" alt="" src="data:image/png;base64,{picture.decode()}">{say(sentence)}'
    )


def progress_parts(progress: Progress) -> tuple[str, str, str]:
    """Which run, which stage or step k of n, and the time left."""
    who = RUN_TITLES.get(progress.run, progress.run)
    stage = STAGES.get(progress.stage, progress.stage)
    if progress.stage == "wait":
        who = "Waiting"
        stage = "1 run goes first" if progress.ahead == 1 else f"{progress.ahead} runs go first"
    if progress.stage == "denoise":
        stage = f"step {progress.step} of {progress.num_steps}"
    left = ""
    if progress.eta_seconds is not None:
        seconds = max(1, round(progress.eta_seconds))
        left = f"{seconds} s" if seconds < 100 else f"{seconds // 60} min {seconds % 60} s"
        left = f"about {left} left"
    return who, stage, left


def runs_of(run: Run, with_dense: bool) -> tuple[str, ...]:
    """The generations that a run takes, as progress names them; dense takes two if text joins."""
    if not with_dense:
        return (run.method.name,)
    return (*(["stock"] if run.kind.joint_text else []), "dense", run.method.name)


def share_done(progress: Progress, runs: tuple[str, ...]) -> float:
    """How much of all `runs` is done, 0 to 1."""
    before = runs.index(progress.run) if progress.run in runs else 0
    if progress.beside is not None:  # the last two take turns
        sides = _done(progress) + _done(progress.beside)
        return (len(runs) - 2 + sides) / len(runs)
    return (before + _done(progress)) / len(runs)


def _done(progress: Progress) -> float:
    if progress.stage in ("decode", "measure"):
        return 1.0
    return progress.step / progress.num_steps if progress.num_steps else 0.0


def progress_bar(progress: Progress, done: float) -> str:
    who, stage, left = map(html.escape, progress_parts(progress))
    return (
        f'<div class="progress" role="progressbar" aria-label="Generation" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{100 * done:.0f}">'
        f"<p><strong>{who}</strong><span>{stage}</span><span class='left'>{left}</span></p>"
        f'<div class="track"><i style="width:{100 * done:.1f}%"></i></div></div>'
    )


def waiting_to_measure(top_p: float) -> str:
    return f"Waiting to measure top-p {top_p:g}."


AGAIN = "Measuring again"


def measuring(top_p: float) -> str:
    """Said before the progress of a run that the budget slider asked for."""
    return f"Measuring top-p {top_p:g}: "


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
        live["preview"] = _data_url(progress.preview)
    if progress.beside is not None:
        both = sorted((progress, progress.beside), key=lambda side: side.run != "dense")
        live["sides"] = [_side_of(side) for side in both]
        live["density"] = list(both[-1].density)
    return live


def _side_of(progress: Progress) -> dict[str, Any]:
    """One side of a race: how far it is by its own clock."""
    side: dict[str, Any] = {
        "name": RUN_TITLES.get(progress.run, progress.run),
        "stage": progress_parts(progress)[1],
        "step": progress.step,
        "num_steps": progress.num_steps,
        "seconds": progress.seconds,
    }
    if progress.preview is not None:
        side["preview"] = _data_url(progress.preview)
    return side


def _data_url(picture: UInt8[ndarray, "Y X 3"]) -> str:
    """A picture of at most about 256 pixels a side as a PNG's address."""
    stride = max(1, max(picture.shape) // 256)
    png = base64.b64encode(png_bytes(picture[::stride, ::stride]))
    return f"data:image/png;base64,{png.decode()}"


def outcome(result: dict[str, Any]) -> str:
    psnr = result["psnr_db"]
    fidelity = "identical to dense" if psnr is None else f"{psnr:.1f} dB against dense"
    return " ".join([f"Done: {pace(result)}, {fidelity}.", *result.get("warnings", ())])


def before_run(run: Run, traces: Iterable[OpenTrace]) -> str:
    """What to expect of a run: of its prompt, of its budget, and of its time on this machine."""
    request = run.request
    note = grammar_note(request.prompt) if request.model == "builtin" else ""
    results = [of.result for open_trace in traces for of in open_trace.trace.runs]
    warning = budget_warning(run, results)
    if warning is not None:
        note += say(_as_named(warning), "warn")
    if not is_on_zero_gpu():  # the GPU is known inside a call alone
        note += say(forecast(run, hardware(resolve_device(request.device))))
    return note


def pace(result: dict[str, Any]) -> str:
    """How fast the sparse run was, in words; no number where the timing was disturbed."""
    speedup = result["speedup"]
    if result.get("is_disturbed"):
        return "timing disturbed, so no speedup is given"
    if speedup >= 0.995:
        return f"{speedup:.2f}× as fast as dense here"
    return f"{1 / speedup - 1:.0%} slower than dense here"


def about_method(method: str) -> str:
    """What a method does, in one line; empty for no method."""
    if not isinstance(method, str) or method not in METHODS:
        return ""
    line = METHODS[method].line
    return say(f"{line[0].upper()}{line[1:]}.")


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
    """The title of a model of the menu; the id itself where there is no such model."""
    try:
        return MODELS.get(model) or studio.spec_of(model).title
    except RequestError:
        return model


def model_note(studio: Studio, model: str) -> str:
    """What a chosen model takes, and why it can't run here where it can't."""
    spec = studio.spec_of(model)
    missing = studio.why_not(model)
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
    """Every model of the menu; those that can't run here are folded into one line."""
    here, elsewhere = [], []
    for model in studio.models:
        try:
            missing = studio.why_not(model)
        except RequestError as error:
            missing = plain(error)
        (here if missing is None else elsewhere).append(
            f"<li><strong>{html.escape(model_title(studio, model))}</strong>: "
            f"{html.escape(missing or 'runs here')}</li>"
        )
    shown = f"<ul>{''.join(here)}</ul>" if here else ""
    if not elsewhere:
        return shown
    verb = "model" if len(elsewhere) == 1 else "models"
    return (
        f"{shown}<details><summary>{len(elsewhere)} {verb} of the menu can't run here</summary>"
        f"<ul>{''.join(elsewhere)}</ul></details>"
    )


def links_to(open_trace: OpenTrace | None) -> str:
    if open_trace is None:
        return ""
    folder = f"lab/{open_trace.key}"
    return (
        f"<p class='source'>{html.escape(open_trace.source)}</p>"
        f'<p><a href="{folder}/trace.npz" download>Download this trace</a></p>'
        f'<p><a href="{folder}/export.zip" download>Download clips, pictures and an offline'
        " page</a></p>"
    )
