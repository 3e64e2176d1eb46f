"""Routing by error within each query cluster: SVG-EAR as published."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels import full_fp32
from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection import masses, top_p
from svg2.method.selection.budget import heaviest

BY_MASS = 0.5
SEEN = False


@full_fp32()
def route(tokens: Tokens, config: SVG2Config) -> Routed:
    stand_ins = masses.centroid_stand_ins(tokens, config)
    q_clusters, k_clusters = tokens.q_clusters, tokens.k_clusters
    P = masses.cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes)
    scale = 1 / math.sqrt(tokens.k.shape[-1])
    batch, heads = P.shape[:2]
    error, mass = torch.empty_like(P), torch.empty_like(P)
    for b in range(batch):
        for h in range(heads):
            error[b, h], mass[b, h] = _errors(
                q_clusters.centroids[b, h] * scale,
                tokens.k_sorted[b, h].float(),
                tokens.v_sorted[b, h].float(),
                k_clusters.centroids[b, h],
                stand_ins.values[b, h].float(),
                tokens.k_order.offsets[b, h].long(),
            )
    return Routed(mass if SEEN else P, error, stand_ins, passes=0.5)


def _errors(queries, k, v, k_means, v_means, offsets):
    sizes = offsets.diff()
    starts, places = offsets[:-1], torch.arange(len(k), device=k.device)

    def summed(x: Tensor) -> Tensor:  # [S, Q] by key cluster: [K, Q]
        return F.embedding_bag(places, x, starts, mode="sum")

    logits = k @ queries.T
    highest = logits.amax(0)
    weights = (logits - highest).exp()
    stood = (k_means @ queries.T - highest).exp()
    own = (v * v_means.repeat_interleave(sizes, 0)).sum(-1, keepdim=True)
    seen = summed(weights)
    crossed = summed(weights * own)
    squares = summed(weights.square_() * v.square().sum(-1, keepdim=True))
    error = squares - 2 * stood * crossed
    error += sizes[:, None] * stood.square() * v_means.square().sum(-1, keepdim=True)
    total = seen.sum(0)
    return (error.clamp(min=0) / total.square()).T, (seen / total).T


def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    assert routed.error is not None
    asked = top_p.select(tokens, routed, config)
    sizes = tokens.k_clusters.sizes.long().unsqueeze(-2)
    budget = (asked * sizes).sum(-1, keepdim=True)
    first = heaviest(routed.P, tokens.k_clusters.sizes)
    first |= _fill(routed.P / sizes.clamp(min=1) if MASS_RATIO else routed.P, sizes, (budget * BY_MASS).long(), first)
    return _fill(routed.error / sizes.clamp(min=1), sizes, budget, first)

MASS_RATIO=False

def _fill(gain, sizes, budget, kept):
    """`kept`, and the blocks of largest gain that fit into the budget of their row beside it."""
    left = budget - (kept * sizes).sum(-1, keepdim=True)
    ranked = gain.masked_fill(kept | (sizes == 0), -1.0)
    order = ranked.argsort(-1, descending=True, stable=True)
    costs = sizes.expand_as(gain).gather(-1, order).masked_fill(ranked.gather(-1, order) < 0, 0)
    fits = costs.cumsum(-1) <= left
    return kept | (torch.zeros_like(kept).scatter_(-1, order, fits) & (sizes > 0))
