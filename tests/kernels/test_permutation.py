"""Permutation: a stable sort by label, there and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels


def draw_labels(n: int, num: int, seed: int, batch: int = 2, heads: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num, (batch, heads, n), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("n", [1, 17, 63, 64, 257, 1000])
@pytest.mark.parametrize("num", [1, 5, 2000])
def test_stable_sort(n, num):
    labels = draw_labels(n, num, seed=n)
    order = kernels.sort_by_label(labels, num)
    assert order.perm.dtype is torch.int64
    assert order.offsets.dtype is torch.int32
    for b in range(2):
        for h in range(3):
            head = labels[b, h].tolist()
            assert order.perm[b, h].tolist() == sorted(range(n), key=lambda i, head=head: head[i])
            sizes = [head.count(c) for c in range(num)] if num < 100 else None
            if sizes is not None:
                assert order.sizes[b, h].tolist() == sizes


@settings(max_examples=50)
@given(
    n=st.integers(1, 80),
    num=st.integers(1, 20),
    dim=st.integers(1, 9),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)
def test_laws(n, num, dim, seed, dtype):
    labels = draw_labels(n, num, seed)
    order = kernels.sort_by_label(labels, num)
    assert (order.sizes.sum(-1) == n).all()
    assert (order.sizes >= 0).all()
    x = torch.randn(2, 3, n, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)
    there = kernels.permute(x, order)
    assert torch.equal(kernels.unpermute(there, order), x)
    assert torch.equal(kernels.permute(kernels.unpermute(x, order), order), x)
    assert torch.equal(there, x.gather(2, order.perm[..., None].expand_as(x)))


def test_room_is_left_behind_the_tokens_of_each_head():
    x = torch.randn(2, 3, 50, 8)
    order = kernels.sort_by_label(draw_labels(50, 6, seed=0), 6)
    roomy = kernels.permute(x, order, room=7)
    assert roomy.shape == (2, 3, 57, 8)
    assert torch.equal(roomy[:, :, :50], kernels.permute(x, order))


def test_all_in_one_cluster_moves_nothing():
    labels = torch.full((1, 1, 63), 4, dtype=torch.int32)
    order = kernels.sort_by_label(labels, 9)
    assert order.perm[0, 0].tolist() == list(range(63))
    assert order.sizes[0, 0].tolist() == [0, 0, 0, 0, 63, 0, 0, 0, 0]


def test_a_strided_tensor():
    x = torch.randn(2, 50, 3, 8).transpose(1, 2)
    order = kernels.sort_by_label(draw_labels(50, 6, seed=0), 6)
    assert torch.equal(kernels.unpermute(kernels.permute(x, order), order), x)


def test_no_uninitialised_memory_is_read(poisoned_memory):
    x = torch.randn(2, 3, 50, 8)
    order = kernels.sort_by_label(draw_labels(50, 200, seed=0), 200)
    assert torch.equal(kernels.unpermute(kernels.permute(x, order), order), x)


def test_fused_is_never_swapped_silently():
    with pytest.raises(kernels.ImplUnavailable, match="fused"):
        kernels.sort_by_label(draw_labels(5, 2, seed=0), 2, impl="fused")
