"""What a clip was made with, in its own MP4: written with it, and read back from it.

It is JSON in the comment of the file, a tag that players show and that copies of the file keep.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svg2.errors import MediaError
from svg2.trace.video import read_tags

REQUEST_FIELDS = (
    *("prompt", "negative_prompt", "model", "seed", "height", "width", "num_frames"),
    *("num_inference_steps", "guidance_scale", "guidance_scale_2", "true_cfg_scale"),
)
MAX_BYTES = 64 << 20
_KEY = "svg2_lab"
_MAX_CHARS = 100_000


def tags_of(request: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The tags of a clip, for `svg2.trace.video.encode_mp4`.

    Args:
        request: fields of the request by name, of which those of the video are kept.
        config: settings of the method; None for a dense clip.
    """
    fields = {name: request[name] for name in REQUEST_FIELDS if request.get(name) is not None}
    started = [name for name in ("image", "video") if request.get(name) is not None]
    content = {_KEY: 1, "request": fields, "started_from": started}
    if config is not None:
        content["config"] = dict(config)
    return {"title": request["prompt"], "comment": json.dumps(content)}


def is_mp4(data: bytes) -> bool:
    """Whether a file begins as MP4 does."""
    return data[4:8] == b"ftyp"


def read_settings(data: bytes) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Request, settings of the method (empty for a dense clip), and what else it started from.

    Names and plain types are checked here; what they mean is checked where a run is made of them.

    Raises:
        MediaError: no MP4 video, or one that was not written by this program.
    """
    if len(data) > MAX_BYTES:
        raise MediaError(f"The clip has more than {MAX_BYTES >> 20} MB: choose one of this page.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        path.write_bytes(data)
        comment = read_tags(path).get("comment", "")
    try:
        content = json.loads(comment) if len(comment) <= _MAX_CHARS else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get(_KEY) != 1:
        raise MediaError(
            "The clip does not say what it was made with: choose one that SVG2 Lab wrote and no "
            "other program has changed."
        )
    request = _plain(content.get("request"), REQUEST_FIELDS)
    if not isinstance(request.get("prompt"), str):
        raise MediaError("The clip does not say its prompt.")
    started = content.get("started_from")
    given = [name for name in ("image", "video") if isinstance(started, list) and name in started]
    return request, _plain(content.get("config", {})), given


def _plain(values: Any, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(values, dict) or any(
        not (names is None or name in names)
        or not re.fullmatch(r"\w{1,40}", name)
        or not isinstance(value, str | int | float | None)
        for name, value in values.items()
    ):
        raise MediaError("The clip's settings are not such as this program writes.")
    return values
