"""Pictures over frames: clusters on each latent frame, as one contact sheet."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from svg2.trace.records import Record
from viz.masks import Order, block_density
from viz.payload import latent_frames

Image = UInt8[ndarray, "Y X 3"]
Side = Literal["q", "k"]

CELL_PX = 16
SHEET_PX = 8_000_000
GAP_PX = 8
CAPTION_PX = 24
KEPT_RGB = (47, 86, 208)
SKIPPED_RGB = (236, 238, 242)
FADE = 0.6  # power of a kept share, as on the page: a few per cent are seen too

_BAND_PX = 128


def middle_frames(num_frames: int, num_latent: int) -> list[int]:
    """The video frame that stands for each latent frame."""
    spans = latent_frames(num_frames, num_latent)
    return [min((first + end - 1) // 2, num_frames - 1) for first, end in spans]


def cell_px(grid: tuple[int, int, int]) -> int:
    """Side of a token's square: `CELL_PX`, or less so that a sheet has at most `SHEET_PX`."""
    num_frames, rows, columns = grid

    def area(cell: int) -> int:
        across = int(np.ceil(np.sqrt(num_frames)))
        down = -(-num_frames // across)
        height, width = rows * cell + CAPTION_PX + GAP_PX, columns * cell + GAP_PX
        return across * down * height * width

    return next((cell for cell in range(CELL_PX, 1, -1) if area(cell) <= SHEET_PX), 1)


def cluster_overlay(
    frame: Image, record: Record, grid: tuple[int, int, int], t: int, side: Side, opacity: float
) -> Image:
    """One latent frame: each token as a square in its cluster's colour over the video frame.

    Squares are `cell_px` wide, and a dark line runs wherever two clusters meet, so that no cluster
    is told apart by colour alone.

    Args:
        opacity: of the colours, 0 to 1.
    """
    _, rows, columns = grid
    cell = cell_px(grid)
    labels = record.q_labels if side == "q" else record.k_labels
    colours = record.q_rgb if side == "q" else record.k_rgb
    labels = labels.reshape(grid)[t]
    size = (columns * cell, rows * cell)
    shrinks = frame.shape[1] > size[0]
    base = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    tint = colours[labels].repeat(cell, axis=0).repeat(cell, axis=1)
    out = np.empty_like(tint)
    for top in range(0, len(out), _BAND_PX):  # the sums are in float64
        band = slice(top, top + _BAND_PX)
        out[band] = (base[band] * (1 - opacity) + tint[band] * opacity).round()
    shade = 1 - 0.6 * opacity
    squares = out.reshape(rows, cell, columns, cell, 3)
    tops, lefts = squares[1:, 0], squares[:, :, 1:, 0]
    below = labels[:-1] != labels[1:]
    beside = np.broadcast_to((labels[:, :-1] != labels[:, 1:])[:, None], lefts.shape[:3])
    tops[below] = (tops[below] * shade).astype(np.uint8)
    lefts[beside] = (lefts[beside] * shade).astype(np.uint8)
    return out


def cluster_sheet(
    frames: UInt8[ndarray, "T Y X 3"],
    num_frames: int,
    record: Record,
    grid: tuple[int, int, int],
    side: Side,
    opacity: float = 0.6,
) -> Image:
    """Every latent frame with its clusters, captioned with the video frames it stands for.

    Args:
        frames: one video frame per latent frame, see `middle_frames`.
        num_frames: of the whole clip.
    """
    tiles, captions = [], []
    for t, (first, end) in enumerate(latent_frames(num_frames, grid[0])):
        tiles.append(cluster_overlay(frames[t], record, grid, t, side, opacity))
        captions.append(f"frame {end}" if end - first == 1 else f"frames {first + 1}-{end}")
    return contact_sheet(tiles, captions)


def contact_sheet(tiles: list[Image], captions: list[str]) -> Image:
    """Pictures of one size in rows, as near to square as they go, each with a caption below."""
    height, width = tiles[0].shape[:2]
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    step_y, step_x = height + CAPTION_PX + GAP_PX, width + GAP_PX
    sheet = np.full((rows * step_y + GAP_PX, columns * step_x + GAP_PX, 3), 255, np.uint8)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        y, x = GAP_PX + (i // columns) * step_y, GAP_PX + (i % columns) * step_x
        sheet[y : y + height, x : x + width] = tile
        place = (x, y + height + CAPTION_PX - 8)
        grey = (90, 95, 105)
        cv2.putText(sheet, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, grey, 1, cv2.LINE_AA)
    return sheet


def mask_image(
    record: Record, kept: Bool[ndarray, "Q K"], order: Order, side_px: int = 768
) -> Image:
    """The N×N mask as a square picture: full colour is kept, empty is skipped.

    In between, where a pixel is many pairs, the colour grows faster than the kept share.
    """
    bins = min(side_px, len(record.q_labels))
    strength: Float[ndarray, "Y X 1"] = block_density(record, kept, bins, order)[..., None] ** FADE
    image = np.asarray(SKIPPED_RGB) * (1 - strength) + np.asarray(KEPT_RGB) * strength
    image = image.round().astype(np.uint8)
    return cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_NEAREST)


def png_bytes(image: Image) -> bytes:
    """An RGB picture as a PNG file."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"A picture of shape {image.shape} could not be written as PNG.")
    return data.tobytes()
