"""Routing in PyTorch: on a CPU the heads are shared among one-thread workers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kernels.cluster_attention.stand_ins import StandIns
from kernels.cpu import scripted, share_work
from kernels.precision import full_fp32

_LEAST_SEEN = 1e-30  # of the heaviest key's weight: less can't be normalised in fp32
LEAST_LOG_FACTOR, MOST_LOG_FACTOR = -1.0, 3.0


@full_fp32()
def route(
    q_centroids: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    k_offsets: Int[Tensor, "B H K1"],
    scale: float,
    per_pair: bool,
) -> tuple[Float[Tensor, "B H Q K"], Float[Tensor, "B H Q K"], StandIns]:
    """Mass, error and stand-ins; in fp64 for fp64 keys, else in fp32."""
    batch, heads, num_q, dim = q_centroids.shape
    num_k = k_offsets.shape[-1] - 1
    dtype = torch.promote_types(k.dtype, torch.float32)
    queries = (q_centroids.to(dtype) * scale).flatten(0, 1)
    k, v, offsets = k.flatten(0, 1), v.flatten(0, 1), k_offsets.flatten(0, 1).long()
    sums = k.new_empty((batch * heads, num_k, num_q, 2 * dim), dtype=dtype)
    means = k.new_empty((batch * heads, num_k, 2 * dim), dtype=dtype)
    mass, error, log_weights = (
        k.new_empty((batch * heads, num_q, num_k), dtype=dtype) for _ in range(3)
    )

    def route_heads(take) -> None:
        while (h := take()) is not None:
            kv = torch.cat([k[h], v[h]], dim=-1).to(dtype)
            starts, sizes = offsets[h, :-1], offsets[h].diff()
            places = torch.arange(len(kv), device=kv.device)
            means[h] = F.embedding_bag(places, kv, starts, mode="mean")
            logits = kv[:, :dim] @ queries[h].t()  # [S, Q]
            highest = logits.amax(0)
            weights = logits.sub_(highest).exp()
            seen = F.embedding_bag(places, weights, starts, mode="sum")  # [K, Q]
            torch.div(seen.t(), seen.sum(0)[:, None], out=mass[h])
            # Weights within each cluster; none for empty ones, and where all underflow.
            is_seen = seen > _LEAST_SEEN
            scales = torch.where(is_seen, seen.reciprocal(), 0.0)
            weights.mul_(scales.repeat_interleave(sizes, 0))
            _sum_segments(weights, kv, offsets[h], sums[h])
            gap = torch.linalg.vector_norm(sums[h, ..., dim:] - means[h, :, None, dim:], dim=-1)
            torch.mul(gap.t(), mass[h], out=error[h])
            if per_pair:
                mean_logits = F.embedding_bag(places, weights.mul_(logits), starts, mode="sum")
                log_seen = seen.log().masked_fill_(~is_seen, -torch.inf)
                log_weights[h] = (log_seen - mean_logits).t()
            else:
                log_sizes = sizes.to(dtype).log()
                log_seen = seen.log().t() + highest[:, None]
                factor = log_seen - queries[h] @ means[h, :, :dim].t() - log_sizes
                factor = factor.clamp(LEAST_LOG_FACTOR, MOST_LOG_FACTOR)
                log_weights[h] = log_sizes + factor.nan_to_num(0.0)

    share_work(range(batch * heads), route_heads, k.device)
    by_pair = sums.transpose(1, 2) if per_pair else means
    keys, values = by_pair.unflatten(0, (batch, heads)).split(dim, dim=-1)
    mass, error, log_weights = (x.unflatten(0, (batch, heads)) for x in (mass, error, log_weights))
    return mass, error, StandIns(keys, values, log_weights)


@scripted
def _sum_segments(weights: Tensor, tokens: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Weighted sums of each segment of tokens: [S, Q], [S, E], [K + 1], into [K, Q, E]."""
    bounds: list[int] = offsets.tolist()
    for j in range(len(bounds) - 1):
        start, end = bounds[j], bounds[j + 1]
        if end > start:
            torch.mm(weights[start:end].t(), tokens[start:end], out=out[j])
        else:
            out[j].zero_()
