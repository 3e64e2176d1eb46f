"""Two generations in one process, of which one computes at a time and the other waits."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from svg2.errors import Cancelled
from svg2.runs.provenance import PeakMemory

if TYPE_CHECKING:
    import torch


class Generators:
    """Torch's own random generators, which both sides draw from, each as if it were alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None

    def states(self) -> list[Any]:
        import torch

        states: list[Any] = [torch.get_rng_state()]
        if self._device is not None:
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def restore(self, states: list[Any]) -> None:
        import torch

        torch.set_rng_state(states[0])
        if self._device is not None:
            torch.cuda.set_rng_state(states[1], self._device)


class Turns:
    """Who of two threads may compute. Each gets its `Turn`; the first one begins."""

    def __init__(self, generators: Generators) -> None:
        self._changed = threading.Condition()
        self._current = 0
        self._present = {0, 1}
        self._is_over = False
        self.sides = (Turn(self, 0, generators), Turn(self, 1, generators))

    def end(self) -> None:
        """Whoever waits is cancelled: the other one failed, or nobody wants the result."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _wait(self, side: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._current == side)
            if self._is_over:
                raise Cancelled

    def _give_away(self, side: int, for_good: bool) -> None:
        with self._changed:
            if for_good:
                self._present.discard(side)
            if self._current == side and 1 - side in self._present:
                self._current = 1 - side
                self._changed.notify_all()


class Turn:
    """One side's part in `Turns`, used in its own thread.

    Attributes:
        memory: counts while this side computes, and not while it waits. What the other side
            keeps meanwhile, as latents and centroids, is in the peak.
    """

    def __init__(self, turns: Turns, side: int, generators: Generators) -> None:
        self._turns = turns
        self._side = side
        self._generators = generators
        self.memory: PeakMemory | None = None

    def begin(self) -> None:
        """Wait for the first turn.

        Raises:
            Cancelled: the turns were ended.
        """
        self._turns._wait(self._side)

    def step_done(self, step: int) -> None:
        """Give the turn away where it is the other's, and wait until it comes back.

        The sides go A BB AA BB A: the nth steps of both follow each other directly, and neither
        is always the first, so that a machine that grows slower is as bad for one as for the
        other.

        Args:
            step: steps done, from 0 where the loop begins.

        Raises:
            Cancelled: the turns were ended.
        """
        if step > 0 and step % 2 == self._side:
            return
        if self.memory is not None:
            self.memory.pause()
        states = self._generators.states()
        self._turns._give_away(self._side, for_good=False)
        self._turns._wait(self._side)
        self._generators.restore(states)
        if self.memory is not None:
            self.memory.resume()

    def leave(self) -> None:
        """This side is done or has failed; the other goes on alone."""
        self._turns._give_away(self._side, for_good=True)
