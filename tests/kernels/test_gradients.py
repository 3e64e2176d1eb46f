"""Ops without a backward pass say so where a gradient would have to flow through them."""

import pytest
import torch

import kernels


def _arguments():
    x = torch.randn(1, 1, 6, 64)
    order = kernels.sort_by_label(torch.tensor([[[0, 1, 0, 1, 1, 0]]]).int(), 2)
    kept = torch.tensor([[[[True, False], [True, True]]]])
    return x, order, kept


def _attention(q, k, v, keys=None, values=None):
    x, order, kept = _arguments()
    means = x[:, :, :2]
    stand_ins = kernels.StandIns(
        means if keys is None else keys,
        means if values is None else values,
    )
    offsets = order.offsets
    return kernels.cluster_attention(q, k, v, offsets, offsets, kept, stand_ins=stand_ins)


def _route(q_centroids, k, v):
    return kernels.route(q_centroids, k, v, _arguments()[1].offsets)


OPS = {
    "kmeans x": lambda x, w: kernels.kmeans(w, x[:, :, :2], 1),
    "kmeans centroids": lambda x, w: kernels.kmeans(x, w[:, :, :2], 1),
    "cluster_means x": lambda x, w: kernels.cluster_means(w, _arguments()[1]),
    "permute x": lambda x, w: kernels.permute(w, _arguments()[1]),
    "unpermute x": lambda x, w: kernels.unpermute(w, _arguments()[1]),
    "route q_centroids": lambda x, w: _route(w[:, :, :2], x, x),
    "route k": lambda x, w: _route(x[:, :, :2], w, x),
    "route v": lambda x, w: _route(x[:, :, :2], x, w),
    "cluster_attention q": lambda x, w: _attention(w, x, x),
    "cluster_attention k": lambda x, w: _attention(x, w, x),
    "cluster_attention v": lambda x, w: _attention(x, x, w),
    "cluster_attention keys": lambda x, w: _attention(x, x, x, keys=w[:, :, :2]),
    "cluster_attention values": lambda x, w: _attention(x, x, x, values=w[:, :, :2]),
}


@pytest.mark.parametrize("name", OPS)
def test_an_input_that_requires_a_gradient_is_refused(name):
    x = _arguments()[0]
    weight = x.clone().requires_grad_()
    op, argument = name.split()
    with pytest.raises(
        ValueError, match=f"{op} has no backward pass, but {argument} requires a gradient"
    ):
        OPS[name](x, weight)
    with torch.no_grad():
        OPS[name](x, weight)
    OPS[name](x, weight.detach())


def test_the_fused_ops_refuse_alike():
    x, order, _ = _arguments()
    weight = x.clone().requires_grad_()
    for call in (
        lambda: kernels.kmeans(weight, x[:, :, :2], 1, impl="fused"),
        lambda: kernels.cluster_means(weight, order, impl="fused"),
        lambda: kernels.permute(weight, order, impl="fused"),
        lambda: kernels.unpermute(weight, order, impl="fused"),
    ):
        with pytest.raises(ValueError, match="has no backward pass"):
            call()
