"""Permutation in PyTorch."""

from collections.abc import Callable
from itertools import product

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from kernels.cpu import share_work


def sort_by_label(
    labels: Int[Tensor, "B H N"], num_clusters: int
) -> tuple[Int[Tensor, "B H N"], Int[Tensor, "B H C1"]]:
    """`perm` and `offsets` of a stable sort."""
    sorted_labels, perm = labels.sort(dim=-1, stable=True)
    boundaries = torch.arange(num_clusters + 1, device=labels.device, dtype=labels.dtype)
    boundaries = boundaries.expand(*labels.shape[:-1], -1).contiguous()
    offsets = torch.searchsorted(sorted_labels, boundaries, out_int32=True)
    return perm, offsets


def permute(
    x: Shaped[Tensor, "B H N D"], perm: Int[Tensor, "B H N"], room: int = 0
) -> Shaped[Tensor, "B H R D"]:
    """x[b, h, perm[b, h, i]] in place i; the last `room` rows hold anything."""
    batch, heads, num_tokens, width = x.shape
    out = x.new_empty((batch, heads, num_tokens + room, width))

    def permute_heads(take: Callable[[], tuple[int, int] | None]) -> None:
        while (head := take()) is not None:
            torch.index_select(x[head], 0, perm[head], out=out[head][:num_tokens])

    share_work(list(product(range(batch), range(heads))), permute_heads, x.device)
    return out


def unpermute(
    x: Shaped[Tensor, "B H N D"], perm: Int[Tensor, "B H N"]
) -> Shaped[Tensor, "B H N D"]:
    """Row i of x goes to place perm[b, h, i]."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)

    def unpermute_heads(take: Callable[[], tuple[int, int] | None]) -> None:
        while (head := take()) is not None:
            out[head].index_copy_(0, perm[head], x[head])

    share_work(list(product(*map(range, x.shape[:2]))), unpermute_heads, x.device)
    return out
