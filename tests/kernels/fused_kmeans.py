"""Fused k-means against its plain definition in fp64; run by `test_fused.py`."""

import pytest
import torch

import kernels
from kernels.kmeans import fused
from tests.kernels.cases import AT_NIGHT, LENGTHS, cluster_means, grid
from tests.kernels.test_kmeans import distances, start, tokens

FP32, FP16 = torch.float32, torch.float16


def assert_consistent(x, before, result):
    """Sizes count the labels, centroids are their means, and the order is that of the labels."""
    num = before.shape[2]
    counts = torch.stack([(result.labels == c).sum(-1) for c in range(num)], -1)
    assert torch.equal(result.sizes.long(), counts)
    assert result.centroids.dtype is FP32
    assert result.impl == "fused"
    filled = counts > 0
    exact = cluster_means(x.double(), result.labels, num)
    bound = 32 * torch.finfo(FP32).eps * x.abs().max()
    assert (result.centroids - exact)[filled].abs().max() <= bound
    assert torch.equal(result.centroids[~filled], before.float()[~filled])
    order = kernels.sort_by_label(result.labels, num, impl="reference")
    assert torch.equal(result.order.perm, order.perm)
    assert torch.equal(result.order.offsets, order.offsets)


@pytest.mark.parametrize(
    ("n", "dim", "dtype"), grid(LENGTHS, (64, 128), (FP32, FP16), at_night=AT_NIGHT)
)
def test_one_step_is_assign_then_update(n, dim, dtype, poisoned_memory):
    batch, heads = (2, 2) if n == 17 else (1, 1)
    x = tokens(n, batch=batch, heads=heads, dim=dim).to(dtype)
    before = start(x, min(n, 35))
    result = kernels.kmeans(x, before, 1, impl="fused")
    to_own = distances(x, before).gather(-1, result.labels.long()[..., None])[..., 0]
    nearest = distances(x, before).amin(-1)
    # Labels may differ from fp64 only where two centroids are equally near within fp32.
    slack = 64 * torch.finfo(FP32).eps * x.double().square().sum(-1).max()
    assert (to_own - nearest).max() <= slack
    assert_consistent(x, before, result)


def test_iterations_follow_each_other_as_in_the_reference():
    # Blobs far apart: no token is between two, so both implementations label alike.
    x = torch.cat([torch.randn(1, 2, 30, 128) * 0.1 + c for c in (-5.0, 0.0, 5.0)], 2)
    before = x[:, :, [0, 40, 80]]
    result = kernels.kmeans(x, before, 3, impl="fused")
    expected = kernels.kmeans(x, before, 3, impl="reference")
    assert torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.centroids, expected.centroids)
    assert_consistent(x, result.centroids, result)


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_ties_go_to_the_first_and_empty_clusters_keep_their_centroids(dtype):
    x = torch.randint(-4, 5, (1, 1, 1, 64)).to(dtype).expand(1, 1, 300, 64)
    before = start(x, 40)
    result = kernels.kmeans(x, before, 2, impl="fused")
    assert (result.labels == 0).all()
    assert_consistent(x, before, result)


@pytest.mark.parametrize(
    ("size", "kind", "dtype"),
    grid(((1, 1), (63, 16), (257, 17), (300, 40)), ("tokens", "ties", "nan"), (FP32, FP16)),
)
def test_the_nearest_after_each_tile_is_the_nearest_of_all(size, kind, dtype):
    n, num = size
    x = tokens(n, heads=2, dim=64).to(dtype)
    if kind == "ties":
        x = (8 * x).round() / 8  # no product is rounded, wherever a tile has it
    before = start(x, num)
    if kind == "ties":  # each centroid twice: in one tile, and in the next
        before = before[:, :, torch.arange(num) // 2 % 9 % num]
    if kind == "nan":
        x[:, :, ::3] = float("nan")
    by_column = fused.lloyd(x, before, 1, fused.Tiling(64, 16, 4, 1))
    for tiling in (fused.Tiling(64, 16, 4, 1, True), fused.Tiling(32, 64, 4, 1, True)):
        for found, expected in zip(fused.lloyd(x, before, 1, tiling), by_column, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_one_token_per_cluster():
    x = tokens(63, dim=64, heads=1)
    result = kernels.kmeans(x, start(x, 63), 1, impl="fused")
    assert (result.sizes == 1).all()
    assert_consistent(x, x, result)


def test_what_is_not_a_number_still_gets_a_label():
    x = tokens(20, dim=64, heads=1)
    x[:, :, 3] = float("nan")
    labels = kernels.kmeans(x, x[:, :, 5:10], 1, impl="fused").labels
    assert ((labels >= 0) & (labels < 5)).all()


def test_strided_tokens_twice_the_same_and_inputs_as_they_were():
    x = tokens(100, batch=2, dim=64)
    before = start(x, 9)
    kept = x.clone(), before.clone()
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    first = kernels.kmeans(x, before, 2, impl="fused")
    second = kernels.kmeans(strided, before, 2, impl="fused")
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(x, kept[0])
    assert torch.equal(before, kept[1])


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_means_of_other_tokens_in_the_same_clusters(impl, poisoned_memory):
    x = tokens(100, batch=2, dim=64).to(FP16).transpose(1, 2).contiguous().transpose(1, 2)
    labels = torch.arange(100).remainder(7).int().expand(2, 2, 100)
    order = kernels.sort_by_label(labels, 9, impl="reference")
    means = kernels.cluster_means(x, order, impl=impl)
    exact = cluster_means(x.double(), labels, 9)
    assert means.dtype is FP32
    assert (means - exact).abs().max() <= 32 * torch.finfo(FP32).eps * x.abs().max()
    assert (means[:, :, 7:] == 0).all()


def test_the_op_keeps_its_promises_to_the_compiler():
    x = tokens(30, dim=64, heads=1)
    torch.library.opcheck(fused.kmeans_and_sort, (x, start(x, 5), 1))


def test_compiled_whole():
    def cluster(x, before):
        result = kernels.kmeans(2 * x, before, 1, impl="fused")
        return kernels.permute(x, result.order, impl="fused"), result.sizes

    x = tokens(30, dim=64, heads=1)
    compiled = torch.compile(cluster, fullgraph=True, backend="aot_eager")
    pairs = zip(compiled(x, x[:, :, :5]), cluster(x, x[:, :, :5]), strict=True)
    for actual, expected in pairs:
        assert torch.equal(actual, expected)
