import numpy as np
import pytest

from svg2.trace.file import trace_bytes
from svg2.trace.recording import attention_recall, centroid_colours, fit, nearest_clusters
from tests.traces import make_synthetic_trace


def test_near_centroids_get_near_colours_whatever_the_offset_of_keys():
    rng = np.random.default_rng(0)
    line = np.linspace(0, 1, 20)[:, None] * rng.normal(size=8)
    q_rgb, k_rgb = centroid_colours(line.astype(np.float32), (line + 100).astype(np.float32))
    np.testing.assert_allclose(q_rgb.astype(int), k_rgb, atol=1)
    steps = np.abs(np.diff(q_rgb.astype(int), axis=0)).max(axis=1)
    assert steps.max() < 20
    assert np.ptp(q_rgb[:, 0]) > 150


def test_colours_of_one_point_and_of_few_dimensions():
    q_rgb, k_rgb = centroid_colours(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32))
    assert q_rgb.shape == (1, 3)
    assert k_rgb.shape == (3, 3)


def test_neighbours():
    near = nearest_clusters(
        np.array([[0.0], [1.0], [3.0], [3.1], [50.0]]), np.array([1, 1, 1, 0, 1])
    )
    assert near.tolist() == [[1, 2, 4, 0], [0, 2, 4, 1], [1, 0, 4, 2], [2, 1, 0, 4], [2, 1, 0, 4]]
    assert nearest_clusters(np.zeros((1, 3)), np.array([5])).tolist() == [[0, 0, 0, 0]]


def test_recall_is_the_mass_on_kept_keys():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(4, 8)), rng.normal(size=(30, 8))
    q_labels, k_labels = np.array([0, 0, 1, 1]), np.arange(30) % 3
    kept = np.array([[True, False, True], [False, True, False]])
    weights = np.exp(q @ k.T / np.sqrt(8))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.mean([weights[i, kept[q_labels[i]][k_labels]].sum() for i in range(4)])
    assert attention_recall(q, k, q_labels, k_labels, kept) == pytest.approx(expected, abs=1e-6)
    assert attention_recall(q, k, q_labels, k_labels, np.ones((2, 3), bool)) == pytest.approx(1)


def test_a_trace_is_thinned_to_a_size_heads_first():
    whole = make_synthetic_trace(grid=(3, 6, 6), num_q=5, num_k=12, steps=4)
    size = len(trace_bytes(whole))
    assert fit(whole, size) is whole
    smaller = fit(whole, size - 1)
    assert len(trace_bytes(smaller)) < size
    heads, fewer = ({r.head for r in t.records} for t in (whole, smaller))
    assert len(fewer) == len(heads) - 1
    assert {r.step for r in smaller.records} == {r.step for r in whole.records}
    assert "heads" in smaller.policy["note"]
    assert smaller.runs is whole.runs
    assert fit(whole, 1).records == ()
