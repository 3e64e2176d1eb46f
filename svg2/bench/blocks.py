"""Whole forwards put together from a few blocks: what a transformer's other blocks would take.

All blocks of a kind have the same shapes, so a model with some of each kind, timed block by block,
tells the time of one with all of them. It fits where the whole model would take too long to make.
"""

import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Names of diffusers: the argument that counts blocks, and the list that holds them.
_KINDS = {
    "num_layers": ("blocks", "transformer_blocks"),
    "num_single_layers": ("single_transformer_blocks",),
}


def shortened(transformer: type, config: dict[str, Any], blocks: int) -> dict[str, Any]:
    """The arguments of a model with at most `blocks` blocks of each kind."""
    return config | {
        name: min(blocks, count) for name, count in block_counts(transformer, config).items()
    }


def block_counts(transformer: type, config: dict[str, Any]) -> dict[str, int]:
    """Blocks of each kind in the whole model, by the argument that counts them."""
    defaults = inspect.signature(transformer.__init__).parameters
    return {name: config.get(name, defaults[name].default) for name in _KINDS if name in defaults}


class BlockClock:
    """Times the blocks of a transformer, forward by forward.

    Args:
        counts: blocks of each kind in the whole model, as `block_counts` gives them.
    """

    def __init__(
        self, transformer: nn.Module, counts: dict[str, int], device: torch.device
    ) -> None:
        self.counts = counts
        self.blocks = {
            name: [b for part in _KINDS[name] for b in getattr(transformer, part, ())]
            for name in counts
        }
        self._is_cuda = device.type == "cuda"
        self._marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in counts}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time every block that runs inside, in place of those before."""
        self._marks = {name: [] for name in self.counts}
        handles = []
        for name, blocks in self.blocks.items():
            for block in blocks:
                began: list[Any] = []
                before, after = self._hooks(self._marks[name], began)
                handles.append(block.register_forward_pre_hook(before))
                handles.append(block.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def block_ms(self, last_forwards: int) -> dict[str, float]:
        """Median time of a block of each kind in the last forwards."""
        found = {}
        for name, marks in self._marks.items():
            kept = marks[-last_forwards * len(self.blocks[name]) :]
            found[name] = statistics.median(self._between(*pair) for pair in kept)
        return found

    @property
    def missing(self) -> dict[str, int]:
        """Blocks of each kind that the whole model has besides."""
        return {name: n - len(self.blocks[name]) for name, n in self.counts.items()}

    def _hooks(self, marks: list, began: list) -> tuple[Callable, Callable]:
        def before(*_: Any) -> None:
            began.append(self._now())

        def after(*_: Any) -> None:
            marks.append((began.pop(), self._now()))

        return before, after

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if not self._is_cuda:
            return (end - start) * 1e3
        end.synchronize()
        return start.elapsed_time(end)
