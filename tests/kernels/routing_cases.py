"""The plain definition of routing, with all weights of all keys at once, and checks against it."""

import math

import torch
import torch.nn.functional as F

import kernels
from tests.kernels.cases import assert_as_exact_as, cluster_means


def arguments(case):
    """Query centroids in fp32, sorted keys and values, and offsets."""
    num_q, num_k = case.kept.shape[-2:]
    order = kernels.sort_by_label(case.k_labels, num_k)
    centroids = cluster_means(case.q.float(), case.q_labels, num_q)
    k, v = (kernels.permute(x, order) for x in (case.k, case.v))
    return centroids, k, v, order.offsets


def plain_routes(case, per_pair, dtype=torch.float64):
    """The same, in `dtype` throughout."""
    centroids, *_ = arguments(case)
    q, k, v = (x.to(dtype) for x in (centroids, case.k, case.v))
    num_k = case.kept.shape[-1]
    scale = 1 / math.sqrt(q.shape[-1])
    own_BHKS = F.one_hot(case.k_labels.long(), num_k).mT
    sizes = own_BHKS.sum(-1)[:, :, None]
    scores = (q @ k.mT * scale)[..., None, :].masked_fill(own_BHKS[:, :, None] == 0, -math.inf)
    log_mass = scores.logsumexp(-1)
    p = scores.softmax(-1).nan_to_num(0.0)
    keys, values = p @ k[:, :, None], p @ v[:, :, None]
    mean_k, mean_v = (cluster_means(x.double(), case.k_labels, num_k).to(dtype) for x in (k, v))
    mass = log_mass.softmax(-1)
    error = (values - mean_v[:, :, None]).norm(dim=-1) * mass
    if per_pair:
        weights = log_mass - (keys @ q[..., None])[..., 0] * scale
    else:
        keys, values = mean_k, mean_v
        factor = (log_mass - q @ mean_k.mT * scale).exp() / sizes
        weights = (factor.clamp(math.exp(-1), math.exp(3)) * sizes).log()
        weights = weights.masked_fill(sizes == 0, -math.inf)
    return kernels.Routes(mass, error, kernels.StandIns(keys, values, weights))


def check(case, per_pair, impl="reference", least_mass=0.0):
    """The op in the precision of the case against the same arithmetic in fp64.

    Stand-ins of a smaller mass need only be finite, or have no weight.
    """
    centroids, k, v, offsets = arguments(case)
    routes = kernels.route(centroids, k, v, offsets, per_pair=per_pair, impl=impl)
    low, exact = plain_routes(case, per_pair, k.dtype), plain_routes(case, per_pair)
    # A weight errs by the rounding of its logit.
    logit = 1 + (centroids.double() @ k.double().mT).abs().max() / math.sqrt(k.shape[-1])
    sizes = {"mass": logit, "error": logit * v.abs().max()}
    for name, size in sizes.items():
        assert getattr(routes, name).dtype is torch.float32
        assert_as_exact_as(*(getattr(x, name) for x in (routes, low, exact)), size)
    torch.testing.assert_close(routes.mass.sum(-1), torch.ones_like(routes.mass[..., 0]))

    seen = exact.mass >= least_mass if per_pair else slice(None)
    for name, x in {"keys": k, "values": v}.items():
        parts = [getattr(r.stand_ins, name) for r in (routes, low, exact)]
        assert torch.isfinite(parts[0]).all()
        assert_as_exact_as(*(part[seen] for part in parts), logit * x.abs().max())
    weights = [r.stand_ins.log_weights for r in (routes, low, exact)]
    assert (weights[0] < math.inf).all()
    filled = (weights[2] > -math.inf) & (exact.mass >= least_mass)
    assert (weights[0][weights[2] == -math.inf] == -math.inf).all()
    assert_as_exact_as(*(x[filled] for x in weights), logit + weights[2][filled].abs().max())


def check_exact_at_the_centroid(case, impl, dtype):
    """With everything skipped, attention from query centroids is that to all keys."""
    num_q = case.kept.shape[2]
    centroids, k, v, k_offsets = arguments(case.to(dtype))
    centroids = centroids.to(dtype)
    stand_ins = kernels.route(centroids, k, v, k_offsets, impl=impl).stand_ins
    q_offsets = torch.arange(num_q + 1).int().expand(*case.kept.shape[:2], -1)
    nothing = torch.zeros_like(case.kept)
    out = kernels.cluster_attention(
        *(centroids, k, v, q_offsets, k_offsets, nothing), stand_ins=stand_ins, impl=impl
    )
    low, exact = (
        F.scaled_dot_product_attention(*(x.to(t) for x in (centroids, k, v)))
        for t in (dtype, torch.float64)
    )
    assert_as_exact_as(out, low, exact)
