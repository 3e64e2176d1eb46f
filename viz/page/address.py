"""Settings of the form from elsewhere: the page's address, or a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svg2.errors import InputError, ModelUnavailable
from svg2.runs.jobs import Studio
from svg2.trace.clip_settings import read_settings
from viz.page.words import KNOWN, named, plain

NUMBERS: Mapping[str, type] = {
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
OF_METHOD = ("top_p", "num_q_clusters", "num_k_clusters")
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


# The same for as long as the tab is open: a run goes on where the page is loaded again, as Gradio
# does after a lost connection.
FIND_TICKET = """(visit, ticket) => {
  try {
    ticket = window.sessionStorage.getItem('svg2-tab') || '';
    if (!ticket) {
      const numbers = window.crypto.getRandomValues(new Uint32Array(4));
      ticket = Array.from(numbers, (n) => n.toString(36)).join('-');
      window.sessionStorage.setItem('svg2-tab', ticket);
    }
  } catch { ticket = ''; }
  return [visit, ticket];
}"""


def read_address(studio: Studio, query: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The settings in the address that can be used, and a sentence about the first that cannot."""
    found: dict[str, Any] = {}
    complaint = ""
    for name in SETTINGS:
        if name not in query:
            continue
        try:
            value = NUMBERS.get(name, str)(query[name])
        except ValueError:
            complaint = complaint or f"In this page's address: {named(name)} must be a number."
            continue
        try:
            studio.unlimited_run({"prompt": KNOWN.examples[0], name: value})
        except (InputError, ModelUnavailable) as error:
            complaint = complaint or f"In this page's address: {plain(error)}"
        else:
            found[name] = value
    try:  # a small video may take many steps
        if found:
            studio.run({"prompt": KNOWN.examples[0], **found})
    except (InputError, ModelUnavailable) as error:
        complaint = complaint or f"In this page's address: {plain(error)}"
    return found, complaint


def read_clip(studio: Studio, data: bytes) -> tuple[dict[str, Any], list[str]]:
    """The form for a clip's settings, and what of them it can't have, each as a phrase.

    Raises:
        MediaError: a clip that does not tell.
        InputError: settings that can't be run here, or a model that this page has not.
    """
    request, config, started = read_settings(data)
    request.setdefault("model", studio.model)
    form = request | {name: config[name] for name in ("method", *OF_METHOD) if name in config}
    run = studio.run(form)  # checks it, and fills in the rest
    found = {
        name: getattr(run.request, name)
        for name in (*NUMBERS, "prompt", "negative_prompt")
        if hasattr(run.request, name)
    }
    found |= {name: getattr(run.config, name) for name in ("method", *OF_METHOD)}
    found |= {"model": run.request.model, "preset": "published"}
    left_out = [f"its {name}" for name in started]
    made = run.config.to_dict() | run.request.to_dict()
    left_out += [
        f"{name} {value}"
        for name, value in {**request, **config}.items()
        if name not in found and made.get(name) != value
    ]
    return found, left_out
