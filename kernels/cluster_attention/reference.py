"""Cluster attention in PyTorch, and what runs on a CPU: work falls with the kept share.

Per query cluster the kept keys and values are copied together and a small dense attention runs
over them, on a pool of one-thread workers, the longest first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.cpu import bf16_is_native, share_work
from kernels.precision import full_fp32

_KEYS_STEP = 128  # a bf16 product takes a multiple of so many keys


@dataclass(frozen=True)
class _Head:
    """One head cut into clusters, in the dtype of its products.

    Attributes:
        q: queries of each query cluster.
        out: where the result of each query cluster goes.
        k, v: keys and values of each key cluster.
        virtual: what stands for skipped clusters, or None.
    """

    q: tuple[Tensor, ...]
    out: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    virtual: "_Virtual | None"


@dataclass(frozen=True)
class _Virtual:
    """One virtual key per key cluster; `log_sizes` is what is added to its logit."""

    k: Float[Tensor, "K D"]
    v: Float[Tensor, "K D"]
    log_sizes: Float[Tensor, " K"]


@dataclass(frozen=True)
class _Block:
    """The attention of one query cluster.

    Attributes:
        head: row of the flattened batch and heads.
        cluster: the query cluster.
        kept: its key clusters.
        skipped: the key clusters that virtual keys stand for.
        num_keys: keys of the kept clusters.
        cost: query-key pairs.
    """

    head: int
    cluster: int
    kept: list[int]
    skipped: Int[Tensor, " V"]
    num_keys: int
    cost: int


@full_fp32()
def cluster_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    scale: float,
    centroids: tuple[Float[Tensor, "B H K D"], Float[Tensor, "B H K D"]] | None,
) -> Float[Tensor, "B H N D"]:
    """Heads that keep everything go to one dense SDPA, the blocks of the others to the workers."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q_sizes = q_offsets.flatten(0, 1).diff(dim=-1)
    k_sizes = k_offsets.flatten(0, 1).diff(dim=-1)
    filled = (k_sizes > 0)[:, None]
    kept = kept.flatten(0, 1) & filled
    skipped = filled & ~kept

    sparse = (skipped.any(-1) & (q_sizes > 0)).any(-1)
    dense_heads = (~sparse).nonzero()[:, 0]
    if len(dense_heads) == len(q):
        return _sdpa(q, k, v, None, scale).view(*q_offsets.shape[:2], *q.shape[1:])
    if len(dense_heads) > 0:
        dense_q, dense_k, dense_v = (x.index_select(0, dense_heads) for x in (q, k, v))
        out.index_copy_(0, dense_heads, _sdpa(dense_q, dense_k, dense_v, None, scale))

    dtype = _product_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if centroids is not None:
        virtual_k, virtual_v = (c.flatten(0, 1).to(dtype) for c in centroids)
        log_sizes = k_sizes.to(torch.promote_types(dtype, torch.float32)).log()
    sizes = zip(q_sizes.tolist(), k_sizes.tolist(), strict=True)
    heads = [
        _Head(
            q=q[h].split(head_q_sizes),
            out=out[h].split(head_q_sizes),
            k=k[h].split(head_k_sizes),
            v=v[h].split(head_k_sizes),
            virtual=None
            if centroids is None
            else _Virtual(virtual_k[h], virtual_v[h], log_sizes[h]),
        )
        for h, (head_q_sizes, head_k_sizes) in enumerate(sizes)
    ]
    blocks = _blocks(q_sizes, k_sizes, kept, skipped, sparse, centroids is not None)
    longest = max(block.num_keys + len(block.skipped) for block in blocks)
    longest = _round_up(longest, _KEYS_STEP)

    def attend_blocks(take: Callable[[], _Block | None]) -> None:
        keys = torch.empty(longest, k.shape[-1], dtype=dtype, device=k.device)
        values = torch.empty_like(keys)
        while (block := take()) is not None:
            _attend_block(heads[block.head], block, keys, values, scale)

    share_work(blocks, attend_blocks, q.device)
    return out.view(*q_offsets.shape[:2], *out.shape[1:])


def _blocks(
    q_sizes: Int[Tensor, "BH Q"],
    k_sizes: Int[Tensor, "BH K"],
    kept: Bool[Tensor, "BH Q K"],
    skipped: Bool[Tensor, "BH Q K"],
    sparse: Bool[Tensor, " BH"],
    compensates: bool,
) -> list[_Block]:
    """The work list: longest first, so that the workers end together."""
    rows = (sparse[:, None] & (q_sizes > 0)).nonzero()
    row_heads, row_clusters = rows.unbind(-1)
    kept_rows = kept[row_heads, row_clusters]
    num_keys = (kept_rows * k_sizes[row_heads]).sum(-1).tolist()
    kept_ids = kept_rows.nonzero()[:, 1].tolist()
    kept_spans = pairwise(accumulate(kept_rows.sum(-1).tolist(), initial=0))
    skipped_rows = skipped[row_heads, row_clusters] & compensates
    skipped_ids = skipped_rows.nonzero()[:, 1].split(skipped_rows.sum(-1).tolist())
    num_queries = q_sizes[row_heads, row_clusters].tolist()
    blocks = [
        _Block(
            head=head,
            cluster=cluster,
            kept=kept_ids[start:end],
            skipped=skipped_ids[row],
            num_keys=num_keys[row],
            cost=num_queries[row] * (num_keys[row] + len(skipped_ids[row])),
        )
        for row, ((head, cluster), (start, end)) in enumerate(
            zip(rows.tolist(), kept_spans, strict=True)
        )
    ]
    return sorted(blocks, key=lambda block: -block.cost)


def _attend_block(
    head: _Head,
    block: _Block,
    keys: Float[Tensor, "longest D"],
    values: Float[Tensor, "longest D"],
    scale: float,
) -> None:
    """Copy the keys and values of one block together, attend, and write the result."""
    q, out = head.q[block.cluster], head.out[block.cluster]
    k_parts = [head.k[j] for j in block.kept]
    v_parts = [head.v[j] for j in block.kept]
    num_keys, bias = block.num_keys, None
    if head.virtual is not None:
        k_parts.append(head.virtual.k.index_select(0, block.skipped))
        v_parts.append(head.virtual.v.index_select(0, block.skipped))
        bias = head.virtual.log_sizes.index_select(0, block.skipped)
        num_keys += len(block.skipped)
    if num_keys == 0:
        out.zero_()
        return
    k = torch.cat(k_parts, out=keys[:num_keys])
    v = torch.cat(v_parts, out=values[:num_keys])
    if q.dtype is torch.bfloat16:
        # oneDNN compiles a product for each new shape, which takes longer than the product itself.
        padded = _round_up(num_keys, _KEYS_STEP)
        keys[num_keys:padded] = 0
        values[num_keys:padded] = 0
        k, v = keys[:padded], values[:padded]
        mask = torch.zeros(1, padded)
        if bias is not None:
            mask[0, block.num_keys : num_keys] = bias
        mask[0, num_keys:] = -torch.inf
    else:
        mask = None if bias is None else F.pad(bias, (block.num_keys, 0))[None]
    out.copy_(_sdpa(q[None], k[None], v[None], mask, scale)[0])


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _sdpa(
    q: Float[Tensor, "G M D"],
    k: Float[Tensor, "G L D"],
    v: Float[Tensor, "G L D"],
    mask: Float[Tensor, "1 L"] | None,
    scale: float,
) -> Float[Tensor, "G M D"]:
    """PyTorch's own attention; its fast CPU path wants four dimensions."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)[
        0
    ]


def _product_dtype(q: Tensor) -> torch.dtype:
    """The dtype of the matrix products; the softmax is in fp32 or better whatever it is."""
    if q.dtype is torch.float64:
        return torch.float64
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and bf16_is_native():
        return torch.bfloat16
    return torch.float32
