"""Image and video inputs: files are checked before a model is loaded, and read at video size."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from svg2.errors import RequestError
from svg2.git_lfs import ADVICE, is_pointer_file

if TYPE_CHECKING:
    from PIL.Image import Image

_DAMAGED = (OSError, ValueError, SyntaxError, struct.error)  # as Pillow says it
MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 50_000_000
_ORIENTATION = 274  # of EXIF; these lie on their side
_ON_THEIR_SIDE = (5, 6, 7, 8)


def check_image(path: str) -> None:
    """Check that a file is an image, without decoding all of it.

    Raises:
        RequestError: a missing or too large file, or one that is not an image.
    """
    _open_image(path).close()


def read_image(path: str, width: int, height: int) -> Image:
    """Read an image as RGB, scaled to cover `width` by `height` px and cropped at the centre.

    Transparent parts show a white ground. Grey of 16 bits is scaled to 8, and so are numbers from
    0 to 1; other ranges are stretched from the least to the greatest value.

    Raises:
        RequestError: a missing, too large or damaged file, or one that is not an image.
    """
    from PIL import ImageOps

    return ImageOps.fit(_read_rgb(path), (width, height))


def describe_cut(path: str, width: int, height: int) -> str:
    """`cut_sentence` of what `read_image` cuts away.

    Raises:
        RequestError: as `check_image`.
    """
    with _open_image(path) as image:
        try:
            is_turned = image.getexif().get(_ORIENTATION, 1) in _ON_THEIR_SIDE
        except _DAMAGED as error:
            raise RequestError(f"The image {path!r} is damaged.") from error
        found = image.size[::-1] if is_turned else image.size
    return cut_sentence("image", found, (width, height))


def cut_sentence(what: str, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """A sentence on what is cut away of an image or video to give it another shape.

    Args:
        found, wanted: width and height in pixels.

    Returns:
        The sentence; empty where less than a hundredth is cut away.
    """
    kept = _middle(*found, *wanted)
    share = 1 - kept[0] * kept[1] / (found[0] * found[1])
    if share < 0.01:
        return ""
    where = "left and right" if kept[0] < found[0] else "above and below"
    return (
        f"The {what} has {found[0]} by {found[1]} pixels, and {wanted[0]} by {wanted[1]} are "
        f"wanted: {share:.0%} of it are cut off, {where}."
    )


def picture_of_cut(path: str, width: int, height: int, most: int = 240) -> Image:
    """The whole image, at most `most` px wide and high, with what `read_image` cuts away dimmed.

    Raises:
        RequestError: as `read_image`.
    """
    from PIL import Image

    whole = _read_rgb(path)
    whole.thumbnail((most, most))
    kept = _middle(*whole.size, width, height)
    left, top = ((whole.size[i] - kept[i]) // 2 for i in (0, 1))
    box = (left, top, left + max(1, kept[0]), top + max(1, kept[1]))
    dimmed = Image.blend(whole, Image.new("RGB", whole.size, "white"), 0.75)
    dimmed.paste(whole.crop(box), box)
    return dimmed


def _middle(width: int, height: int, new_width: int, new_height: int) -> tuple[int, int]:
    """Width and height of the part that remains where a picture takes another shape."""
    if width * new_height > height * new_width:
        return round(height * new_width / new_height), height
    return width, round(width * new_height / new_width)


def _read_rgb(path: str) -> Image:
    """An image upright, in 8-bit RGB, its transparent parts on a white ground."""
    from PIL import Image, ImageOps

    with _open_image(path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F" or upright.mode.startswith("I"):
                return _from_numbers(upright, path)
            if upright.has_transparency_data:
                ground = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(ground, upright.convert("RGBA"))
            return upright.convert("RGB")
        except RequestError:
            raise
        except _DAMAGED as error:
            raise RequestError(f"The image {path!r} is damaged.") from error


def _from_numbers(image: Image, path: str) -> Image:
    """Grey of more than 8 bits as 8-bit RGB."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise RequestError(f"The image {path!r} has values that are infinite or not a number.")
    least, most = values.min(), values.max()
    if least >= 0 and image.mode != "F" and most <= 65535:
        # Numbers of 32 bits do not tell their depth: of the usual ones the least that holds all.
        depths = (255, 4095, 65535) if image.mode == "I" else (65535,)
        least, most = 0.0, next(float(top) for top in depths if most <= top)
    elif least >= 0 and image.mode == "F" and most <= 1:
        least, most = 0.0, 1.0
    grey = (values - least) * (255 / (most - least)) if most > least else np.zeros(values.shape)
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


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
        raise RequestError(
            f"The file {path!r} is not an image that can be read: give a PNG or JPEG file."
        ) from error
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
    """Check that a file is there and not too large to read; `what` names it in messages.

    Raises:
        RequestError: a missing or too large file, or a pointer of Git LFS.
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
    if is_pointer_file(Path(path)):
        raise RequestError(f"The {what} {path!r} {ADVICE}.")
