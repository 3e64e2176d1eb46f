"""Top-p selection: the fewest key clusters that hold a given share of the attention mass."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from svg2.config import SVG2Config, ceil_fraction
from svg2.method.plan import Routed, Tokens
from svg2.method.selection.budget import heaviest, spend


def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    """The selection of SVG2: `keep_top_p` with the settings of `config`.

    With `density` as the budget, p is the largest with which all heads of the layer together stay
    within it, and at least the heaviest cluster is kept.
    """
    sizes = tokens.k_clusters.sizes
    if config.density is None:
        return keep_top_p(routed.P, sizes, config.top_p, config.min_keep_ratio)
    sorted_P, order = torch.sort(routed.P, dim=-1, stable=True)
    # The mass of a cluster and of all lighter ones: top-p keeps those with more than 1 - p.
    mass_down_to = torch.zeros_like(sorted_P).scatter_(-1, order, sorted_P.cumsum(-1))
    return spend(mass_down_to, heaviest(routed.P, sizes), tokens, config.density)


def asked_density(
    tokens: Tokens, routed: Routed, config: SVG2Config
) -> float | Float64[Tensor, " B"]:
    """The budget of the layer: `density`, or the share of all pairs that top-p would keep."""
    if config.density is not None:
        return config.density
    if config.top_p == 1.0:
        return 1.0
    pairs = tokens.pairs()
    asked = keep_top_p(routed.P, tokens.k_clusters.sizes, config.top_p, config.min_keep_ratio)
    kept, all_pairs = (
        tokens.sum_heads(x.flatten(1).sum(1)).double() for x in (pairs * asked, pairs)
    )
    return kept / all_pairs


def keep_top_p(
    P: Float[Tensor, "B H Q K"],
    k_sizes: Int[Tensor, "B H K"],
    top_p: float,
    min_keep_ratio: float,
) -> Bool[Tensor, "B H Q K"]:
    """Keep, per query cluster, the fewest key clusters whose mass reaches `top_p`.

    Clusters are taken in order of falling mass, ties in order of index. The heaviest is always
    kept. Empty clusters are never kept.

    Args:
        P: attention mass of each key cluster per query cluster; rows sum to 1.
        k_sizes: tokens per key cluster.
        top_p: mass to reach, in (0, 1]; 1 keeps all clusters that are not empty.
        min_keep_ratio: in [0, 1]; at least `ceil(min_keep_ratio * K)` clusters are kept, as far
            as they are not empty.

    The ranges are not checked here: `SVG2Config` has checked them.

    Source: SVG2, arXiv 2505.18875, section on top-p dynamic budget control.
    """
    filled_BHQK = (k_sizes > 0).unsqueeze(-2).expand(P.shape)
    if top_p == 1.0:  # rounding may let the running sum reach 1 before the last cluster
        return filled_BHQK.clone()
    # Empty clusters come last, even after clusters whose mass underflows to 0.
    ranked_P = P.masked_fill(~filled_BHQK, -1.0)
    sorted_P, order = torch.sort(ranked_P, dim=-1, descending=True, stable=True)
    mass_before = torch.zeros_like(sorted_P)
    torch.cumsum(sorted_P[..., :-1], dim=-1, out=mass_before[..., 1:])
    kept_sorted = mass_before < top_p
    kept_sorted[..., : min_keep_count(min_keep_ratio, P.shape[-1])] = True
    kept = torch.zeros_like(kept_sorted).scatter_(-1, order, kept_sorted)
    return kept & filled_BHQK


def min_keep_count(min_keep_ratio: float, num_k_clusters: int) -> int:
    """Number of key clusters that each query cluster keeps whatever their mass; at least 1."""
    return max(1, ceil_fraction(min_keep_ratio, num_k_clusters))
