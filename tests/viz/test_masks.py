"""Block densities and tiles against the N×N mask written out in full."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svg2.trace.records import Record
from viz.masks import block_density, density, tile_waste


def random_record(seed: int, n: int, num_q: int, num_k: int) -> Record:
    """Labels and masses at random; with few tokens some clusters stay empty."""
    rng = np.random.default_rng(seed)
    mass = rng.random((num_q, num_k)) ** 4
    return Record(
        run=0,
        step=3,
        layer=1,
        branch=0,
        head=0,
        q_labels=rng.integers(0, num_q, n).astype(np.uint16),
        k_labels=rng.integers(0, num_k, n).astype(np.uint16),
        P=(mass / mass.sum(axis=1, keepdims=True)).astype(np.float16),
        kept=rng.random((num_q, num_k)) < 0.4,
        q_rgb=np.zeros((num_q, 3), np.uint8),
        k_rgb=np.zeros((num_k, 3), np.uint8),
        k_near=np.zeros((num_k, 4), np.uint16),
        recall=0.9,
    )


def full_mask(record: Record, order: str) -> np.ndarray:
    mask = record.kept[record.q_labels][:, record.k_labels]
    if order == "permuted":
        rows = np.argsort(record.q_labels, kind="stable")
        columns = np.argsort(record.k_labels, kind="stable")
        mask = mask[rows][:, columns]
    return mask


records = st.builds(
    random_record,
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 90),
    num_q=st.integers(1, 9),
    num_k=st.integers(1, 14),
)
orders = st.sampled_from(["original", "permuted"])


@settings(max_examples=60)
@given(record=records, order=orders, share=st.floats(0.01, 1))
def test_block_density_is_the_mean_of_the_full_mask(record, order, share):
    n = len(record.q_labels)
    bins = max(1, int(share * n))
    edges = [i * n // bins for i in range(bins + 1)]
    mask = full_mask(record, order)
    truth = [[mask[a:b, c:d].mean() for c, d in pairwise(edges)] for a, b in pairwise(edges)]
    np.testing.assert_allclose(block_density(record, record.kept, bins, order), truth, atol=1e-12)


@settings(max_examples=60)
@given(record=records, order=orders, tile=st.integers(1, 100))
def test_tiles_are_those_of_the_full_mask(record, order, tile):
    n = len(record.q_labels)
    mask = full_mask(record, order)
    blocks = [
        mask[a : a + tile, c : c + tile] for a in range(0, n, tile) for c in range(0, n, tile)
    ]
    found = tile_waste(record, record.kept, tile, order)
    assert found.total == len(blocks)
    assert found.touched == sum(block.any() for block in blocks)
    assert found.kept_pairs == mask.sum()
    assert found.touched_pairs == sum(block.size for block in blocks if block.any())


@settings(max_examples=30)
@given(record=records)
def test_density_is_the_mean_of_the_full_mask(record):
    assert density(record, record.kept) == pytest.approx(full_mask(record, "original").mean())


def test_a_mask_that_keeps_nothing_wastes_nothing():
    record = random_record(0, 20, 3, 4)
    tiles = tile_waste(record, np.zeros_like(record.kept), 8, "original")
    assert (tiles.touched, tiles.share, tiles.waste) == (0, 0.0, 0.0)


@settings(max_examples=30)
@given(record=records, n_text=st.integers(0, 40))
def test_prompt_tokens_see_all_and_are_seen_by_all(record, n_text):
    mask = np.pad(full_mask(record, "original"), (0, n_text), constant_values=True)
    assert density(record, record.kept, n_text) == pytest.approx(mask.mean())


def test_bad_arguments_are_refused():
    record = random_record(0, 20, 3, 4)
    for bins in (0, 21):
        with pytest.raises(ValueError, match="bins"):
            block_density(record, record.kept, bins, "original")
    with pytest.raises(ValueError, match="order"):
        block_density(record, record.kept, 4, "sorted")
    with pytest.raises(ValueError, match="tile"):
        tile_waste(record, record.kept, 0, "original")


@pytest.mark.parametrize("order", ["original", "permuted"])
@pytest.mark.parametrize(("num_q", "num_k"), [(300, 7), (7, 300), (5000, 5001)])
def test_counts_of_pairs_are_whole_at_any_size(num_q, num_k, order):
    record = random_record(3, 9001, num_q, num_k)
    pairs = sum(
        int(record.q_sizes[q]) * int(record.k_sizes[record.kept[q]].sum()) for q in range(num_q)
    )
    assert pairs > 1 << 24  # beyond what float32 counts
    assert block_density(record, record.kept, 1, order).item() == pairs / 9001**2
    assert tile_waste(record, record.kept, 64, order).kept_pairs == pairs
