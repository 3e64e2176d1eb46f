"""What a block must exceed at each budget: the same as selecting there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svg2.trace.records import NO_GAIN, TICKS
from svg2.trace.thresholds import gain_thresholds, log_gain


def _case(seed, heads=2, num_q=4, num_k=7):
    rng = np.random.default_rng(seed)
    q_sizes, k_sizes = rng.integers(1, 9, (heads, num_q)), rng.integers(0, 9, (heads, num_k))
    k_sizes[:, 0] += 1
    P = rng.random((heads, num_q, num_k)) * (k_sizes > 0)[:, None]
    P /= P.sum(-1, keepdims=True)
    error = rng.random(P.shape) * (k_sizes > 0)[:, None]
    return log_gain(error, k_sizes), P, q_sizes, k_sizes


def _pairs_kept(gain, thresholds, P, q_sizes, k_sizes, tick):
    pairs = q_sizes[:, :, None] * k_sizes[:, None]
    kept = gain.astype(np.float32) > thresholds[tick]
    np.put_along_axis(kept, P.argmax(-1)[..., None], True, axis=-1)
    return (pairs * kept).sum()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), tick=st.integers(1, TICKS))
def test_law_a_layer_stays_within_what_top_p_keeps(seed, tick):
    gain, P, q_sizes, k_sizes = _case(seed)
    thresholds = gain_thresholds(gain, P, q_sizes, k_sizes, 0.0)
    pairs = q_sizes[:, :, None] * k_sizes[:, None]
    order = np.argsort(-P, axis=-1, kind="stable")
    ranked = np.take_along_axis(P, order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    asked = (np.take_along_axis(pairs, order, -1) * (before < tick / TICKS + 1e-9)).sum()
    assert _pairs_kept(gain, thresholds, P, q_sizes, k_sizes, tick) <= asked
    assert (np.diff(thresholds) <= 0).all()


def test_the_whole_budget_keeps_everything():
    gain, P, q_sizes, k_sizes = _case(0)
    thresholds = gain_thresholds(gain, P, q_sizes, k_sizes, 0.0)
    pairs = (q_sizes[:, :, None] * k_sizes[:, None]).sum()
    assert _pairs_kept(gain, thresholds, P, q_sizes, k_sizes, TICKS) == pairs


def test_no_error_is_a_finite_number():
    gain = log_gain(np.zeros((1, 2, 3)), np.ones((1, 3), int))
    assert gain == pytest.approx(NO_GAIN, rel=1e-3)
    assert np.isfinite(gain).all()
