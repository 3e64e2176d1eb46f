"""Cluster attention in PyTorch, and what runs on a CPU: work falls with the kept share.

Per query cluster the kept keys and values are copied together and a small dense attention runs
over them, on a pool of one-thread workers, the longest first.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.cpu import multiplies_bf16_tiles, scripted, share_work
from kernels.precision import full_fp32

# A bf16 product takes a multiple of so many keys: oneDNN compiles one for each new shape, which
# takes longer than the product itself.
_BF16_KEYS_STEP = 128
# Query clusters are handed to the workers in so many shares, each with long and short ones.
_NUM_SHARES = 24


@full_fp32()
def cluster_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    scale: float,
    keys: Float[Tensor, "B H *pair D"] | None = None,
    values: Float[Tensor, "B H *pair D"] | None = None,
    log_weights: Float[Tensor, "B H *pair"] | None = None,
) -> Float[Tensor, "B H N D"]:
    """Heads that keep everything go to one dense SDPA, the blocks of the others to the workers.

    `keys`, `values` and `log_weights` are the stand-ins of skipped clusters.
    """
    shape = q.shape
    q, k, v, kept = (x.flatten(0, 1) for x in (q, k, v, kept))
    q_offsets, k_offsets = (x.flatten(0, 1).long() for x in (q_offsets, k_offsets))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q_sizes, k_sizes = q_offsets.diff(dim=-1), k_offsets.diff(dim=-1)
    filled = (k_sizes > 0)[:, None]
    kept = kept & filled
    skipped = filled & ~kept

    sparse = (skipped.any(-1) & (q_sizes > 0)).any(-1)
    dense_heads = (~sparse).nonzero()[:, 0]
    if len(dense_heads) == len(q):
        return _sdpa(q, k, v, scale).view(shape)
    if len(dense_heads) > 0:
        out.index_copy_(0, dense_heads, _sdpa(*(x[dense_heads] for x in (q, k, v)), scale))

    dtype = _product_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    bias = None
    if keys is not None and values is not None:
        keys, values = (x.flatten(0, 1).to(dtype) for x in (keys, values))
        bias = k_sizes.double().log() if log_weights is None else log_weights.flatten(0, 1)
        bias = bias.to(torch.promote_types(dtype, torch.float32))
        bias = (bias if bias.ndim == 3 else bias[:, None]).masked_fill(~skipped, -torch.inf)
    num_virtual = 0 if keys is None else kept.shape[-1]
    rows, longest = _rows(q_offsets, kept, k_sizes, sparse, num_virtual)
    kept_ids = kept.nonzero()[:, 2]
    step = _BF16_KEYS_STEP if dtype is torch.bfloat16 else 1
    longest = -(-(longest + num_virtual) // step) * step
    shares = [rows[i::_NUM_SHARES] for i in range(min(_NUM_SHARES, len(rows)))]

    def attend_shares(take: Callable[[], Tensor | None]) -> None:
        scratch = k.new_empty((2, longest, k.shape[-1]))
        while (share := take()) is not None:
            _attend(
                share, kept_ids, k_offsets, q, k, v, scale, keys, values, bias, step, scratch, out
            )

    share_work(shares, attend_shares, q.device)
    return out.view(shape)


def _rows(
    q_offsets: Int[Tensor, "BH Q1"],
    kept: Bool[Tensor, "BH Q K"],
    k_sizes: Int[Tensor, "BH K"],
    sparse: Bool[Tensor, " BH"],
    num_virtual: int,
) -> tuple[Int[Tensor, "rows 6"], int]:
    """The work list, longest first so that the workers end together, and the most keys of one row.

    A row is a query cluster: head, cluster, first query and end, first of its kept ids and end.
    """
    num_keys = (kept * k_sizes[:, None]).sum(-1)
    num_queries = q_offsets.diff(dim=-1)
    ends = kept.sum(-1).flatten().cumsum(0).view_as(num_keys)
    heads, clusters = (sparse[:, None] & (num_queries > 0)).nonzero().unbind(-1)
    rows = torch.stack(
        [
            heads,
            clusters,
            q_offsets[heads, clusters],
            q_offsets[heads, clusters + 1],
            (ends - kept.sum(-1))[heads, clusters],
            ends[heads, clusters],
        ],
        dim=1,
    )
    cost = (num_queries * (num_keys + num_virtual))[heads, clusters]
    return rows[cost.argsort(descending=True, stable=True)].cpu(), int(num_keys.max())


@scripted
def _attend(
    rows: Tensor,
    kept_ids: Tensor,
    k_offsets: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    virtual_k: Tensor | None,
    virtual_v: Tensor | None,
    bias: Tensor | None,
    step: int,
    scratch: Tensor,
    out: Tensor,
) -> None:
    """Attend from the query clusters of `rows`, one after the other.

    Where products are in bf16 (`step` above 1) the keys are filled up to a multiple of `step`, and
    PyTorch's own attention runs: it keeps the scores in fp32.
    """
    row: list[int] = rows.flatten().tolist()
    ids: list[int] = kept_ids.tolist()
    bounds: list[int] = k_offsets.flatten().tolist()
    num_bounds = k_offsets.size(1)
    for n in range(len(row) // 6):
        h, i, first, end = row[6 * n], row[6 * n + 1], row[6 * n + 2], row[6 * n + 3]
        k_parts: list[Tensor] = []
        v_parts: list[Tensor] = []
        num_virtual = 0
        if virtual_k is not None and virtual_v is not None:
            num_virtual = bias.size(2) if bias is not None else 0
            k_parts.append(virtual_k[h, i] if virtual_k.dim() == 4 else virtual_k[h])
            v_parts.append(virtual_v[h, i] if virtual_v.dim() == 4 else virtual_v[h])
        head_k, head_v = k[h], v[h]
        length = num_virtual
        for e in range(row[6 * n + 4], row[6 * n + 5]):
            a = bounds[h * num_bounds + ids[e]]
            b = bounds[h * num_bounds + ids[e] + 1]
            k_parts.append(head_k[a:b])
            v_parts.append(head_v[a:b])
            length += b - a
        if length == 0:
            out[h, first:end].zero_()
            continue
        keys = torch.cat(k_parts, dim=0, out=scratch[0, :length])
        values = torch.cat(v_parts, dim=0, out=scratch[1, :length])
        queries = q[h, first:end]
        if step == 1:
            scores = torch.mm(queries, keys.t()).mul_(scale)
            if bias is not None:
                scores[:, :num_virtual].add_(bias[h, i])
            weights = torch.softmax(scores, 1)
            if out.dtype == weights.dtype:
                torch.mm(weights, values, out=out[h, first:end])
            else:
                out[h, first:end].copy_(torch.mm(weights, values))
        else:
            padded = (length + step - 1) // step * step
            scratch[:, length:padded].zero_()
            mask = torch.zeros([1, padded], dtype=queries.dtype, device=queries.device)
            mask[:, length:] = -float("inf")
            if bias is not None:
                mask[:, :num_virtual] = bias[h, i]
            out[h, first:end].copy_(
                torch.nn.functional.scaled_dot_product_attention(
                    queries[None, None],
                    scratch[0, :padded][None, None],
                    scratch[1, :padded][None, None],
                    attn_mask=mask,
                    scale=scale,
                )[0, 0]
            )


def _sdpa(
    q: Float[Tensor, "G M D"], k: Float[Tensor, "G L D"], v: Float[Tensor, "G L D"], scale: float
) -> Float[Tensor, "G M D"]:
    """PyTorch's own attention; its fast CPU path wants four dimensions."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]


def _product_dtype(q: Tensor) -> torch.dtype:
    """The dtype of the matrix products; the softmax is in fp32 or better whatever it is."""
    if q.dtype is torch.float64:
        return torch.float64
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and multiplies_bf16_tiles():
        return torch.bfloat16
    return torch.float32
