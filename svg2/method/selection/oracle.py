"""Exact top-p per token: what leaving keys out could reach with all of the attention known.

A reference for other methods, not a way to save work: it computes all attention first.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from kernels import KMeansResult, full_fp32
from svg2.config import SVG2Config
from svg2.errors import ConfigError
from svg2.method.plan import CallResult, Plan, TextTokens
from svg2.method.selection.top_p import min_keep_count

MAX_TOKENS = 16384

_ROWS = 256  # queries at a time
_SHIFT = 10  # floats that differ in their last bits alone share a bin
_NUM_BINS = 1 << 20  # of floats below 2


@full_fp32()
def attend(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    config: SVG2Config,
    text: TextTokens | None = None,
    sum_heads: Callable[[Tensor], Tensor] | None = None,
) -> CallResult:
    """Attention of each query over its own heaviest keys, those of top-p.

    With `density` as the budget, p is the largest with which all queries of all heads of the layer
    together stay within it. Each query keeps at least its heaviest key.

    Raises:
        ConfigError: more than `MAX_TOKENS` tokens.
    """
    batch, heads, num_tokens, _ = q.shape
    if num_tokens > MAX_TOKENS:
        raise ConfigError(
            f"method={config.method} compares all pairs of tokens and takes at most {MAX_TOKENS} "
            f"of them, not {num_tokens}: choose another method, or a smaller or shorter video."
        )
    least = None
    if config.density is not None and config.density < 1:
        least = _least_bins(q, k, config.density, sum_heads or (lambda x: x))
    keys, values = k, v
    if text is not None:
        keys, values = (torch.cat(both, 2) for both in ((k, text.k), (v, text.v)))
    out = torch.empty_like(v)
    pairs = torch.zeros((batch, heads), dtype=torch.int64, device=q.device)
    mass = torch.zeros((batch, heads), dtype=torch.float64, device=q.device)
    for part in _parts(q, k):
        b, h = part.head
        kept = part.kept(config, None if least is None else least[b])
        pairs[b, h] += kept.sum()
        mass[b, h] += (part.P * kept).sum(dtype=torch.float64)
        logits = _logits(q[b, h, part.rows], keys[b, h])
        logits[:, :num_tokens].masked_fill_(~kept, -math.inf)
        out[b, h, part.rows] = (logits.softmax(-1) @ values[b, h].float()).to(out.dtype)
    text_out = None
    if text is not None:
        text_out = torch.nn.functional.scaled_dot_product_attention(text.q, keys, values)
    everything = torch.ones((batch, heads, 1, 1), device=q.device)
    plan = Plan(
        *(_one_cluster(q), _one_cluster(k), everything, everything.bool()),
        n_text=0 if text is None else text.q.shape[2],
        pairs=pairs,
        mass=(mass / num_tokens).float(),
    )
    return CallResult(out, plan, text_out)


@dataclass(frozen=True)
class _Part:
    """Some queries of one head.

    Attributes:
        head: sample and head.
        P: attention of each query to each key; rows sum to 1.
    """

    head: tuple[int, int]
    rows: slice
    P: Float32[Tensor, "R N"]

    def lightest_first(self) -> tuple[Float32[Tensor, "R N"], Float32[Tensor, "R N"]]:
        """The attention of each query in rising order, and the sums up to each."""
        P = self.P
        if P.device.type == "cpu":  # several times as fast as torch's, which finds the order too
            rising = torch.from_numpy(np.sort(P.numpy(), axis=-1))
        else:
            rising = P.sort(dim=-1).values
        return rising, rising.cumsum(-1)

    def kept(self, config: SVG2Config, least: Int[Tensor, ""] | None) -> Bool[Tensor, "R N"]:
        """The keys that each query keeps: those from bin `least` on, or what top-p keeps."""
        num_keys = self.P.shape[-1]
        if 1.0 in (config.density, config.top_p if config.density is None else None):
            return torch.ones_like(self.P, dtype=torch.bool)
        rising, down_to = self.lightest_first()
        if least is None:
            left_out = (down_to <= down_to[:, -1:] - config.top_p).sum(1)
            num_min = min_keep_count(config.min_keep_ratio, num_keys)
        else:
            left_out, num_min = (_bins(down_to) < least).sum(1), 1
        first = left_out.clamp(max=num_keys - num_min)[:, None]
        lightest = rising.gather(1, first)
        is_heavier = self.P.gt(lightest)
        is_as_heavy = self.P.eq(lightest)
        if least is None:
            return is_heavier | is_as_heavy
        # Keys of equal weight are kept or left together, since only together they may fit.
        next_lighter = rising.gather(1, (first - 1).clamp(min=0))
        has_equal = (first > 0) & (next_lighter == lightest) & (lightest < rising[:, -1:])
        return is_heavier | (is_as_heavy & ~has_equal)


def _bins(down_to: Float32[Tensor, "R N"]) -> Int[Tensor, "R N"]:
    return down_to.view(torch.int32) >> _SHIFT


def _parts(q: Float[Tensor, "B H N D"], k: Float[Tensor, "B H N D"]) -> Iterator[_Part]:
    batch, heads, num_tokens, _ = q.shape
    for b, h in torch.cartesian_prod(torch.arange(batch), torch.arange(heads)).tolist():
        for first in range(0, num_tokens, _ROWS):
            rows = slice(first, first + _ROWS)
            yield _Part((b, h), rows, _logits(q[b, h, rows], k[b, h]).softmax(-1))


def _logits(q: Float[Tensor, "R D"], k: Float[Tensor, "S D"]) -> Float32[Tensor, "R S"]:
    return (q.float() / math.sqrt(q.shape[-1])) @ k.float().T


def _least_bins(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    density: float,
    sum_heads: Callable[[Tensor], Tensor],
) -> Int[Tensor, " B"]:
    """The lightest bin that fits into the budget of all heads, with all heavier ones."""
    batch, heads, num_tokens, _ = q.shape
    histogram = torch.zeros((batch, _NUM_BINS), dtype=torch.int64, device=q.device)
    for part in _parts(q, k):
        bins = _bins(part.lightest_first()[1])[
            :, :-1
        ]  # the heaviest key of a query is kept anyway
        histogram[part.head[0]] += bins.reshape(-1).bincount(minlength=_NUM_BINS)
    histogram = sum_heads(histogram)
    num_heads = sum_heads(torch.tensor([heads], device=q.device))
    left = (num_heads.double() * num_tokens**2 * density).long() - num_heads * num_tokens
    down_to = histogram.flip(1).cumsum(1).flip(1)
    return (down_to > left).sum(1)


def _one_cluster(x: Float[Tensor, "B H N D"]) -> KMeansResult:
    """All tokens as one cluster."""
    labels = torch.zeros(x.shape[:3], dtype=torch.int32, device=x.device)
    sizes = torch.full((*x.shape[:2], 1), x.shape[2], dtype=torch.int32, device=x.device)
    return KMeansResult(labels, x.float().mean(2, keepdim=True), sizes, "reference")
