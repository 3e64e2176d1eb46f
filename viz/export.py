"""A trace as one zip for slides and lessons: clips, pictures, numbers, the explorer offline."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from svg2.errors import RequestError
from svg2.trace.atomic import write_atomic
from svg2.trace.recording import spread
from svg2.trace.records import Record, Trace
from svg2.trace.video import decode_mp4
from viz.explorer_page import explorer_html
from viz.figures import tradeoff_figure, tradeoff_info
from viz.frames import Side, cell_px, cluster_sheet, mask_image, middle_frames, png_bytes
from viz.masks import Order, tile_waste
from viz.payload import Check, no_check

TILE = 64
MAX_VIEWS = 16
SIDES: tuple[tuple[Side, str], ...] = (("q", "queries"), ("k", "keys"))
ORDERS: tuple[Order, ...] = ("original", "permuted")

_STORED = zipfile.ZIP_STORED  # what is compressed already gains nothing from more

_VIEWS = """of the run {run} at step {step}, a head of each recorded layer (16 at most):
                 clusters of queries and keys on frames, and the mask in token order and permuted,
                 where blue is computed"""
_README = """SVG2 Lab export

explorer.html    the whole workspace; opens from disk in any browser, no network needed
videos/          the dense clip and each sparse one, H.264
views/           {views}
tradeoff.html    PSNR against what was computed, of the measured runs
result.json      request, provenance and every number of every run; per view the tiles it touches

PSNR and SSIM compare raw frames with the dense run, not the encoded clips.
Kept mass is an estimate from centroids; recall is the true attention mass of 64 random queries.
"""


def export_zip(trace: Trace, path: str | os.PathLike, mode: str = "trace") -> None:
    """Write the export of a trace, whole or not at all.

    Raises:
        MediaError: a clip of the trace can't be decoded.
        OSError: the folder can't be written.
    """
    write_atomic(path, export_bytes(trace, mode))


def export_bytes(
    trace: Trace, mode: str = "trace", check: Check = no_check, run: int | None = None
) -> bytes:
    """The export as the bytes of a zip file.

    Args:
        check: called again and again; what it raises ends the work.
        run: whose clusters and masks are drawn; the first recorded one where it is None or was not
            recorded.

    Raises:
        RequestError: the trace holds no such run.
        MediaError: a clip of the trace can't be decoded.
    """
    if run is not None and not 0 <= run < len(trace.runs):
        raise RequestError(f"This trace holds {len(trace.runs)} runs, and no run {run + 1}.")
    records = shown_records(trace, run)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", _readme(trace, records))
        archive.writestr("explorer.html", explorer_html(trace, mode, check))
        check()
        archive.writestr("videos/dense.mp4", trace.dense_mp4, _STORED)
        for name, made in zip(run_names(trace), trace.runs, strict=True):
            archive.writestr(f"videos/{name}.mp4", made.mp4, _STORED)
        figure = tradeoff_figure(tradeoff_info(trace))
        archive.writestr("tradeoff.html", figure.to_html(include_plotlyjs=True))
        views = _write_views(trace, records, archive, check)
        archive.writestr("result.json", json.dumps(_result(trace, views), indent=2))
    return buffer.getvalue()


def _readme(trace: Trace, records: Sequence[Record]) -> str:
    """What lies in the export."""
    if not records:
        return _README.format(views="empty: this trace holds no recorded clusters")
    run, step = run_names(trace)[records[0].run], records[0].step + 1
    return _README.format(views=_VIEWS.format(run=run, step=step))


def run_names(trace: Trace) -> list[str]:
    """A file name for each run: method and budget, numbered where two agree."""
    names: list[str] = []
    for run in trace.runs:
        method = "".join(c if c.isalnum() or c in "-_" else "_" for c in run.method)[:40]
        top_p = run.config.get("top_p")
        name = f"{method}-p{top_p:g}" if isinstance(top_p, int | float) else method
        taken = sum(n == name or n.startswith(f"{name}_") for n in names)
        names.append(f"{name}_{taken + 1}" if taken else name)
    return names


def shown_records(trace: Trace, run: int | None = None) -> list[Record]:
    """One record per layer: last recorded step, lowest head and branch.

    Of the first recorded run where `run` is None or was not recorded.

    Of more than `MAX_VIEWS` layers those at even distances, first and last included.
    """
    if not trace.records:
        return []
    recorded = {r.run for r in trace.records}
    run = run if run in recorded else min(recorded)
    step = max(r.step for r in trace.records if r.run == run)
    by_layer: dict[int, Record] = {}
    for record in sorted(trace.records, key=lambda r: (r.head, r.branch)):
        if record.run == run and record.step == step:
            by_layer.setdefault(record.layer, record)
    return [by_layer[layer] for layer in spread(sorted(by_layer), MAX_VIEWS)]


def _write_views(
    trace: Trace, records: Sequence[Record], archive: zipfile.ZipFile, check: Check
) -> list[dict[str, Any]]:
    if not records:
        return []
    run = trace.runs[records[0].run]
    num_frames, (num_latent, rows, columns) = len(run.psnr_frame), trace.grid
    cell, middle = cell_px(trace.grid), middle_frames(num_frames, num_latent)
    wanted = sorted(set(middle))  # short clips have fewer frames than latent ones
    found = decode_mp4(run.mp4, frames=wanted, within=(columns * cell, rows * cell))
    frames = found[np.searchsorted(wanted, middle)]
    views = []
    folder = f"views/{run_names(trace)[records[0].run]}-step{records[0].step + 1:02d}"
    for record in records:
        name = f"{folder}/layer{record.layer + 1:02d}-head{record.head + 1:02d}"
        for side, word in SIDES:
            check()
            picture = cluster_sheet(frames, num_frames, record, trace.grid, side)
            archive.writestr(f"{name}-clusters-{word}.png", png_bytes(picture), _STORED)
        view: dict[str, Any] = {
            "run": record.run,
            "step": record.step,
            "layer": record.layer,
            "branch": record.branch,
            "head": record.head,
            "recall": record.recall,
        }
        for order in ORDERS:
            check()
            picture = mask_image(record, record.kept, order)
            archive.writestr(f"{name}-mask-{order}.png", png_bytes(picture), _STORED)
            tiles = tile_waste(record, record.kept, TILE, order)
            view[f"tiles_{order}"] = {
                "tile": TILE,
                "touched": tiles.touched,
                "total": tiles.total,
                "waste": tiles.waste,
            }
        views.append(view)
    return views


def _result(trace: Trace, views: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "request": trace.request,
        "provenance": trace.provenance,
        "grid": list(trace.grid),
        "tokens": trace.n_tokens,
        "dense": trace.dense_result,
        "runs": [
            {"method": run.method, "config": run.config, "result": run.result}
            for run in trace.runs
        ],
        "views": views,
    }
