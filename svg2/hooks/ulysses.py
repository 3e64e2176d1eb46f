"""Attention split over processes, Ulysses' way: each has all tokens of some of the heads.

Source: DeepSpeed-Ulysses, arXiv 2309.14509.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class HeadShare:
    """The heads that this process attends with: those of its rank, of `world` equal parts."""

    group: Any
    rank: int
    world: int
    heads: int

    @property
    def own(self) -> slice:
        """The absolute numbers of these heads."""
        count = self.heads // self.world
        return slice(self.rank * count, (self.rank + 1) * count)

    def to_heads(self, x: Float[Tensor, "B H n D"]) -> Float[Tensor, "B h N D"]:
        """From all heads of this process's tokens to all tokens of its heads."""
        batch, _, n_local, width = x.shape
        parts = x.unflatten(1, (self.world, -1)).transpose(0, 1)  # [W, B, h, n, D]
        swapped = self._swap(parts)
        return swapped.permute(1, 2, 0, 3, 4).reshape(batch, -1, self.world * n_local, width)

    def to_tokens(self, x: Float[Tensor, "B h N D"]) -> Float[Tensor, "B H n D"]:
        """The way back."""
        batch, _, _, width = x.shape
        parts = x.unflatten(2, (self.world, -1)).permute(2, 0, 1, 3, 4)  # [W, B, h, n, D]
        swapped = self._swap(parts)
        n_local = swapped.shape[3]
        return swapped.transpose(0, 1).reshape(batch, self.heads, n_local, width)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """What every process has of its own heads, along `dim`, put together on each."""
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(self.world)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, on each."""
        total = x.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def _swap(self, parts: Tensor) -> Tensor:
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=self.group)
        return received


def head_share(parallel_config: Any, heads: int) -> HeadShare | None:
    """The share that diffusers' parallel configuration gives to this process; None for all.

    Raises:
        RuntimeError: the configuration is another than plain Ulysses, or does not divide the
            heads.
    """
    if parallel_config is None:
        return None
    context = getattr(parallel_config, "context_parallel_config", None)
    mesh = getattr(context, "_ulysses_mesh", None)
    if context is None or mesh is None or context.ring_degree > 1 or context.ulysses_anything:
        raise RuntimeError(
            "SVG2 needs all tokens of a head in one place: of diffusers' parallelisms it works "
            "with Ulysses alone, without ulysses_anything."
        )
    world = context.ulysses_degree
    if heads % world:
        raise RuntimeError(f"{heads} heads can't be shared evenly among {world} processes.")
    return HeadShare(mesh.get_group(), mesh.get_local_rank(), world, heads)
