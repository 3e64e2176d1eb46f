"""One budget for all heads of a layer, spent without a sort."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import KMeansResult, sort_by_label
from svg2.method.plan import Tokens
from svg2.method.selection.budget import heaviest, spend


def _clusters(labels, num):
    order = sort_by_label(labels, num)
    centroids = torch.zeros(*labels.shape[:2], num, 1)
    return KMeansResult(labels, centroids, order.sizes, "reference", order)


def _case(seed, levels, n=40, heads=2, num_q=4, num_k=9):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(2, heads, n, 1)
    uniform = torch.rand(2, 2, heads, n, generator=generator).square()  # some stay empty
    q, k = (
        _clusters((part * num).int(), num)
        for part, num in zip(uniform, (num_q, num_k), strict=True)
    )
    gain = torch.rand(2, heads, num_q, num_k, generator=generator)
    if levels:  # few values, so that many are equal
        gain = (gain * levels).floor() / levels
    return Tokens(*[tokens] * 5, q.order, k.order, q, k), gain


def _plain(gain, tokens, density, always):
    """Groups of equal gain from the largest on, while they fit."""
    kept = always & (tokens.k_clusters.sizes > 0).unsqueeze(2)
    pairs = tokens.pairs()
    for sample in range(len(gain)):
        left = int(float(pairs[sample].sum()) * density) - int(pairs[sample][kept[sample]].sum())
        open_ = ~kept[sample] & (tokens.k_clusters.sizes[sample] > 0).unsqueeze(1)
        for value in gain[sample].unique().flip(0):
            group = open_ & (gain[sample] == value)
            cost = int(pairs[sample][group].sum())
            if cost > left:
                break
            left -= cost
            kept[sample] |= group
    return kept


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**16), density=st.floats(0, 1), levels=st.sampled_from([0, 1, 3, 1000])
)
def test_law_it_keeps_the_largest_gains_that_fit(seed, density, levels):
    tokens, gain = _case(seed, levels)
    always = heaviest(gain, tokens.k_clusters.sizes)
    assert torch.equal(spend(gain, always, tokens, density), _plain(gain, tokens, density, always))


def test_processes_that_share_the_heads_find_the_same_threshold():
    tokens, gain = _case(0, 0)
    alone = spend(gain, torch.zeros_like(gain, dtype=torch.bool), tokens, 0.4)
    # as if another process had the same heads again
    shared = dataclasses.replace(tokens, sum_heads=lambda x: 2 * x)
    assert torch.equal(spend(gain, torch.zeros_like(alone), shared, 0.4), alone)


def test_the_heaviest_is_never_empty():
    P, sizes = torch.zeros(1, 1, 2, 3), torch.tensor([[[0, 0, 4]]], dtype=torch.int32)
    assert heaviest(P, sizes).tolist() == [[[[False, False, True]] * 2]]
