"""Image and video inputs: files are checked before a model is loaded, and read at video size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from svg2.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 50_000_000


def check_image(path: str) -> None:
    """Check that a file is an image, without decoding all of it.

    Raises:
        RequestError: a missing or too large file, or one that is not an image.
    """
    _open_image(path).close()


def read_image(path: str, width: int, height: int) -> Image:
    """Read an image as RGB, scaled to cover `width` by `height` px and cropped at the centre.

    Raises:
        RequestError: a missing, too large or damaged file, or one that is not an image.
    """
    from PIL import ImageOps

    with _open_image(path) as image:
        try:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise RequestError(f"The image {path!r} is damaged.") from error
    return ImageOps.fit(upright, (width, height))


def check_video(path: str) -> None:
    """Check that a video file exists and is not too large; its content is not checked.

    Raises:
        RequestError: a missing or too large file.
    """
    check_file("video", path)


def _open_image(path: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    check_file("image", path)
    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        raise RequestError(f"The file {path!r} is not an image.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"The image {path!r} can't be read.") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise RequestError(
            f"The image {path!r} has {image.width} by {image.height} pixels: at most "
            f"{MAX_PIXELS:,} are read."
        )
    return image


def check_file(what: str, path: str) -> None:
    """Check that a file exists and is not too large to read; `what` names it in messages.

    Raises:
        RequestError: a missing or too large file.
    """
    try:
        size = Path(path).stat().st_size if Path(path).is_file() else None
    except (OSError, ValueError):
        size = None
    if size is None:
        raise RequestError(f"The {what} {path!r} does not exist or is not a file.")
    if size > MAX_FILE_BYTES:
        raise RequestError(
            f"The {what} {path!r} is too large: at most {MAX_FILE_BYTES >> 20} MiB are read."
        )
