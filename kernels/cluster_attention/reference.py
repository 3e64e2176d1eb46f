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
_NUM_SHARES = 12


@full_fp32()
def cluster_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    scale: float,
    keys: Float[Tensor, "B H ... D"] | None = None,
    values: Float[Tensor, "B H ... D"] | None = None,
    log_weights: Float[Tensor, "B H ..."] | None = None,
    q_perm: Int[Tensor, "B H N"] | None = None,
) -> Float[Tensor, "B H N D"]:
    """Heads that keep everything go to dense SDPA, the blocks of the others to the workers.

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
    q, kv = q.to(dtype), _joined(k.to(dtype), v.to(dtype))
    perm = None if q_perm is None else q_perm.flatten(0, 1)
    virtual = bias = None
    if keys is not None and values is not None:
        virtual = _joined(*(x.to(dtype).flatten(0, 1) for x in (keys, values)))
        bias = k_sizes.double().log() if log_weights is None else log_weights.flatten(0, 1)
        bias = bias.to(torch.promote_types(dtype, torch.float32))
        bias = (bias if bias.ndim == 3 else bias[:, None]).masked_fill(~skipped, -torch.inf)
    num_virtual = 0 if virtual is None else kept.shape[-1]
    rows, longest = _rows(q_offsets, kept, k_sizes, sparse, num_virtual)
    kept_ids = kept.nonzero()[:, 2]
    step = _BF16_KEYS_STEP if dtype is torch.bfloat16 else 1
    longest = -(-(longest + num_virtual) // step) * step
    most_queries = int(q_sizes.max())
    shares = [rows[i::_NUM_SHARES] for i in range(min(_NUM_SHARES, len(rows)))]

    def attend_shares(take: Callable[[], Tensor | None]) -> None:
        scratch = kv.new_empty((longest, kv.shape[-1]))
        scores = kv.new_empty((2, most_queries * longest if step == 1 else 0))
        while (share := take()) is not None:
            _attend(
                *(share, kept_ids, k_offsets, q, perm, kv, virtual, bias, step, scale),
                *(scratch, scores, out),
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
    perm: Tensor | None,
    kv: Tensor,
    virtual: Tensor | None,
    bias: Tensor | None,
    step: int,
    scale: float,
    scratch: Tensor,
    scores_scratch: Tensor,
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
        parts: list[Tensor] = []
        num_virtual = 0
        if virtual is not None:
            num_virtual = virtual.size(-2)
            scratch[:num_virtual].copy_(virtual[h, i] if virtual.dim() == 4 else virtual[h])
        tokens = kv[h]
        length = num_virtual
        for e in range(row[6 * n + 4], row[6 * n + 5]):
            a = bounds[h * num_bounds + ids[e]]
            b = bounds[h * num_bounds + ids[e] + 1]
            parts.append(tokens[a:b])
            length += b - a
        if length == 0:
            result = torch.zeros([end - first, q.size(2)], dtype=q.dtype, device=q.device)
        else:
            if length > num_virtual:
                torch.cat(parts, dim=0, out=scratch[num_virtual:length])
            keys, values = scratch[:length].chunk(2, dim=1)
            queries = q[h, first:end] if perm is None else q[h].index_select(0, perm[h, first:end])
            if step == 1:
                size = (end - first) * length
                scores = scores_scratch[0, :size].view(end - first, length)
                weights = scores_scratch[1, :size].view(end - first, length)
                torch.addmm(scores, queries, keys.t(), beta=0.0, alpha=scale, out=scores)
                if bias is not None:
                    scores[:, :num_virtual].add_(bias[h, i])
                torch.softmax(scores, 1, None, out=weights)
                result = torch.mm(weights, values)
            else:
                padded = (length + step - 1) // step * step
                scratch[length:padded].zero_()
                keys, values = scratch[:padded].chunk(2, dim=1)
                mask = torch.zeros([1, padded], dtype=queries.dtype, device=queries.device)
                mask[:, length:] = -float("inf")
                if bias is not None:
                    mask[:, :num_virtual] = bias[h, i]
                result = torch.nn.functional.scaled_dot_product_attention(
                    queries[None, None],
                    keys[None, None],
                    values[None, None],
                    attn_mask=mask,
                    scale=scale,
                )[0, 0]
        if perm is None:
            out[h, first:end].copy_(result)
        else:
            out[h].index_copy_(0, perm[h, first:end], result.to(out.dtype))


def _joined(
    x: Float[Tensor, "BH *rows D"], y: Float[Tensor, "BH *rows D"]
) -> Float[Tensor, "BH *rows E"]:
    """Each row of x with that of y behind it: one row to copy. No copy if they lie so."""
    width = x.shape[-1]
    are_neighbours = y.data_ptr() == x.data_ptr() + width * x.element_size()
    if are_neighbours and x.stride() == y.stride() and x.stride(-1) == 1:
        return x.as_strided((*x.shape[:-1], 2 * width), x.stride())
    joined = x.new_empty((*x.shape[:-1], 2 * width))

    def join_heads(take: Callable[[], int | None]) -> None:
        while (h := take()) is not None:
            torch.cat([x[h], y[h]], dim=-1, out=joined[h])

    share_work(range(len(x)), join_heads, x.device)
    return joined


def _sdpa(
    q: Float[Tensor, "G M D"], k: Float[Tensor, "G L D"], v: Float[Tensor, "G L D"], scale: float
) -> Float[Tensor, "G M D"]:
    """PyTorch's own attention; its fast CPU path wants four dimensions."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)

    def attend_heads(take: Callable[[], int | None]) -> None:
        while (h := take()) is not None:
            parts = (x[h : h + 1][None] for x in (q, k, v))
            out[h] = F.scaled_dot_product_attention(*parts, scale=scale)[0, 0]

    if len(q) < 2:  # all threads on the one head
        return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]
    share_work(range(len(q)), attend_heads, q.device)
    return out


def _product_dtype(q: Tensor) -> torch.dtype:
    """The dtype of the matrix products; the softmax is in fp32 or better whatever it is."""
    if q.dtype is torch.float64:
        return torch.float64
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and multiplies_bf16_tiles():
        return torch.bfloat16
    return torch.float32
