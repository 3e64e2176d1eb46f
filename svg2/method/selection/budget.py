"""One budget of query-key pairs for all heads of a layer, spent where most is to be gained.

The threshold is found with two histograms: there is no sort, nothing waits for the device, and
processes that share the heads of a layer add up their histograms.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from svg2.method.plan import Tokens

_HALF_BITS = 16


def heaviest(
    P: Float[Tensor, "B H Q K"], k_sizes: Int[Tensor, "B H K"]
) -> Bool[Tensor, "B H Q K"]:
    """The key cluster with the largest mass of each query cluster, never an empty one."""
    ranked = P.masked_fill((k_sizes == 0).unsqueeze(-2), -1.0)
    return torch.zeros_like(P, dtype=torch.bool).scatter_(
        -1, ranked.argmax(-1, keepdim=True), True
    )


def spend(
    gain: Float[Tensor, "B H Q K"],
    always: Bool[Tensor, "B H Q K"],
    tokens: Tokens,
    density: float | Float[Tensor, " B"],
) -> Bool[Tensor, "B H Q K"]:
    """Keep the blocks with the largest gain, as many as the budget of the layer allows.

    Blocks of equal gain are kept or left together. Empty key clusters are never kept.

    Args:
        gain: what keeping a block is worth per query-key pair, at least 0.
        always: blocks that are kept first, even beyond the budget.
        density: share of all query-key pairs of the layer's heads that may be kept.
    """
    pairs = tokens.pairs()
    filled = (tokens.k_clusters.sizes > 0).unsqueeze(-2)
    always = always & filled
    total = tokens.sum_heads(pairs.flatten(1).sum(1))
    spent = tokens.sum_heads((pairs * always).flatten(1).sum(1))
    left = (total.double() * density).long() - spent
    # Floats that are not negative are in the order of their bits.
    bits = gain.float().clamp(min=0).nan_to_num(0.0).contiguous().view(torch.int32).flatten(1)
    costs = (pairs * (filled & ~always)).flatten(1)
    high, low = bits >> _HALF_BITS, bits & ((1 << _HALF_BITS) - 1)
    first, left = _threshold(high, costs, left, tokens)
    second, _ = _threshold(low, costs * (high == first), left, tokens)
    affordable = (high > first) | ((high == first) & (low > second))
    return always | (affordable.view(gain.shape) & filled)


def _threshold(
    bins: Int[Tensor, "B X"], costs: Int[Tensor, "B X"], left: Int[Tensor, " B"], tokens: Tokens
) -> tuple[Int[Tensor, "B 1"], Int[Tensor, " B"]]:
    """The first bin, from the top, that no longer fits, and what is left above it.

    -1 where everything fits.
    """
    histogram = costs.new_zeros((len(bins), 1 << _HALF_BITS)).scatter_add_(1, bins.long(), costs)
    histogram = tokens.sum_heads(histogram)
    down_to = histogram.flip(1).cumsum(1).flip(1)
    fits = down_to <= left.unsqueeze(1)
    # `down_to` falls with the bin: those that fit are the last ones.
    bin_that_does_not = (~fits).sum(1, keepdim=True) - 1
    above = (bin_that_does_not + 1).clamp(max=histogram.shape[1] - 1)
    spent = torch.where(
        bin_that_does_not + 1 < histogram.shape[1], down_to.gather(1, above), 0
    ).squeeze(1)
    return bin_that_does_not, left - spent
