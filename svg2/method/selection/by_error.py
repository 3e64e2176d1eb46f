"""Routing by predicted error: what would be missed most is computed, whatever head it is in.

The router attends from the query centroids to all keys. It predicts the error of each skipped
block, and finds what stands for it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import kernels
from kernels import KMeansResult, Permutation
from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection.budget import heaviest, spend
from svg2.method.selection.top_p import asked_density


def route(tokens: Tokens, config: SVG2Config) -> Routed:
    """Masses and errors seen at the query centroids, and stand-ins that weigh what was seen.

    At the centroid of a query cluster a stand-in is exact, or nearly so. What it misses grows with
    the distance of the queries from their centroid and with the spread of the keys that it stands
    for, so the error seen is weighed with both.

    Source: SVG-EAR, arXiv 2603.08982, for routing by error; the error, the weights of stand-ins
    and one budget for all heads are ours.
    """
    per_pair = config.stand_ins == "pairs"
    routes = kernels.route(
        tokens.q_clusters.centroids,
        tokens.k_sorted,
        tokens.v_sorted,
        tokens.k_order.offsets,
        per_pair=per_pair,
        impl=config.impl,
    )
    q_spread = spread(tokens.q, tokens.q_clusters, tokens.q_order)
    k_spread = spread(tokens.k, tokens.k_clusters, tokens.k_order)
    error = routes.error * q_spread.unsqueeze(-1) * k_spread.unsqueeze(-2)
    # Logits, then values; and keys too where each pair of clusters has its own.
    passes = 1.5 if per_pair else 1.0
    return Routed(routes.mass, error, routes.stand_ins, passes)


def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    """The blocks with the largest predicted error per key, from one budget for all heads.

    The budget is `density`, or what top-p would keep. The heaviest block of each query cluster is
    always kept.
    """
    assert routed.error is not None
    sizes = tokens.k_clusters.sizes
    gain = routed.error / sizes.clamp(min=1).unsqueeze(-2)
    density = asked_density(tokens, routed, config)
    return spend(gain, heaviest(routed.P, sizes), tokens, density)


def spread(
    x: Float[Tensor, "B H N D"], clusters: KMeansResult, order: Permutation
) -> Float[Tensor, "B H C"]:
    """Root mean squared distance of the tokens of each cluster from their mean, in fp32."""
    norms = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).square_()
    norms = torch.cat([norms.new_zeros(*norms.shape[:2], 1), norms.gather(2, order.perm)], dim=2)
    sums = norms.double().cumsum(2).gather(2, order.offsets.long()).diff(dim=-1)
    means = (sums / order.sizes.clamp(min=1)).float()
    return (means - clusters.centroids.square().sum(-1)).clamp(min=0).sqrt()
