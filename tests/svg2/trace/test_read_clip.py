"""Videos as people bring them: any depth, frame rate, size, rotation and shape of pixels."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageOps

from svg2.errors import MediaError
from svg2.trace import video
from svg2.trace.video import read_clip, shape_and_rate

COLOURS = [(200, 40, 30), (30, 160, 60), (20, 60, 210), (220, 210, 40), (90, 90, 90)]


def make(path, *arguments, frames, rate=10):
    """A video file from frames, by ffmpeg with these arguments for its output."""
    height, width = frames.shape[1:3]
    subprocess.run(
        [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", "-f", "rawvideo"),
            *("-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"),
            *(*arguments, str(path)),
        ],
        input=frames.tobytes(),
        check=True,
    )
    return path


def flat(num_frames, height, width):
    """Frames of one colour each, all neighbours apart."""
    colours = np.array([COLOURS[i % 5] for i in range(num_frames)], np.uint8)
    return np.broadcast_to(colours[:, None, None], (num_frames, height, width, 3)).copy()


def assert_colours(frames, start=0, tolerance=12):
    for i, frame in enumerate(frames):
        expected = np.array(COLOURS[(start + i) % 5])
        assert np.abs(frame.reshape(-1, 3).mean(0) - expected).max() <= tolerance, i


DEPTHS = {
    "8-bit H.264": ("mp4", "-c:v libx264 -pix_fmt yuv420p -crf 8"),
    "10-bit H.264": ("mp4", "-c:v libx264 -pix_fmt yuv420p10le -crf 8"),
    "10-bit H.265 of a phone": (
        "mov",
        "-c:v libx265 -pix_fmt yuv420p10le -crf 8 -tag:v hvc1 -x265-params log-level=error",
    ),
    "10-bit 4:2:2 ProRes": ("mov", "-c:v prores_ks -profile:v 3 -pix_fmt yuv422p10le"),
    "12-bit ProRes with alpha": ("mov", "-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le"),
    "16-bit PNG in MOV": ("mov", "-c:v png -pix_fmt rgb48be"),
    "16-bit grey": ("mov", "-c:v png -pix_fmt gray16be"),
}


@pytest.mark.parametrize(("suffix", "arguments"), DEPTHS.values(), ids=DEPTHS)
def test_any_depth_becomes_8_bit_rgb(tmp_path, suffix, arguments):
    path = make(tmp_path / f"a.{suffix}", *arguments.split(), frames=flat(5, 64, 96))
    frames = read_clip(path, 4, 48, 32)
    assert (frames.shape, frames.dtype) == ((4, 32, 48, 3), np.uint8)
    if "grey" in arguments or "gray" in arguments:
        assert np.ptp(frames[0].astype(int)) <= 2
        assert 60 < frames[0].mean() < 110
    else:
        assert_colours(frames)


TIMES = {
    "every third frame is long": "if(mod(N,3),N*2+1,N*2)/20/TB",
    "long pause": "if(lt(N,4),N,N+40)/10/TB",
    "nearly constant": "(N+0.3*mod(N,2))/10/TB",
    "starts late": "(N+25)/10/TB",
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_each_frame_of_a_variable_rate_comes_once(tmp_path, times):
    encode = "-fps_mode passthrough -c:v libx264 -pix_fmt yuv420p -crf 8 -bf 0".split()
    path = make(tmp_path / "a.mp4", "-vf", f"setpts='{times}'", *encode, frames=flat(10, 32, 32))
    frames = read_clip(path, 100, 32, 32)
    assert len(frames) == 10
    assert_colours(frames)


@pytest.mark.parametrize("size", [(2160, 3840), (3840, 2160), (720, 1280), (50, 40), (33, 65)])
def test_frames_are_scaled_and_cut_while_they_are_decoded(tmp_path, size, monkeypatch):
    # left third red, middle green, right third blue
    picture = np.zeros((*size, 3), np.uint8)
    thirds = np.array_split(np.arange(size[1]), 3)
    for i, columns in enumerate(thirds):
        picture[:, columns, i] = 200
    encode = "-c:v libx264 -pix_fmt yuv444p -crf 8 -preset ultrafast".split()
    path = make(tmp_path / "a.mp4", *encode, frames=np.stack([picture] * 3))
    decoded = []
    ffmpeg = video._ffmpeg
    monkeypatch.setattr(
        video, "_ffmpeg", lambda *a, **k: decoded.append(ffmpeg(*a, **k)) or decoded[-1]
    )
    frames = read_clip(path, 3, 48, 48)
    assert frames.shape == (3, 48, 48, 3)
    assert len(decoded[0]) == frames.nbytes
    expected = np.asarray(ImageOps.fit(Image.fromarray(picture), (48, 48))).astype(int)
    assert np.abs(frames[0] - expected).mean() < 6


def test_pixels_that_are_not_square_and_rotation_are_followed(tmp_path):
    # Left half red; a pixel twice as wide as high makes 64 by 32 px a picture of 128 by 32.
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :32, 0] = picture[:, 32:, 2] = 200
    encode = "-c:v libx264 -pix_fmt yuv444p -crf 8".split()
    wide = make(tmp_path / "w.mp4", "-vf", "setsar=2", *encode, frames=np.stack([picture] * 2))
    assert read_clip(wide, 2, 128, 32).shape == (2, 32, 128, 3)
    assert read_clip(wide, 2, 128, 32)[0, 16, 4].argmax() == 0, "not cut"
    turned = tmp_path / "t.mp4"
    subprocess.run(
        [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90"),
            *("-i", str(make(tmp_path / "p.mp4", *encode, frames=np.stack([picture] * 2)))),
            *("-c", "copy", str(turned)),
        ],
        check=True,
    )
    assert shape_and_rate(turned) == (32, 64, 10)
    frames = read_clip(turned, 2, 32, 64)
    top, bottom = frames[0, 4, 16], frames[0, 60, 16]
    assert {int(top.argmax()), int(bottom.argmax())} == {0, 2}, "upright"


@pytest.mark.parametrize("name", ["-i.mp4", "concat:a|b.mp4", "a b'c.mp4", "%03d.mp4"])
def test_a_file_of_any_name_is_read(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode = "-c:v libx264 -pix_fmt yuv420p".split()
    make(tmp_path / "a.mp4", *encode, frames=flat(2, 32, 32)).rename(tmp_path / name)
    assert len(read_clip(name, 5, 32, 32)) == 2


def test_what_holds_no_frames_is_refused(tmp_path):
    playlist = "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    for content in (b"", b"text", playlist.encode(), b"\0\0\0\x18ftypmp42" + bytes(100)):
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        with pytest.raises(MediaError):
            read_clip(path, 2, 32, 32)
