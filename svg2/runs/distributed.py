"""The processes that `torchrun` or `accelerate launch` started, and one video on all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class Processes:
    """This process among those started together."""

    rank: int
    world: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks and writes for all."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device for `auto` or `cuda`: a GPU a process."""
        if self.world == 1 or asked not in ("auto", "cuda"):
            return asked
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else asked


def processes() -> Processes:
    """As the launcher's environment tells; one process where there was no launcher."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        rank, world, local_rank = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        return Processes(0, 1, 0)
    return Processes(rank, world, local_rank)


@contextmanager
def process_group(device_type: str, timeout: timedelta | None = None) -> Iterator[None]:
    """All processes as one group: `nccl` where `device_type` is `cuda`, else `gloo`.

    Leaving a group open would let the threads of gloo die with the interpreter, and now and then
    the process with them, after all its work was done.
    """
    import torch.distributed as dist

    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def joined(pipe: Any) -> Iterator[None]:
    """Share the work on every video of `pipe` among all processes.

    Raises: as `svg2.hooks.context_parallel.context_parallel`.
    """
    import torch

    from svg2.hooks.context_parallel import context_parallel

    device = pipe._execution_device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with process_group(device.type), context_parallel(pipe):
        yield


def agree(wish: bool, device: Any) -> bool:
    """Whether any of the processes that share a video wishes so; each makes this call."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return wish
    flag = torch.tensor([int(wish)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
