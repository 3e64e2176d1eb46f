"""Routing in PyTorch: on a CPU the heads are shared among one-thread workers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kernels.cluster_attention.stand_ins import StandIns
from kernels.cpu import scripted, share_work
from kernels.precision import full_fp32

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
    sums = k.new_empty((batch * heads, num_q, num_k, 2 * dim), dtype=dtype)
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
            weights = kv[:, :dim] @ queries[h].t()  # [S, Q]
            highest = weights.amax(0)
            weights.sub_(highest).exp_()
            seen = F.embedding_bag(places, weights, starts, mode="sum").t().contiguous()
            _sum_segments(weights, kv, offsets[h], sums[h])
            total = seen.sum(-1, keepdim=True)
            torch.div(seen, total, out=mass[h])
            log_seen = seen.log() + highest[:, None]
            # From sums to means: 0 for an empty cluster, and where all weights underflow.
            sums[h] /= torch.where(seen > 0, seen, 1.0)[..., None]
            gap = torch.linalg.vector_norm(sums[h, ..., dim:] - means[h, :, dim:], dim=-1)
            torch.mul(gap, mass[h], out=error[h])
            if per_pair:
                logits = torch.bmm(sums[h, ..., :dim], queries[h][..., None])[..., 0]
                torch.sub(log_seen, logits, out=log_weights[h])
            else:
                log_sizes = sizes.to(dtype).log()
                factor = log_seen - queries[h] @ means[h, :, :dim].t() - log_sizes
                factor = factor.clamp(LEAST_LOG_FACTOR, MOST_LOG_FACTOR)
                log_weights[h] = log_sizes + factor.nan_to_num(0.0)

    share_work(range(batch * heads), route_heads, k.device)
    by_pair = sums if per_pair else means
    keys, values = by_pair.unflatten(0, (batch, heads)).split(dim, dim=-1)
    mass, error, log_weights = (x.unflatten(0, (batch, heads)) for x in (mass, error, log_weights))
    return mass, error, StandIns(keys, values, log_weights)


@scripted
def _sum_segments(weights: Tensor, tokens: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Weighted sums of each segment of tokens: [S, Q], [S, E], [K + 1], into [Q, K, E]."""
    bounds: list[int] = offsets.tolist()
    for j in range(len(bounds) - 1):
        start, end = bounds[j], bounds[j + 1]
        if end > start:
            torch.mm(weights[start:end].t(), tokens[start:end], out=out[:, j])
        else:
            out[:, j].zero_()
