"""Training on several processes of torchrun. With one process, nothing is shared."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from svg2.runs.distributed import processes


def shared_clock(seconds: float, device: str) -> float:
    """The seconds of the first rank, so that all ranks stop at the same step."""
    if processes().world == 1:
        return seconds
    clock = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.broadcast(clock, 0)
    return float(clock)


def average_gradients(model: nn.Module) -> None:
    """Replace the gradients on each rank by their mean over all ranks."""
    world = processes().world
    if world == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def shared(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function(rows)` for rows that are equal on all ranks; each rank computes a part."""
    share = processes()
    if share.world == 1:
        return function(rows)
    each = -(-len(rows) // share.world)
    padded = torch.cat([rows, rows[:1].expand(each * share.world - len(rows), *rows.shape[1:])])
    mine = function(padded[share.rank * each : (share.rank + 1) * each]).contiguous()
    parts = [torch.empty_like(mine) for _ in range(share.world)]
    dist.all_gather(parts, mine)
    return torch.cat(parts)[: len(rows)]
