"""Stage `sheet`: a picture of held-out prompts and the clips that the model makes of them."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs.dense_sparse import generate_dense
from svg2.runs.run import Run
from svg2.trace.atomic import write_atomic
from svg2.training.evaluate import model_id, prompts_for

_SHEET = (4, 6)  # prompts across and down


def make_contact_sheet(folder: Path, path: Path, device: str = "auto") -> None:
    """Write one PNG below 1 MB with held-out prompts and three frames of each clip."""
    model = model_id(folder)
    across, down = _SHEET
    spec = model_spec(model)
    asked = prompts_for(Path(spec.source), across * down, seed=1)
    pipe = load_pipeline(spec, "auto", device)
    cells = []
    for i, (_, prompt) in enumerate(asked):
        run = Run.of(Request(prompt=prompt, model=model, seed=i), spec=spec)
        frames = generate_dense(pipe, run).frames
        cells.append(_cell(frames, prompt))
        print(prompt, flush=True)
    rows = [np.concatenate(cells[i : i + across], axis=1) for i in range(0, len(cells), across)]
    write_atomic(path, png_below(np.concatenate(rows), 1_000_000))


def png_below(image: UInt8[ndarray, "H W 3"], limit_bytes: int) -> bytes:
    """`image` as PNG, reduced by an eighth of its size until it is below the limit."""
    while True:
        ok, data = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        assert ok
        if len(data) < limit_bytes:
            return data.tobytes()
        size = (image.shape[1] * 7 // 8, image.shape[0] * 7 // 8)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _cell(frames: UInt8[ndarray, "F H W 3"], prompt: str) -> UInt8[ndarray, "Y X 3"]:
    """First, middle and last frame side by side, over up to three lines of prompt."""
    shown = np.concatenate([frames[i] for i in (0, len(frames) // 2, -1)], axis=1)
    width = 360
    shown = cv2.resize(shown, (width, width // 3), interpolation=cv2.INTER_AREA)
    bar = np.full((40, width, 3), 16, dtype=np.uint8)
    words, lines = prompt.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 54:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    for i, line in enumerate(lines[:3]):
        at = (4, 11 + 12 * i)
        cv2.putText(bar, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (225,) * 3, 1, cv2.LINE_AA)
    return cv2.copyMakeBorder(
        np.concatenate([shown, bar]), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(16, 16, 16)
    )
