"""The fused counting sort and moves against the reference; run by `test_fused.py`."""

import pytest
import torch

import kernels
from kernels.permutation import fused
from tests.kernels.test_permutation import draw_labels


@pytest.mark.parametrize(
    ("n", "num"), [(1, 1), (1, 5), (17, 5), (63, 200), (64, 1), (257, 40), (1000, 7)]
)
def test_stable_sort(n, num, poisoned_memory):
    labels = draw_labels(n, num, seed=n)
    order = kernels.sort_by_label(labels, num, impl="fused")
    expected = kernels.sort_by_label(labels, num, impl="reference")
    assert order.perm.dtype is torch.int64
    assert order.offsets.dtype is torch.int32
    assert torch.equal(order.perm, expected.perm)
    assert torch.equal(order.offsets, expected.offsets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
@pytest.mark.parametrize(("n", "dim"), [(1, 64), (257, 128), (1000, 64), (50, 3)])
def test_there_and_back(n, dim, dtype, poisoned_memory):
    order = kernels.sort_by_label(draw_labels(n, 9, seed=n), 9, impl="reference")
    x = torch.randn(2, n, 3, dim).mul(100).to(dtype).transpose(1, 2)
    there = kernels.permute(x, order, impl="fused")
    assert torch.equal(there, kernels.permute(x, order, impl="reference"))
    assert torch.equal(kernels.unpermute(there, order, impl="fused"), x)
    roomy = kernels.permute(x, order, room=5, impl="fused")
    assert roomy.shape[2] == n + 5
    assert torch.equal(roomy[:, :, :n], there)


def test_the_ops_keep_their_promises_to_the_compiler():
    labels = draw_labels(40, 5, seed=0)
    torch.library.opcheck(fused.sort_by_label, (labels, 5))
    perm = kernels.sort_by_label(labels, 5, impl="reference").perm
    torch.library.opcheck(fused.move_tokens, (torch.randn(2, 3, 40, 8), perm, False))
