"""Cluster attention in PyTorch, and what runs on a CPU: work falls with the kept share.

Per query cluster the kept keys and values are gathered once and a small dense attention runs over
them, on a pool of one-thread workers, longest first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.cpu import bf16_is_native, share_work

# Scores of one row chunk: these fp32 values stay in the cache of a core.
_SCORES_PER_CHUNK = 1 << 17
# Fewer rows than this make a matrix product slow, so longer key lists go to the streaming SDPA.
_MIN_ROWS = 32


@dataclass(frozen=True)
class _Block:
    """The attention of one query cluster.

    Attributes:
        head: row of the flattened batch and heads.
        cluster: the query cluster.
        start, end: its queries.
        cost: query-key pairs.
    """

    head: int
    cluster: int
    start: int
    end: int
    cost: int


def cluster_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q+1"],
    k_offsets: Int[Tensor, "B H K+1"],
    kept: Bool[Tensor, "B H Q K"],
    scale: float,
    centroids: tuple[Float[Tensor, "B H K D"], Float[Tensor, "B H K D"]] | None,
) -> Float[Tensor, "B H N D"]:
    """Heads that keep everything go to one dense SDPA, the blocks of the others to the workers."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    k_sizes = k_offsets.diff(dim=-1).flatten(0, 1).cpu()
    q_sizes = q_offsets.diff(dim=-1).flatten(0, 1).cpu()
    real = (k_sizes > 0)[:, None, :]
    kept_host = kept.flatten(0, 1).cpu() & real
    skips = ((real & ~kept_host).any(-1) & (q_sizes > 0)).any(-1)
    q_heads, k_heads, v_heads, out_heads = (x.flatten(0, 1) for x in (q, k, v, out))
    if not skips.all():
        dense = slice(None) if not skips.any() else (~skips).nonzero()[:, 0].to(q.device)
        out_heads[dense] = F.scaled_dot_product_attention(
            q_heads[dense][None], k_heads[dense][None], v_heads[dense][None], scale=scale
        )[0]
    if not skips.any():
        return out

    compute_dtype = _compute_dtype(q)
    sources = [
        _KeySource(
            k_heads[head],
            v_heads[head],
            k_sizes[head].to(q.device),
            None if centroids is None else tuple(c.flatten(0, 1)[head] for c in centroids),
            compute_dtype,
        )
        if skips[head]
        else None
        for head in range(len(skips))
    ]
    num_kept = (kept_host * k_sizes[:, None, :]).sum(-1)
    if centroids is not None:
        num_kept += (real & ~kept_host).sum(-1)
    blocks = _blocks(q_offsets.flatten(0, 1).tolist(), num_kept.tolist(), skips.tolist())
    kept_heads = kept_host.to(q.device)
    longest = int(num_kept.max())

    def attend_blocks(take: Callable[[], _Block | None]) -> None:
        gathered = torch.empty(longest, 2 * q.shape[-1], dtype=compute_dtype, device=q.device)
        while (block := take()) is not None:
            rows = slice(block.start, block.end)
            keys, values, bias = sources[block.head].gather(
                kept_heads[block.head, block.cluster], gathered
            )
            queries = q_heads[block.head, rows].to(compute_dtype)
            out_heads[block.head, rows] = _attend(queries, keys, values, bias, scale)

    share_work(blocks, attend_blocks, q.device)
    return out


def _blocks(
    q_offsets: list[list[int]], num_kept: list[list[int]], skips: list[bool]
) -> list[_Block]:
    """The work list, longest first, so that the workers end together."""
    blocks = [
        _Block(head, cluster, start, end, (end - start) * num_kept[head][cluster])
        for head, offsets in enumerate(q_offsets)
        if skips[head]
        for cluster, (start, end) in enumerate(pairwise(offsets))
        if end > start
    ]
    return sorted(blocks, key=lambda block: -block.cost)


class _KeySource:
    """Keys and values of one head side by side, so that one gather fetches both.

    With compensation the centroids follow the tokens as virtual keys.
    """

    def __init__(
        self,
        k: Float[Tensor, "S D"],
        v: Float[Tensor, "S D"],
        sizes: Int[Tensor, " K"],
        centroids: tuple[Float[Tensor, "K D"], Float[Tensor, "K D"]] | None,
        dtype: torch.dtype,
    ) -> None:
        num_keys, self._head_dim = k.shape
        num_virtual = 0 if centroids is None else len(sizes)
        self._rows = torch.empty(
            num_keys + num_virtual, 2 * self._head_dim, dtype=dtype, device=k.device
        )
        self._rows[:num_keys, : self._head_dim] = k
        self._rows[:num_keys, self._head_dim :] = v
        if centroids is not None:
            self._rows[num_keys:, : self._head_dim] = centroids[0]
            self._rows[num_keys:, self._head_dim :] = centroids[1]
        self._compensates = centroids is not None
        self._num_keys = num_keys
        self._real = sizes > 0
        self._log_sizes = sizes.to(
            torch.float64 if dtype is torch.float64 else torch.float32
        ).log()
        self._cluster_of_key = torch.arange(len(sizes), device=k.device).repeat_interleave(sizes)

    def gather(
        self, kept: Bool[Tensor, " K"], scratch: Float[Tensor, "longest 2*D"]
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"], Float[Tensor, " V"] | None]:
        """Keys and values of the kept clusters, then the V skipped ones' centroids.

        The third is the logarithm of the sizes of those V, to be added to their logits.
        """
        index = kept.index_select(0, self._cluster_of_key).nonzero()[:, 0]
        bias = None
        if self._compensates:
            skipped = (~kept & self._real).nonzero()[:, 0]
            index = torch.cat([index, skipped + self._num_keys])
            bias = self._log_sizes[skipped]
        rows = torch.index_select(self._rows, 0, index, out=scratch[: len(index)])
        return rows[:, : self._head_dim], rows[:, self._head_dim :], bias


def _attend(
    q: Float[Tensor, "M D"],
    k: Float[Tensor, "L D"],
    v: Float[Tensor, "L D"],
    bias: Float[Tensor, " V"] | None,
    scale: float,
) -> Float[Tensor, "M D"]:
    """Dense attention of a small block; `bias` is added to the logits of the last V keys."""
    if len(k) == 0:
        return torch.zeros_like(q)
    rows = _SCORES_PER_CHUNK // len(k)
    if rows < min(_MIN_ROWS, len(q)) and q.dtype is not torch.bfloat16:
        mask = None
        if bias is not None:
            mask = torch.cat([bias.new_zeros(len(k) - len(bias)), bias])[None]
        return F.scaled_dot_product_attention(
            q[None, None], k[None, None], v[None, None], attn_mask=mask, scale=scale
        )[0, 0]
    parts = []
    for part in q.split(max(rows, _MIN_ROWS)):
        scores = part @ k.t() if q.dtype is torch.bfloat16 else (part * scale) @ k.t()
        if q.dtype is torch.bfloat16:
            scores = scores.float().mul_(scale)
        if bias is not None:
            scores[:, -len(bias) :] += bias
        parts.append(torch.softmax(scores, -1).to(q.dtype) @ v)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _compute_dtype(q: Tensor) -> torch.dtype:
    """The dtype of the matrix products; the softmax is in fp32 or better whatever it is."""
    if q.dtype is torch.float64:
        return torch.float64
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and bf16_is_native():
        return torch.bfloat16
    return torch.float32
