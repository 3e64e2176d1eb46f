"""The image or video that a model starts from: checked early, read at the size that is made."""

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
    check_file("video", path)


def _open_image(path: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    check_file("image", path)
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


def check_file(what: str, path: str) -> None:
    """Check that a file is there and not too large to read.

    Raises:
        RequestError: it is not there, or too large.
    """
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
