"""Fidelity of one clip to another, on raw uint8 frames and never on the encoded file."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from svg2.trace.video import Frames


def psnr_db(a: Frames, b: Frames) -> float | None:
    """Peak signal-to-noise ratio in dB, from the error over the whole clip; None if identical."""
    mse = float(_mse_per_frame(a, b).mean())
    return None if mse == 0 else float(10 * np.log10(255**2 / mse))


def psnr_per_frame(a: Frames, b: Frames) -> Float[ndarray, "F"]:
    """Peak signal-to-noise ratio in dB of each frame; infinite where the two are identical."""
    with np.errstate(divide="ignore"):
        return (10 * np.log10(255**2 / _mse_per_frame(a, b))).astype(np.float32)


def ssim(a: Frames, b: Frames) -> float:
    """Structural similarity, mean over frames and channels; 1 when identical.

    Gaussian window of 11 by 11 with sigma 1.5, borders left out, K1 0.01 and K2 0.03.

    Source: Wang et al., Image Quality Assessment, IEEE TIP 13(4), 2004.
    """
    _check(a, b)
    if min(a.shape[1:3]) < 11:
        raise ValueError(f"SSIM needs frames of at least 11 by 11 pixels, got {a.shape[1:3]}.")
    return float(np.mean([_ssim_frame(x, y) for x, y in zip(a, b, strict=True)]))


def _ssim_frame(a: UInt8[ndarray, "Y X 3"], b: UInt8[ndarray, "Y X 3"]) -> float:
    def mean(image: ndarray) -> ndarray:
        return cv2.GaussianBlur(image, (11, 11), 1.5)[5:-5, 5:-5]

    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _mse_per_frame(a: Frames, b: Frames) -> Float[ndarray, "F"]:
    _check(a, b)
    return np.array(
        [
            ((x.astype(np.float64) - y) ** 2).mean() for x, y in zip(a, b, strict=True)
        ]  # one frame at a time: memory
    )


def _check(a: Frames, b: Frames) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8 or not a.size:
        raise ValueError(
            f"Expected two uint8 clips alike, got {a.dtype} {a.shape} and {b.dtype} {b.shape}."
        )
