import numpy as np
import pytest
import torch

from svg2.config import SVG2Config
from svg2.method.call_sample import CallSample
from svg2.trace.file import trace_bytes
from svg2.trace.recording import (
    Recorder,
    Selection,
    attention_recall,
    centroid_colours,
    choose,
    fit,
    heads_by_density,
    nearest_clusters,
)
from svg2.trace.records import RecordingPolicy
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
    """The first query weighs all four keys alike; the second one the first key nine times more."""
    queries = np.array([[0.0, 0.0], [np.sqrt(2) * np.log(9), 0.0]])
    keys = np.array([[1.0, 5.0], [0.0, 5.0], [0.0, -5.0], [0.0, 0.0]])
    key_labels = np.array([0, 0, 1, 2])
    kept = np.array([[True, False, True], [False, True, False]])

    def recall(*rows):
        return attention_recall(queries[[*rows]], keys, np.array([*rows]), key_labels, kept)

    assert recall(0) == pytest.approx(3 / 4)
    assert recall(1) == pytest.approx(1 / 12)
    assert recall(0, 1) == pytest.approx((3 / 4 + 1 / 12) / 2)


def test_what_is_recorded_leaves_room_for_clips_and_says_what_it_left_out():
    config = SVG2Config(num_q_clusters=10, num_k_clusters=20, warmup_fraction=0.5, dense_layers=1)
    run = {"num_steps": 10, "num_layers": 3, "num_heads": 4, "n_tokens": 1000}
    whole = choose(RecordingPolicy(), config, **run)
    assert whole == Selection((5, 6, 8, 9), (1, 2), 3, "")
    asked = RecordingPolicy(steps=(0, 7, 9), layers=(0, 2), heads=(3, 9))
    assert choose(asked, config, **run) == Selection((7, 9), (2,), (3,), "")
    # A record takes 4 x 1000 + 2 x 200 + 25 + 30 + 220 = 4,675 bytes: six fit three quarters.
    few = choose(RecordingPolicy(max_bytes=6 * 4675 * 4 // 3), config, **run)
    assert few == Selection((5, 8, 9), (1, 2), 1, few.note)
    assert few.note.startswith("Recorded 3 of 4 steps, 1 of 3 heads to stay under")


@pytest.mark.parametrize(
    ("count", "heads"), [(1, (0,)), (2, (1, 3)), (3, (0, 1, 3)), (4, (0, 1, 2, 3))]
)
def test_heads_are_spread_by_what_they_keep(count, heads):
    assert heads_by_density([0.3, 0.1, 0.2, 0.9], count) == heads


def test_a_recorder_follows_the_sparsest_the_densest_and_one_between():
    """Of each layer the heads of its first recorded step, whatever later ones keep."""
    recorder = Recorder(Selection((0, 1), (0, 1), 3, ""), branches=(0,))
    keeps = {
        (0, 0): [4, 1, 2, 3],
        (0, 1): [1, 4, 3, 2],
        (1, 0): [1, 2, 3, 4],
        (1, 1): [4, 3, 2, 1],
    }
    for (layer, step), kept in keeps.items():
        recorder(call_of(step, layer, kept))
    seen = {(layer, step): [] for layer, step in keeps}
    for record in recorder.records:
        seen[record.layer, record.step].append(record.head)
    assert seen == {(0, 0): [0, 1, 3], (0, 1): [0, 1, 3], (1, 0): [0, 2, 3], (1, 1): [0, 2, 3]}


def call_of(step, layer, kept):
    """A call of one head a number in `kept`, which keeps so many of its four key clusters."""
    heads = len(kept)
    q, k, v = torch.randn(3, 1, heads, 8, 4, generator=torch.manual_seed(0)).unbind()
    labels = torch.arange(8).remainder(4).expand(1, heads, 8).int()
    centroids = k[:, :, :4].clone()
    sizes = torch.full((1, heads, 4), 2, dtype=torch.int32)
    mask = torch.arange(4).expand(1, heads, 4, 4) < torch.tensor(kept).view(1, -1, 1, 1)
    P = torch.full((1, heads, 4, 4), 0.25)
    density = mask.float().mean((0, 2, 3))
    return CallSample(
        *(step, layer, 0, density, density, q, k, v, labels, labels, centroids, centroids),
        *(sizes, sizes, P, mask, None),
        clock=None,
    )


def test_a_trace_is_thinned_to_a_size_the_run_shown_first_last():
    whole = make_synthetic_trace(grid=(3, 6, 6), num_q=5, num_k=12, steps=4)
    size = len(trace_bytes(whole))
    assert fit(whole, size) is whole
    all_runs = {r.run for r in whole.records}
    assert len(all_runs) > 1
    for most in all_runs:
        own = [r for r in whole.records if r.run == most]
        others = [r for r in whole.records if r.run != most]
        fitted = fit(whole, size - 1, most)
        assert len(trace_bytes(fitted)) < size
        assert [r for r in fitted.records if r.run == most] == own
        left = [r for r in fitted.records if r.run != most]
        assert 0 < len(left) < len(others)
        assert {r.step for r in left} == {r.step for r in others}, "heads go first"
        assert f"{len(fitted.records)} of {len(whole.records)} records" in fitted.policy["note"]
        assert fitted.runs is whole.runs
        bare = len(trace_bytes(fit(whole, 1, most)))
        half = fit(whole, bare + (size - bare) // (2 * len(all_runs)), most)
        assert 0 < len(half.records) < len(own)
        assert {r.run for r in half.records} == {most}
        assert {r.layer for r in half.records} == {r.layer for r in own}, "layers go last"
    assert fit(whole, 1).records == ()
