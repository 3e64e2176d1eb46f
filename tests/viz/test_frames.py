"""Overlays: each token's square has its cluster's colour, and borders run between clusters."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from svg2.trace.video import decode_mp4
from viz import frames
from viz.frames import (
    CELL_PX,
    KEPT_RGB,
    SHEET_PX,
    SKIPPED_RGB,
    cell_px,
    cluster_overlay,
    cluster_sheet,
    contact_sheet,
    mask_image,
    middle_frames,
    png_bytes,
)
from viz.masks import block_density


@pytest.mark.parametrize("side", ["q", "k"])
def test_at_full_opacity_a_square_is_its_clusters_colour(trace, side):
    record = trace.records[0]
    labels = (record.q_labels if side == "q" else record.k_labels).reshape(trace.grid)
    colours = record.q_rgb if side == "q" else record.k_rgb
    frame = np.zeros((48, 56, 3), np.uint8)
    picture = cluster_overlay(frame, record, trace.grid, 2, side, opacity=1.0)
    middle = picture[CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX]
    np.testing.assert_array_equal(middle, colours[labels[2]])


def test_a_border_is_darker_than_the_square_it_bounds(trace):
    record = trace.records[0]
    labels = record.q_labels.reshape(trace.grid)[0]
    y, x = np.argwhere(labels[:, :-1] != labels[:, 1:])[0]
    frame = np.full((48, 56, 3), 200, np.uint8)
    picture = cluster_overlay(frame, record, trace.grid, 0, "q", opacity=0.5).astype(int)
    row = y * CELL_PX + CELL_PX // 2
    assert picture[row, (x + 1) * CELL_PX].sum() < picture[row, (x + 1) * CELL_PX + 2].sum()


def test_a_sheet_shows_every_latent_frame(trace):
    num_frames = len(trace.runs[0].psnr_frame)
    middle = decode_mp4(trace.dense_mp4, frames=middle_frames(num_frames, trace.grid[0]))
    sheet = cluster_sheet(middle, num_frames, trace.records[0], trace.grid, "k")
    side = (trace.grid[1] * CELL_PX, trace.grid[2] * CELL_PX)
    assert sheet.shape[0] >= 3 * side[0]
    assert sheet.shape[1] >= 3 * side[1]


def test_tiles_stand_where_the_rows_put_them():
    tiles = [np.full((10, 12, 3), 40 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(tiles, [str(i) for i in range(5)])
    assert (sheet == 80).all(axis=-1).sum() >= 120
    assert (sheet == 160).all(axis=-1).sum() >= 120


def test_a_mask_picture_is_the_block_density(trace):
    record = trace.records[0]
    n = len(record.q_labels)
    picture = mask_image(record, record.kept, "permuted", side_px=n)
    share = block_density(record, record.kept, n, "permuted")
    assert set(np.unique(share)) <= {0.0, 1.0}
    blue = picture[..., 2] == 208
    np.testing.assert_array_equal(blue, share == 1)


def test_a_few_kept_pairs_of_a_pixel_are_seen(trace):
    """In token order they lie scattered, so that each pixel has few."""
    record, bins = trace.records[0], 8
    share = block_density(record, record.kept, bins, "original")
    some = (share > 0) & (share < 1)
    assert some.any()
    drop = SKIPPED_RGB[0] - mask_image(record, record.kept, "original", side_px=bins)[..., 0]
    assert (drop[some] > share[some] * (SKIPPED_RGB[0] - KEPT_RGB[0]) + 1).all()
    assert (np.diff(drop[some][np.argsort(share[some])].astype(int)) >= 0).all()


def test_png_round_trip():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    back = cv2.imdecode(np.frombuffer(png_bytes(image), np.uint8), cv2.IMREAD_COLOR)
    assert back is not None
    np.testing.assert_array_equal(back[..., ::-1], image)


@pytest.mark.parametrize(
    "grid",
    [(9, 24, 24), (21, 45, 80), (33, 45, 80), (1, 512, 512), (2, 512, 512), (1000, 1, 512)],
)
def test_a_sheet_has_no_more_pixels_than_it_may(trace, grid):
    cell = cell_px(grid)
    _, rows, columns = grid
    tile = np.zeros((rows * cell, columns * cell, 3), np.uint8)
    sheet = contact_sheet([tile] * grid[0], [""] * grid[0])
    assert sheet.shape[0] * sheet.shape[1] < 1.05 * SHEET_PX + 20_000 * grid[0]
    assert cell == CELL_PX or sheet.size > SHEET_PX  # no smaller than it must be


def test_squares_of_any_size_are_drawn(trace, monkeypatch):
    record, frame = trace.records[0], np.zeros((48, 56, 3), np.uint8)
    for cell in (1, 3, 8):
        monkeypatch.setattr(frames, "cell_px", lambda grid, cell=cell: cell)
        picture = cluster_overlay(frame, record, trace.grid, 1, "k", opacity=0.5)
        _, rows, columns = trace.grid
        assert picture.shape == (rows * cell, columns * cell, 3)
