"""Training on several processes: what all ranks share, where torchrun started more than one."""

import torch
import torch.distributed as dist
from torch import nn


def rank_and_world() -> tuple[int, int]:
    """This process among those started together; (0, 1) where it is alone."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def shared_clock(seconds: float, device: str) -> float:
    """The clock of the first rank, so that all stop at the same step."""
    if not dist.is_initialized():
        return seconds
    clock = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.broadcast(clock, 0)
    return float(clock)


def average_gradients(model: nn.Module) -> None:
    """Give all ranks the mean of their gradients."""
    _, world = rank_and_world()
    if world == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))
