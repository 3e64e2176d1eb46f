import numpy as np
import pytest

from svg2.trace.metrics import psnr_db, psnr_per_frame, ssim


@pytest.fixture
def clip():
    return np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)


def test_identical_clips(clip):
    assert psnr_db(clip, clip) is None
    assert np.isinf(psnr_per_frame(clip, clip)).all()
    assert ssim(clip, clip) == pytest.approx(1, abs=1e-12)


def test_psnr_is_of_the_mean_error_over_the_clip(clip):
    other = clip.copy()
    other[1] = (
        clip[1] ^ 1
    )  # one frame off by one everywhere: MSE 1/3 over the clip, 1 in the frame
    assert psnr_db(clip, other) == pytest.approx(10 * np.log10(255**2 * 3), abs=1e-9)
    frames = psnr_per_frame(clip, other)
    assert frames[1] == pytest.approx(10 * np.log10(255**2), abs=1e-4)
    assert np.isinf(frames[[0, 2]]).all()


def test_ssim_against_a_direct_sum(clip):
    """The definition, window by window, on one small frame."""
    a, b = clip[:1, :13, :13], clip[1:2, :13, :13]
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        for y in range(3):
            for x in range(3):
                p = a[0, y : y + 11, x : x + 11, channel].astype(float)
                q = b[0, y : y + 11, x : x + 11, channel].astype(float)
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                values.append(
                    (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                )
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-6)


def test_clips_of_different_shapes_are_refused(clip):
    for metric in (psnr_db, psnr_per_frame, ssim):
        with pytest.raises(ValueError, match="alike"):
            metric(clip, clip[:2])
    with pytest.raises(ValueError, match="11 by 11"):
        ssim(clip[:, :8, :8], clip[:, :8, :8])
