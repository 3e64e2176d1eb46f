"""Two clips side by side as one moving picture for a slide, with lines that say of what."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from svg2.errors import MediaError, RequestError
from svg2.method.selection import METHODS
from svg2.trace.records import Trace, computed_share
from svg2.trace.video import decode_mp4
from viz.lessons import percent
from viz.payload import Check, no_check

Kind = Literal["gif", "webp"]

_CLIP_PX = 480  # width of each clip
_MAX_FRAMES, _MAX_PX = 400, 40_000_000  # of a clip
_MARGIN, _GAP = 20, 12
_LABEL_PX, _LINE_PX = 16, 13
_PAPER, _INK, _SOFT = (255, 255, 255), (26, 28, 33), (90, 95, 105)
_WIDTH = 2 * _MARGIN + 2 * _CLIP_PX + _GAP


def moving_picture(
    trace: Trace, left: int | None, right: int, kind: Kind, check: Check = no_check
) -> bytes:
    """Clip `right` beside clip `left` at the clip's own pace, as the bytes of an endless file.

    Args:
        left, right: runs of the trace by index; None is the dense one.
        check: called again and again; what it raises ends the work.

    Raises:
        RequestError: the trace holds no such run.
        MediaError: a clip can't be decoded, is too long or is too tall.
    """
    sheets = []
    for sheet in _sheets(trace, left, right):
        check()
        sheets.append(sheet)
    pace = max(20, round(1000 / float(trace.request.get("fps") or 16), -1))
    out = io.BytesIO()
    save: dict[str, Any] = {"save_all": True, "duration": int(pace), "loop": 0}
    if kind == "gif":
        palette = _palette_of(sheets)
        sheets = [sheet.quantize(palette=palette) for sheet in sheets]
        sheets[0].save(out, "GIF", append_images=sheets[1:], optimize=False, **save)
    else:
        sheets[0].save(out, "WEBP", append_images=sheets[1:], quality=85, method=4, **save)
    return out.getvalue()


def _sheets(trace: Trace, left: int | None, right: int) -> Iterator[Image.Image]:
    """One picture a frame: both clips under their names, over the lines."""
    names = (name_of(trace, left), name_of(trace, right))
    clips = [_shown(_decoded(_clip(trace, index))) for index in (left, right)]
    height = clips[0][0].height
    bold, small = ImageFont.load_default(_LABEL_PX), ImageFont.load_default(_LINE_PX)
    lines = [drawable(line, small) for line in lines_of(trace, right)]
    lines = [cut for line in lines for cut in _wrapped(line, small)]
    top = _MARGIN + _LABEL_PX + 8
    size = (_WIDTH, top + height + _GAP + len(lines) * (_LINE_PX + 5) + _MARGIN)
    ground = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(ground)
    for i, name in enumerate(names):
        place = (_MARGIN + i * (_CLIP_PX + _GAP), _MARGIN)
        draw.text(place, drawable(name, bold), _INK, bold)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, top + height + _GAP + i * (_LINE_PX + 5)), line, _SOFT, small)
    for pair in zip(*clips, strict=False):
        sheet = ground.copy()
        for i, frame in enumerate(pair):
            sheet.paste(frame, (_MARGIN + i * (_CLIP_PX + _GAP), top))
        yield sheet


def _clip(trace: Trace, index: int | None) -> bytes:
    return trace.dense_mp4 if index is None else trace.runs[index].mp4


def _decoded(clip: bytes) -> UInt8[ndarray, "F Y X 3"]:
    frames = decode_mp4(clip, _MAX_FRAMES, within=(_CLIP_PX, 2 * _CLIP_PX))
    height = frames.shape[1] * _CLIP_PX / frames.shape[2]
    if height > 2 * _CLIP_PX or len(frames) * height * _CLIP_PX > _MAX_PX:
        raise MediaError("The clip is too tall or too long for a moving picture.")
    return frames


def name_of(trace: Trace, index: int | None) -> str:
    """What a run is called: its method and budget.

    Raises:
        RequestError: the trace holds no such run.
    """
    if index is None:
        return "Dense"
    if not 0 <= index < len(trace.runs):
        raise RequestError(f"This trace holds {len(trace.runs)} runs, and no run {index + 1}.")
    run = trace.runs[index]
    title = METHODS[run.method].title if run.method in METHODS else run.method
    density, top_p = run.config.get("density"), run.config.get("top_p")
    if isinstance(density, int | float):
        return f"{title} · density {density:.1%}"
    return f"{title} · top-p {top_p:g}" if isinstance(top_p, int | float) else title


def lines_of(trace: Trace, index: int) -> list[str]:
    """What a picture of a run says below it: prompt, model, what it gave, and where from."""
    request, result = trace.request, trace.runs[index].result
    source = result if result.get("hardware") else trace.provenance
    psnr, share = result.get("psnr_db"), computed_share(result)
    speedup = None if result.get("is_disturbed") else result.get("speedup")
    commit, date = source.get("commit"), source.get("date")
    num_frames = len(trace.runs[index].psnr_frame)
    lines = (
        (
            f"“{request.get('prompt', '')}”",
            f"model {request.get('model', 'unknown')}",
            f"seed {request.get('seed', 'unknown')}",
            f"{num_frames} frames of {request.get('width')}×{request.get('height')}",
            f"{request.get('num_inference_steps')} steps",
        ),
        (
            name_of(trace, index),
            None if share is None else f"{percent(share)} of all pairs computed",
            f"{speedup:.2f}× end to end" if speedup else None,
            "identical to dense" if psnr is None else f"{psnr:.1f} dB against dense",
        ),
        (
            str(source.get("hardware") or "unknown hardware"),
            str(date)[:10] if date else None,
            f"commit {str(commit)[:8]}" if commit else None,
            "SVG2 Lab",
        ),
    )
    return [" · ".join(filter(None, parts)) for parts in lines]


def drawable(text: str, font: Any) -> str:
    """The text in characters that the font has: Pillow's own has little beyond ASCII.

    A letter with an accent loses it, the multiplication sign is an x, and the rest is "?".
    """
    box = font.getmask("\uffff")

    def is_box(character: str) -> bool:
        mask = font.getmask(character)
        return mask.size == box.size and bytes(mask) == bytes(box)

    def drawn(character: str) -> str:
        plain = unicodedata.normalize("NFKD", character.replace("×", "x"))[0]
        return next((one for one in (character, plain) if not is_box(one)), "?")

    return "".join(map(drawn, unicodedata.normalize("NFC", text)))


def _wrapped(line: str, font: Any) -> list[str]:
    """A line cut into lines that fit."""
    found, now = [], ""
    for word in line.split(" "):
        longer = f"{now} {word}".strip()
        if now and font.getlength(longer) > _WIDTH - 2 * _MARGIN:
            found.append(now)
            longer = word
        now = longer
    return [*found, now]


def _shown(frames: UInt8[ndarray, "F Y X 3"]) -> list[Image.Image]:
    """Frames at the width of a clip: first enlarged by whole pixels, so no pattern comes in."""
    height, width = frames.shape[1:3]
    whole = max(1, -(-_CLIP_PX // width))
    size = (_CLIP_PX, max(1, round(height * _CLIP_PX / width)))
    large = (width * whole, height * whole)
    return [
        Image.fromarray(frame)
        .resize(large, Image.Resampling.NEAREST)
        .resize(size, Image.Resampling.LANCZOS)
        for frame in frames
    ]


def _palette_of(sheets: list[Image.Image]) -> Image.Image:
    """One palette for all frames, so that no colour flickers."""
    some = sheets[:: max(1, len(sheets) // 6)]
    mosaic = np.concatenate([np.asarray(sheet)[::2, ::2] for sheet in some])
    return Image.fromarray(mosaic).quantize(256)
