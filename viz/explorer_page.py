"""The explorer as a page of its own, and as the parts of a Gradio `gr.HTML`."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from svg2.trace.records import Trace
from viz.payload import Check, explorer_payload, no_check, payload_bytes

FOLDER = Path(__file__).parent / "explorer"
ENTRY = "mount.js"

_IMPORT = re.compile(r'^import \{([^}]*)\} from "(\.\.?/[a-z/]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (async function|function|const|class) ([A-Za-z]\w*)", re.MULTILINE)
_EXPORT_LIST = re.compile(r"^export \{([^}]*)\};\n", re.MULTILINE)


@cache
def explorer_js() -> str:
    """All modules of the explorer as one classic script that defines `svg2Explorer` with `mount`.

    A page opened from disk can't import modules, and neither can a `gr.HTML`. So each file becomes
    a function that returns its exports, called in order of need. Only named imports and exports
    are understood.

    Raises:
        ValueError: modules import each other in a circle, or use a form that is not understood.
    """
    parts: list[str] = []
    done: set[str] = set()

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"Modules import each other in a circle: {' → '.join((*path, name))}")
        if name in done:
            return
        source = (FOLDER / name).read_text(encoding="utf-8")
        for _, needed in _IMPORT.findall(source):
            add(_resolve(needed, name), (*path, name))
        parts.append(_as_function(name, source))
        done.add(name)

    add(ENTRY, ())
    return "\n".join([*parts, f"const svg2Explorer = {_variable(ENTRY)};"])


def _as_function(name: str, source: str) -> str:
    exports = [found for _, found in _EXPORT.findall(source)]
    for names in _EXPORT_LIST.findall(source):
        exports += [n.strip() for n in names.split(",") if n.strip()]

    def as_constant(found: re.Match[str]) -> str:
        names = found[1].replace(" as ", ": ").strip()
        return f"const {{{names}}} = {_variable(_resolve(found[2], name))};\n"

    source = _IMPORT.sub(as_constant, source)
    source = _EXPORT_LIST.sub("", _EXPORT.sub(r"\1 \2", source))
    if re.search(r"^(import|export)\b", source, re.MULTILINE):
        raise ValueError(f"{name} uses a form of import or export that is not understood here.")
    body = f"{source}return {{ {', '.join(exports)} }};"
    return f"// {name}\nconst {_variable(name)} = (() => {{\n{body}\n}})();"


def _resolve(needed: str, name: str) -> str:
    """The file that `name` means by a relative path, from the explorer's folder."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), needed))


def _variable(name: str) -> str:
    return f"explorer_{name.removesuffix('.js').replace('/', '_')}"


@cache
def explorer_css() -> str:
    """The explorer's style sheet; it lives in a shadow root, apart from the page around it."""
    return (FOLDER / "explorer.css").read_text(encoding="utf-8")


def explorer_html(
    trace: Trace | dict[str, Any], mode: str = "trace", check: Check = no_check
) -> str:
    """A self-contained page that works from disk with no network, clips and records inside.

    Args:
        trace: a trace, or what `explorer_payload` made of one.
        check: called again and again; what it raises ends the work.
    """
    payload = trace if isinstance(trace, dict) else explorer_payload(trace, mode)
    data = base64.b64encode(payload_bytes(payload, check)).decode()
    return _PAGE.format(js=_script(explorer_js()), css=_css_string(), data=data)


def explorer_component(
    value: dict[str, Any] | None = None, form: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Keyword arguments for `gr.HTML`. See `explorer_value` for what its value is.

    The component raises `release` when a budget is to be measured, with `top_p`, `method`, `run`
    (its index in the trace) and `trace` (the name of the one on show) in the event's data, with
    `again` where the run on show is to be made anew, its dense side too; `stop` when a run in
    progress is to stop; `select` with `trace` when a link opened another one.

    Args:
        form: CSS selectors of the form beside it: `budget`, a number field that holds the same
            budget as the slider, and `generate`, a button that starts a run.
    """
    return {
        "value": value,
        "html_template": '<div class="svg2-explorer"></div>',
        "css_template": "",
        "apply_default_css": False,
        "js_on_load": f"{explorer_js()}\nconst css = {_css_string()};\n"
        f"const form = {json.dumps(dict(form or {}))};\n{_GRADIO_GLUE}",
    }


def explorer_value(src: str, **extra: Any) -> dict[str, Any]:
    """What to give the component as its value.

    Args:
        src: address of a file with `payload_bytes`, on the page's own host. A changed address
            loads a new payload and keeps the selection; the same one leaves all as it is. Links
            name a trace by its place in `…/NAME/payload`.
        extra: any of `can_run` (bool: a budget can be measured by a real run), `has_dense` (bool:
            its dense side is made already), `notice` (why a release starts none, in one
            sentence), `live`: a run in progress, as a dict with `text`, `done`
            (0 to 1) and any of `release` (bool: of the budget slider, and shown beside it),
            `preview` (a picture as data URL), `density` (of each step so far), `stage`, `step`,
            `num_steps`, `stopping`, and `sides`: both sides of a race, each with `name`, `stage`,
            `step`, `num_steps`, `seconds` and perhaps `preview`.
    """
    return {"src": src, **extra}


def _script(source: str) -> str:
    """JavaScript that may stand inside a <script> element."""
    if "</script" in source.lower() or "<!--" in source:
        raise ValueError("The script holds text that would end its element.")
    return source


def _css_string() -> str:
    css = explorer_css().replace("\\", "\\\\").replace("`", "\\`").replace("${", "\\${")
    return f"`{css}`"


_GRADIO_GLUE = """
const host = element.querySelector('.svg2-explorer');
const explorer = svg2Explorer.mount(host, {
  css,
  onRelease: (detail) => trigger('release', detail),
  onCancel: () => trigger('stop'),
  onOpen: (detail) => trigger('select', detail),
  onAgain: form.generate && (() => document.querySelector(form.generate)?.click()),
  onBudget(budget) {
    const field = form.budget && document.querySelector(form.budget);
    if (!field || Number(field.value) === budget) return;
    field.value = budget;
    field.dispatchEvent(new Event('input', { bubbles: true }));
  },
});
document.addEventListener('input', ({ target }) => {
  const block = form.budget && document.querySelector(form.budget)?.closest('.block');
  const budget = Number(target.value);
  if (block?.contains(target) && budget > 0 && budget <= 1) explorer.selectBudget(budget);
});
watch('value', () => explorer.receive(props.value));
explorer.receive(props.value);
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none';
  script-src 'unsafe-inline'; style-src 'unsafe-inline'; media-src blob:;
  img-src data:; form-action 'none'">
<title>SVG2 Lab explorer</title>
<style>
html {{ color-scheme: light dark; }}
body {{ margin: 0; background: light-dark(#f6f6f4, #121316); }}
</style>
</head>
<body>
<main id="explorer"></main>
<noscript>This page draws everything in the browser and needs JavaScript.</noscript>
<script id="payload" type="text/plain">{data}</script>
<script>
{js}
const css = {css};
const host = document.getElementById('explorer');
const explorer = svg2Explorer.mount(host, {{ css, standalone: true }});
explorer.loadBase64(document.getElementById('payload').textContent);
</script>
</body>
</html>
"""
