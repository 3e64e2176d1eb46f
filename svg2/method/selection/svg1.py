"""Sparse VideoGen: each head is spatial or temporal, which a sample of its queries tells."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels import full_fp32
from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection import masses
from svg2.method.selection.tiles import Offsets, keep_nearest, offsets
from svg2.method.selection.top_p import asked_density

_MOST_SAMPLES = 64  # as published
_TOKENS_PER_SAMPLE = 256  # fewer in small videos: 64 would cost more than they help


def route(tokens: Tokens, config: SVG2Config) -> Routed:
    """Masses from the means of tiles, for the statistics and for top-p as the budget."""
    routed = masses.route(tokens, config)
    # Logits, exact output and four masked ones per sampled query.
    passes = 3.0 * _num_samples(tokens) / routed.P.shape[2]
    return Routed(routed.P, passes=passes)


def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    """For each head the mask with the smallest error at the sampled queries.

    A spatial head sees its own frame and the nearest ones, a temporal head its own place and the
    nearest ones in all frames; each with the first frame before all else, or without. The budget
    sets how far that goes.

    Source: Sparse VideoGen, arXiv 2502.01776. There the first frame is always seen, and masks are
    bands of tokens in the order of frames or of places; here they are tiles.
    """
    density = asked_density(tokens, routed, config)
    kept = torch.stack(
        [
            keep_nearest(distance, tokens, density)
            for distance in distances(offsets(tokens, config))
        ]
    )
    best = _errors(tokens, kept, config.seed).argmin(0)
    return kept.gather(0, best[None, :, :, None, None].expand(1, *kept.shape[1:]))[0]


def distances(to: Offsets) -> tuple[Float[Tensor, "Q K"], ...]:
    """How far key tiles are for spatial and temporal heads; the two again with the first frame."""
    spatial = to.frames * (to.place.max() + 1) + to.place
    temporal = to.place * (to.frames.max() + 1) + to.frames
    first = to.to_first < 0.5
    whole = (torch.where(first, x - x.max() - 1, x) for x in (spatial, temporal))
    return spatial, temporal, *whole


def _num_samples(tokens: Tokens) -> int:
    return max(1, min(_MOST_SAMPLES, tokens.q.shape[2] // _TOKENS_PER_SAMPLE))


@full_fp32()
def _errors(tokens: Tokens, kept: Bool[Tensor, "M B H Q K"], seed: int) -> Float[Tensor, "M B H"]:
    """Mean squared error of the output of some random queries with each mask."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = tokens.q.shape[2]
    sample = torch.randperm(num_tokens, generator=generator)[: _num_samples(tokens)]
    sample = sample.to(tokens.q.device)
    errors = torch.empty(kept.shape[:3], device=kept.device)
    for b in range(kept.shape[1]):
        for h in range(kept.shape[2]):
            queries = tokens.q[b, h, sample].float() / math.sqrt(tokens.q.shape[-1])
            weights = torch.softmax(queries @ tokens.k_sorted[b, h].float().T, -1)
            rows = kept[:, b, h, tokens.q_clusters.labels[b, h, sample].long()]
            seen = rows.repeat_interleave(tokens.k_clusters.sizes[b, h], -1)  # [M, R, N]
            masked = torch.cat([weights[None], weights * seen])
            masked = masked / masked.sum(-1, keepdim=True).clamp(min=1e-30)
            out = masked @ tokens.v_sorted[b, h].float()
            errors[:, b, h] = (out[1:] - out[0]).square().mean((-1, -2))
    return errors
