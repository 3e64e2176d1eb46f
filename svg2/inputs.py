"""The image or video that a model starts from: checked early, read at the size that is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from svg2.request import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 50_000_000


def check_image(path: str) -> None:
    """Check that a file is an image, without decoding all of it.

    Raises:
        RequestError: it is missing, too large or no image.
    """
    _open_image(path).close()


def read_image(path: str, width: int, height: int) -> Image:
    """The image as RGB at exactly this size: scaled to cover it, and cut at the middle.

    Raises:
        RequestError: as `check_image`, or the file is cut short.
    """
    from PIL import ImageOps

    with _open_image(path) as image:
        try:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise RequestError(f"The image {path!r} is damaged.") from error
    return ImageOps.fit(upright, (width, height))


def check_video(path: str) -> None:
    """Check that a file is there and not too large.

    Raises:
        RequestError: it is not.
    """
    _check_file("video", path)


def read_video(path: str, num_frames: int, width: int, height: int) -> list[Image]:
    """The first frames of an MP4 video, each as `read_image` gives it.

    Raises:
        RequestError: it is missing, no MP4 video, or has fewer frames.
    """
    from PIL import Image, ImageOps

    from svg2.media import MediaError, decode_mp4

    _check_file("video", path)
    try:
        frames = decode_mp4(Path(path).read_bytes(), first=num_frames)
    except (OSError, MediaError) as error:
        raise RequestError(f"The video {path!r} can't be read: it is no MP4 video.") from error
    if len(frames) < num_frames:
        raise RequestError(
            f"The video {path!r} has {len(frames)} frames, and {num_frames} are asked for."
        )
    return [ImageOps.fit(Image.fromarray(frame), (width, height)) for frame in frames]


def _open_image(path: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    _check_file("image", path)
    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        raise RequestError(f"The file {path!r} is no image.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"The image {path!r} can't be read.") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise RequestError(
            f"The image {path!r} has {image.width} by {image.height} pixels, which is too many."
        )
    return image


def _check_file(what: str, path: str) -> None:
    try:
        size = Path(path).stat().st_size if Path(path).is_file() else None
    except (OSError, ValueError):
        size = None
    if size is None:
        raise RequestError(f"There is no {what} {path!r}.")
    if size > MAX_FILE_BYTES:
        raise RequestError(
            f"The {what} {path!r} is larger than the {MAX_FILE_BYTES >> 20} MB that are read."
        )
