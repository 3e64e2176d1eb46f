"""Video files that every browser plays, and side-by-side frames."""

import errno
import functools
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from svg2.errors import MediaError
from svg2.trace.scratch import in_scratch

Frames = UInt8[ndarray, "F Y X 3"]

_MIN_SIDE_PX = 256
_CAPTION_PX = 36
_GAP_PX = 8
_MAX_SIDE_PX = 4096
_MAX_DECODED_BYTES = 1 << 30
_INSTALL = (
    "run `pip install --force-reinstall imageio-ffmpeg`, or name an ffmpeg with libx264 by "
    "IMAGEIO_FFMPEG_EXE"
)


def encode_mp4(
    frames: Frames, fps: float, crf: int = 12, tags: Mapping[str, str] | None = None
) -> bytes:
    """The clip as H.264 in yuv420p (bt709), made for exact seeking in a browser.

    The index comes first, every 16th frame is a key frame, and there are no B frames.
    Odd sizes are padded by one edge pixel, because 4:2:0 needs even ones.

    Args:
        crf: x264's constant rate factor; 12 is visually lossless on small clips.
        tags: `title` and `comment` of the file.
    Raises:
        MediaError: frames of another shape or type, none at all, or ffmpeg failed.
        OSError: no room for a temporary file.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise MediaError(f"Expected uint8 frames [F, H, W, 3], got {frames.dtype} {frames.shape}.")
    if not fps > 0:
        raise MediaError(f"Frames per second must be above 0, got {fps}.")
    frames = np.pad(
        frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge"
    )
    height, width = frames.shape[1:3]

    def encode(folder: Path) -> bytes:
        path = folder / "clip.mp4"  # a file, not a pipe: moving the index first needs seeking
        # fmt: off
        _ffmpeg(
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
            "-r", f"{fps:g}", "-i", "-",
            "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709",
            "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
            "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf), "-g", "16", "-bf", "0",
            *(f for name, text in (tags or {}).items() for f in ("-metadata", f"{name}={text}")),
            "-movflags", "+faststart", str(path),
            stdin=np.ascontiguousarray(frames).tobytes(),
        )
        # fmt: on
        return path.read_bytes()

    return in_scratch(encode)


def check_encoder() -> None:
    """Check that clips can be encoded here, by encoding a small one; once for each ffmpeg.

    Raises:
        MediaError: ffmpeg is missing, can't be run, or has no encoder for H.264.
    """
    _check_encoder(_ffmpeg_path())


@functools.cache  # a failure is tried again
def _check_encoder(ffmpeg: str) -> None:
    encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 8)


def decode_mp4(
    data: bytes,
    max_frames: int = 2000,
    frames: Sequence[int] | None = None,
    within: tuple[int, int] | None = None,
) -> Frames:
    """The frames of a clip, as `encode_mp4` wrote it.

    Args:
        frames: numbers of the frames that are wanted, ascending; None takes all.
        within: width and height in px that larger frames are scaled down to.

    Raises:
        MediaError: `data` is no MP4 video, has more than `max_frames` frames, or lacks one of
            those that are wanted.
    """
    filters = []
    if frames is not None:
        filters.append(f"select='{'+'.join(f'eq(n,{n})' for n in frames)}'")
    if within is not None:
        width, height = within
        filters.append(
            f"scale=w='min(iw,{width})':h='min(ih,{height})'"
            ":force_original_aspect_ratio=decrease:flags=area"
        )

    def decode(folder: Path) -> bytes:
        path = folder / "clip.mp4"
        path.write_bytes(data)
        # PPM frames carry their size.
        return _ffmpeg(
            *(*_read_mp4(path), "-frames:v", str(max_frames + 1)),
            *(("-vf", ",".join(filters)) if filters else ()),
            *("-fs", str(_MAX_DECODED_BYTES), "-f", "image2pipe", "-c:v", "ppm", "-"),
        )

    found = _split_ppm(in_scratch(decode))
    if not found:
        raise MediaError("The video holds no frames.")
    if frames is not None and len(found) != len(frames):
        raise MediaError(f"The video ends before frame {frames[-1] + 1}.")
    if len(found) > max_frames:
        raise MediaError(f"The video has more than {max_frames} frames.")
    return np.stack(found)


def check_mp4(data: bytes, num_frames: int, seconds: float) -> None:
    """Check that a clip can be decoded to its end, without holding its frames.

    Args:
        num_frames: how many frames it must have.
        seconds: time to decode it within.

    Raises:
        MediaError: `data` is no MP4 video, is damaged, has fewer or more frames, has frames of
            more than 4096 px a side, or takes longer.
    """

    def decode(folder: Path) -> bytes:
        path = folder / "clip.mp4"
        path.write_bytes(data)
        return _ffmpeg(
            *("-xerror", "-err_detect", "explode", "-threads", "1"),
            *(*_read_mp4(path), "-frames:v", str(num_frames + 1)),
            *("-an", "-f", "framecrc", "-"),
            seconds=seconds,
        )

    try:
        report = in_scratch(decode).decode()
    except _Refused as error:
        raise MediaError("The video is damaged: it can't be decoded to its end.") from error
    sizes = re.findall(r"^#dimensions 0: (\d+)x(\d+)$", report, re.MULTILINE)
    if not sizes or max(map(int, sizes[0])) > _MAX_SIDE_PX:
        raise MediaError(f"The video's frames are larger than {_MAX_SIDE_PX} px a side.")
    found = len([line for line in report.splitlines() if line and not line.startswith("#")])
    if found != num_frames:
        more = "or more " if found > num_frames else ""
        raise MediaError(f"The video has {found} {more}frames where {num_frames} are expected.")


def read_clip(path: str | os.PathLike, num_frames: int, width: int, height: int) -> Frames:
    """The first frames of an MP4 or MOV file of any depth, size, rotation and frame rate.

    Each frame is taken once, whatever its duration, scaled to cover `width` by `height` px, and
    cropped at the centre. No larger frames are held than that, but one at a time.

    Returns:
        At most `num_frames` frames; fewer where the file has fewer.
    Raises:
        MediaError: a file that is no MP4 or MOV video, or ffmpeg failed.
    """
    shape = "iw*if(sar,sar,1)/ih"  # as it is to be shown: pixels need not be square
    raw = _ffmpeg(
        *(*_read_mp4(Path(path).resolve()), "-frames:v", str(num_frames)),
        "-vf",
        f"scale=w='ceil(max({width},{height}*{shape}))':h='ceil(max({height},{width}/({shape})))'"
        ":flags=lanczos+accurate_rnd+full_chroma_int"
        f",format=rgb24,crop={width}:{height}",
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
    )
    if not raw:
        raise MediaError("The video holds no frames.")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def shape_and_rate(path: str | os.PathLike) -> tuple[int, int, float]:
    """Width and height in px, upright, and frames per second of an MP4 or MOV file.

    Raises:
        MediaError: a file that is no MP4 or MOV video, or ffmpeg failed.
    """
    # Of the formats that ffmpeg writes to a pipe, this one has both in its first line.
    raw = _ffmpeg(
        *("-f", "mov", "-i", f"file:{Path(path).resolve()}", "-frames:v", "1"),
        *("-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"),
    )
    fields = {field[:1]: field[1:] for field in raw[:200].split(b"\n")[0].split()[1:]}
    if not {b"W", b"H", b"F"} <= fields.keys():
        raise MediaError("The video holds no frames.")
    frames, seconds = (int(part) for part in fields[b"F"].split(b":"))
    return int(fields[b"W"]), int(fields[b"H"]), frames / max(1, seconds)


def read_tags(path: str | os.PathLike) -> dict[str, str]:
    """Tags of an MP4 or MOV file by name, such as `title` and `comment`.

    Raises:
        MediaError: a file that is no MP4 or MOV video, or ffmpeg failed.
    """
    raw = _ffmpeg("-f", "mov", "-i", f"file:{Path(path).resolve()}", "-f", "ffmetadata", "-")
    # A line for each tag; what means something in this format has a backslash before it.
    found = re.findall(rb"((?:\\.|[^=\\\n])+)=((?:\\.|[^\\\n])*)", raw, flags=re.DOTALL)
    texts = (
        [
            re.sub(rb"\\(.)", rb"\1", part, flags=re.DOTALL).decode(errors="replace")
            for part in pair
        ]
        for pair in reversed(found)  # those of the file stand before those of its streams
    )
    return dict(texts)


def side_by_side(left: Frames, right: Frames, captions: tuple[str, str] = ("", "")) -> Frames:
    """Two clips next to each other, captions above; small ones are enlarged by a whole factor.

    Raises:
        MediaError: the two differ in shape.
    """
    if left.shape != right.shape:
        raise MediaError(f"The clips differ in shape: {left.shape} and {right.shape}.")
    num_frames, height, width = left.shape[:3]
    factor = max(1, -(-_MIN_SIDE_PX // min(height, width)))
    height, width = height * factor, width * factor
    canvas = np.zeros((num_frames, height + _CAPTION_PX, 2 * width + _GAP_PX, 3), np.uint8)
    canvas[:, :_CAPTION_PX] = _caption_bar(canvas.shape[2], captions, width + _GAP_PX)
    for x0, clip in ((0, left), (width + _GAP_PX, right)):
        for i, frame in enumerate(clip):
            big = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
            canvas[i, _CAPTION_PX:, x0 : x0 + width] = np.asarray(big)
    return canvas


def _caption_bar(width: int, captions: tuple[str, str], second_x: int) -> UInt8[ndarray, "Y X 3"]:
    image = Image.new("RGB", (width, _CAPTION_PX), (16, 18, 22))
    draw = ImageDraw.Draw(image)
    for x0, caption in zip((0, second_x), captions, strict=True):
        size = 18
        while (
            size > 8
            and draw.textlength(caption, font=ImageFont.load_default(size)) > second_x - 24
        ):
            size -= 1
        font = ImageFont.load_default(size)
        draw.text((x0 + 8, _CAPTION_PX // 2), caption, (235, 235, 235), font=font, anchor="lm")
    return np.asarray(image)


def _split_ppm(raw: bytes) -> list[UInt8[ndarray, "Y X 3"]]:
    frames, start = [], 0
    while start < len(raw):
        magic, width, height, depth = raw[start : start + 40].split(maxsplit=4)[:4]
        if magic != b"P6" or depth != b"255":
            raise MediaError("The video could not be decoded.")
        shape = (int(height), int(width), 3)
        start += len(b"P6\n%s %s\n255\n" % (width, height))
        if start + math.prod(shape) > len(raw):
            raise MediaError(f"The video unpacks to more than {_MAX_DECODED_BYTES >> 20} MB.")
        frames.append(np.frombuffer(raw, np.uint8, math.prod(shape), start).reshape(shape))
        start += math.prod(shape)
    return frames


def _read_mp4(path: Path) -> tuple[str, ...]:
    """Arguments of ffmpeg for a file whose frames are each given once, in 8-bit RGB.

    The MP4 reader is forced, so that a playlist dressed as a video opens no other file.
    """
    return ("-f", "mov", "-i", f"file:{path}", "-fps_mode", "passthrough", "-pix_fmt", "rgb24")


class _Refused(MediaError):
    """ffmpeg is here and ran, and could not read or write the video."""


def _ffmpeg_path() -> str:
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MediaError(f"There is no ffmpeg: {_INSTALL}.") from error


def _ffmpeg(*arguments: str, stdin: bytes = b"", seconds: float | None = None) -> bytes:
    path = _ffmpeg_path()
    command = [path, "-hide_banner", "-loglevel", "error", "-y", *arguments]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise MediaError("The video takes too long to decode.") from error
    except OSError as error:
        reason = error.strerror or error
        raise MediaError(f"ffmpeg can't be run as {path} ({reason}): {_INSTALL}.") from error
    if not done.returncode:
        return done.stdout
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if any(os.strerror(errno.ENOSPC) in line for line in said):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
    if any("Unknown encoder" in line for line in said):
        raise MediaError(f"The ffmpeg at {path} can't encode H.264 (libx264): {_INSTALL}.")
    reason = said[-1].rstrip(".") if said else f"it ended with code {done.returncode}"
    raise _Refused(f"ffmpeg refused the video: {reason}.")
