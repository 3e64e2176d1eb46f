"""The processes of `torchrun` or `accelerate launch`, and sharing a video among them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from svg2.errors import RequestError


@dataclass(frozen=True)
class Processes:
    """This process among those that were started together."""

    rank: int
    world: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    def device(self, requested: str) -> str:
        """The device of this process: one GPU per process if `requested` is `auto` or `cuda`."""
        if self.world == 1 or requested not in ("auto", "cuda"):
            return requested
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else requested

    def check_tokens(self, n_tokens: int) -> None:
        """Check that the tokens of a video divide evenly among the processes.

        Raises:
            RequestError: tokens that do not divide evenly.
        """
        if n_tokens % self.world:
            raise RequestError(
                f"The {n_tokens:,} tokens of this video can't be shared evenly among "
                f"{self.world} processes: ask for another size or another number of processes."
            )


def processes() -> Processes:
    """Read the launcher's environment variables; a single process without a launcher."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        rank, world, local_rank = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        return Processes(0, 1, 0)
    return Processes(rank, world, local_rank)


@contextmanager
def process_group(device_type: str, timeout: timedelta | None = None) -> Iterator[None]:
    """Join all processes into a group: `nccl` if `device_type` is `cuda`, else `gloo`.

    The group is closed at the end, because threads of an open gloo group can crash the process
    while the interpreter exits.
    """
    import torch.distributed as dist

    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def joined(pipe: Any) -> Iterator[None]:
    """Share every video of `pipe` among all processes.

    Raises:
        As `svg2.hooks.context_parallel.context_parallel`.
    """
    import torch

    from svg2.hooks.context_parallel import context_parallel

    device = pipe._execution_device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with process_group(device.type), context_parallel(pipe):
        yield


def agree(is_cancelled: bool, device: Any) -> bool:
    """Whether any process that shares the video is cancelled. All of them must make this call.

    Args:
        device: device on which the process group communicates.
    """
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return is_cancelled
    flag = torch.tensor([int(is_cancelled)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
