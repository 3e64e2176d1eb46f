"""Permutation in PyTorch."""

import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor


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
    rows = x.reshape(-1, x.shape[-1])
    indices = F.pad(_flat(perm).view(perm.shape), (0, room))
    return rows.index_select(0, indices.flatten()).view(*indices.shape, x.shape[-1])


def unpermute(
    x: Shaped[Tensor, "B H N D"], perm: Int[Tensor, "B H N"]
) -> Shaped[Tensor, "B H N D"]:
    """Row i of x goes to place perm[b, h, i]."""
    rows = x.reshape(-1, x.shape[-1])
    return torch.empty_like(rows).index_copy_(0, _flat(perm), rows).view(x.shape)


def _flat(perm: Int[Tensor, "B H N"]) -> Int[Tensor, "B*H*N"]:
    """Token indices within a head to row indices over all heads."""
    batch, heads, num_tokens = perm.shape
    first_row = torch.arange(batch * heads, device=perm.device) * num_tokens
    return (perm + first_row.view(batch, heads, 1)).flatten()
