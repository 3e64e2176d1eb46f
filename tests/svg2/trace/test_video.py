import os

import numpy as np
import pytest

from svg2.errors import MediaError
from svg2.trace.atomic import write_atomic
from svg2.trace.metrics import psnr_db
from svg2.trace.video import decode_mp4, encode_mp4, side_by_side


@pytest.fixture
def clip():
    y, x = np.mgrid[:48, :64]
    frames = [np.stack([x * 4, y * 5, (x + y + 10 * f) % 256], axis=-1) for f in range(5)]
    return np.stack(frames).astype(np.uint8)


def test_mp4_round_trip_keeps_colours_and_length(clip):
    decoded = decode_mp4(encode_mp4(clip, fps=16))
    assert decoded.shape == clip.shape
    fidelity_db = psnr_db(clip, decoded)
    assert fidelity_db is not None
    assert fidelity_db > 28  # 4:2:0 halves the chroma; a wrong colour matrix costs more than that
    flat = np.full((3, 32, 32, 3), (200, 40, 30), np.uint8)
    assert np.abs(decode_mp4(encode_mp4(flat, 8)).astype(int) - flat).max() <= 4


def test_mp4_is_made_for_browsers(clip):
    data = encode_mp4(clip, fps=16)
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(
        b"mdat"
    )  # the index first, so that it plays while loading


def test_odd_sizes_are_padded(clip):
    assert decode_mp4(encode_mp4(clip[:, :33, :35], fps=16)).shape == (5, 34, 36, 3)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_frames_of_a_wrong_kind_are_refused(frames):
    with pytest.raises(MediaError):
        encode_mp4(frames, fps=8)


def test_what_is_no_video_is_refused(clip):
    with pytest.raises(MediaError):
        decode_mp4(b"not a video at all")
    with pytest.raises(MediaError):
        decode_mp4(encode_mp4(clip, 8), max_frames=2)


def test_side_by_side_holds_both_clips(clip):
    joined = side_by_side(clip, 255 - clip, ("dense", "svg2"))
    assert joined.shape[0] == len(clip)
    assert joined.shape[2] > 2 * clip.shape[2]
    assert joined.shape[1] % 2 == 0
    assert joined.shape[2] % 2 == 0
    with pytest.raises(MediaError):
        side_by_side(clip, clip[:3])


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomic(path, b"one")
    assert path.read_bytes() == b"one"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
