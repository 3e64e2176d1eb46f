"""Training on several processes: what all ranks share, where torchrun started more than one."""

import torch
import torch.distributed as dist
from torch import nn

from svg2.distributed import processes


def shared_clock(seconds: float, device: str) -> float:
    """The clock of the first rank, so that all stop at the same step."""
    if processes().world == 1:
        return seconds
    clock = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.broadcast(clock, 0)
    return float(clock)


def average_gradients(model: nn.Module) -> None:
    """Give all ranks the mean of their gradients."""
    world = processes().world
    if world == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))
