"""SVG-EAR as published: within each query cluster, a part of the budget goes by error."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from kernels import StandIns, full_fp32
from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection import masses, top_p
from svg2.method.selection.budget import heaviest

_SHARE_BY_MASS = 0.25  # measured: up to a half as good as none, from there on worse


@full_fp32()
def route(tokens: Tokens, config: SVG2Config) -> Routed:
    """Masses seen at query centroids, centroids that stand in, and the error of each.

    Source: SVG-EAR, arXiv 2603.08982. There masses are those of SVG2, from centroids alone; those
    that the pass over all keys sees anyway are better (0.2 to 0.8 dB on the built-in model).
    """
    stand_ins = masses.centroid_stand_ins(tokens, config)
    shape = (*tokens.q_clusters.centroids.shape[:3], stand_ins.keys.shape[2])
    P, error = (torch.empty(shape, device=tokens.q.device) for _ in range(2))
    for b in range(shape[0]):
        for h in range(shape[1]):
            P[b, h], error[b, h] = _probe(tokens, stand_ins, (b, h))
    # Logits alone: `_probe` takes the products of values once for all queries.
    return Routed(P, error, stand_ins, passes=0.5)


def _probe(
    tokens: Tokens, stand_ins: StandIns, head: tuple[int, int]
) -> tuple[Float32[Tensor, "Q K"], Float32[Tensor, "Q K"]]:
    """Mass of each key cluster, and the squared deviations of what stands for its keys, summed.

    A key k of cluster j adds `w_k v_k` to the sum of a query, its stand-in `w_j v_j`. The squared
    length of the difference is `w_k² |v_k|² - 2 w_k w_j v_k·v_j + w_j² |v_j|²`.
    """
    q, k, v, offsets = (
        x[head]
        for x in (
            tokens.q_clusters.centroids / math.sqrt(tokens.k.shape[-1]),
            tokens.k_sorted,
            tokens.v_sorted,
            tokens.k_order.offsets.long(),
        )
    )
    k, v, k_means, v_means = (
        x.float() for x in (k, v, stand_ins.keys[head], stand_ins.values[head])
    )
    sizes, places = offsets.diff(), torch.arange(len(k), device=k.device)

    def by_cluster(x: Float[Tensor, "N Q"]) -> Float[Tensor, "K Q"]:
        return F.embedding_bag(places, x, offsets[:-1], mode="sum")

    logits = k @ q.T
    highest = logits.amax(0)
    weights = logits.sub_(highest).exp_()
    mass = by_cluster(weights)
    total = mass.sum(0)
    stood = (k_means @ q.T - highest).exp()
    products = (v * v_means.repeat_interleave(sizes, 0)).sum(-1, keepdim=True)
    error = stood.square() * (sizes * v_means.square().sum(-1))[:, None]
    error -= 2 * stood * by_cluster(weights * products)
    error += by_cluster(weights.square_().mul_(v.square().sum(-1, keepdim=True)))
    return (mass / total).T, (error.clamp(min=0) / total.square()).T


def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    """For each query cluster as many keys as top-p keeps for it, some by mass and then by error.

    The keys by error are of the clusters with the largest error per key. The heaviest cluster is
    always kept.

    Source: SVG-EAR, arXiv 2603.08982.
    """
    assert routed.error is not None
    sizes = tokens.k_clusters.sizes.long().unsqueeze(-2)
    budget = (top_p.select(tokens, routed, config) * sizes).sum(-1, keepdim=True)
    kept = heaviest(routed.P, tokens.k_clusters.sizes)
    kept = _fill(kept, routed.P, sizes, (budget * _SHARE_BY_MASS).long())
    return _fill(kept, routed.error / sizes.clamp(min=1), sizes, budget)


def _fill(
    kept: Bool[Tensor, "B H Q K"],
    gain: Float[Tensor, "B H Q K"],
    sizes: Int[Tensor, "B H 1 K"],
    budget: Int[Tensor, "B H Q 1"],
) -> Bool[Tensor, "B H Q K"]:
    """What is kept already, then the blocks of largest gain while the keys of a row fit."""
    left = budget - (kept * sizes).sum(-1, keepdim=True)
    is_open = ~kept & (sizes > 0)
    order = gain.masked_fill(~is_open, -1.0).argsort(dim=-1, descending=True, stable=True)
    costs = (is_open * sizes).gather(-1, order)
    fits = torch.zeros_like(kept).scatter_(-1, order, costs.cumsum(-1) <= left)
    return kept | (fits & is_open)
