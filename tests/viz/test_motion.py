"""Two clips side by side as a moving picture: all frames, in step, with lines that say of what."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFont, ImageSequence

from svg2.errors import RequestError
from svg2.trace.records import Trace
from svg2.trace.video import decode_mp4
from viz.motion import drawable, lines_of, moving_picture, name_of


def frames_of(data: bytes) -> tuple[Image.Image, np.ndarray]:
    picture = Image.open(io.BytesIO(data))
    frames = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(picture)]
    return picture, np.stack(frames).astype(int)


@pytest.mark.parametrize("kind", ["gif", "webp"])
@pytest.mark.parametrize(("left", "right"), [(None, 0), (1, 2)])
def test_every_frame_of_both_clips_is_there(kind, left, right, trace: Trace) -> None:
    picture, frames = frames_of(moving_picture(trace, left, right, kind))
    assert picture.format == kind.upper()
    assert picture.info["loop"] == 0
    dense = trace.dense_mp4 if left is None else trace.runs[left].mp4
    clips = [decode_mp4(dense), decode_mp4(trace.runs[right].mp4)]
    assert len(frames) == len(clips[0])
    count, size = clips[0].shape[0], 480
    for x, clip in zip((20, 20 + size + 12), clips, strict=True):
        height = round(clip.shape[1] * size / clip.shape[2])
        shown = frames[:, 44 : 44 + height, x : x + size]
        grid = [((np.arange(12) + 0.5) * n / 12).astype(int) for n in (height, size)]
        small = shown[:, grid[0]][:, :, grid[1]]
        own = [((np.arange(12) + 0.5) * n / 12).astype(int) for n in clip.shape[1:3]]
        wanted = clip[:, own[0]][:, :, own[1]].astype(int)
        far = np.abs(small[:, None] - wanted[None]).mean((2, 3, 4))
        assert list(far.argmin(1)) == list(range(count))  # each frame is nearest to its own


def test_the_lines_say_what_is_shown(trace: Trace) -> None:
    first, second, third = lines_of(trace, 0)
    assert trace.request["prompt"] in first
    assert f"seed {trace.request['seed']}" in first
    assert "17 frames of " in first
    assert second.startswith("SVG2 · top-p 0.9 · ")
    assert second.endswith("dB against dense")
    assert third.endswith("SVG2 Lab")


@pytest.mark.parametrize(
    ("result", "said", "unsaid"),
    [
        ({"psnr_db": None}, "identical to dense", " dB"),
        ({"speedup": 1.5, "is_disturbed": True}, "dB against dense", "end to end"),
        ({"speedup": 1.5}, "1.50× end to end", "disturbed"),
    ],
)
def test_only_what_was_measured_is_said(result, said, unsaid, trace: Trace) -> None:
    run = replace(trace.runs[0], result={**trace.runs[0].result, **result})
    line = lines_of(replace(trace, runs=(run,), records=()), 0)[1]
    assert said in line
    assert unsaid not in line


@pytest.mark.parametrize(
    ("density", "density_run", "compute_density", "said"),
    [
        (0.2, 0.36, 0.25, "40 % of all pairs computed"),  # a fifth of the calls stays dense
        (0.044, 0.044, 0.0904, "9 % of all pairs computed"),
        (1.0, 1.0, 1.0, "100 % of all pairs computed"),
    ],
)
def test_the_share_is_that_of_the_page_s_headline(
    density, density_run, compute_density, said, trace: Trace
) -> None:
    shares = {"density": density, "density_run": density_run, "compute_density": compute_density}
    run = replace(trace.runs[0], result={**trace.runs[0].result, **shares})
    assert said in lines_of(replace(trace, runs=(run,), records=()), 0)[1].split(" · ")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("192×192 · 1.86×", "192x192 · 1.86x"),
        ("“un café à Zürich”", "“un cafe a Zurich”"),
        ("cafe\u0301", "cafe"),  # the accent as a character of its own
        ("红球 on a floor", "?? on a floor"),
        ("plain ASCII, 100 %", "plain ASCII, 100 %"),
    ],
)
def test_no_character_is_drawn_as_a_box(text: str, drawn: str) -> None:
    assert drawable(text, ImageFont.load_default(13)) == drawn


def test_a_budget_by_density_is_named_so(trace: Trace) -> None:
    run = replace(trace.runs[0], config={**trace.runs[0].config, "density": 0.06})
    assert name_of(replace(trace, runs=(run,), records=()), 0) == "SVG2 · density 6.0%"
    assert name_of(trace, None) == "Dense"


@pytest.mark.parametrize("run", [3, 99, -1])
def test_a_run_that_is_not_there_is_refused(run: int, trace: Trace) -> None:
    with pytest.raises(RequestError, match="holds 3 runs"):
        moving_picture(trace, None, run, "gif")
