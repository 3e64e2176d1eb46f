"""One sparse self-attention call, as whoever observes a run sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svg2.method.stages import StageClock

if TYPE_CHECKING:  # this module loads without torch, so that reading a trace does
    from torch import Tensor


@dataclass(frozen=True)
class CallSample:
    """One sparse self-attention call, as an observer sees it right after it ran.

    The tensors are those of the call, on its device and not copied: copy what is to be kept.
    `stage_ms` waits for the device on CUDA, so a recorder that wants times reads them from
    `RunStats` after the run.

    Attributes:
        step, layer, branch: place of the call; branch is 0 cond, 1 uncond, 2 both in one batch,
            more for others.
        density, kept_mass: `[H]`, means over the batch.
        q, k, v: `[B, H, N, D]`, after norm and RoPE.
        q_labels, k_labels: `[B, H, N]` int32.
        q_centroids, k_centroids: `[B, H, C, D]` fp32, exact means of the labels.
        q_sizes, k_sizes: `[B, H, C]` int32.
        P: `[B, H, Q, K]` fp32, estimated attention mass; `kept`: bool, what was attended to.
    """

    step: int
    layer: int
    branch: int
    density: Tensor
    kept_mass: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    q_labels: Tensor
    k_labels: Tensor
    q_centroids: Tensor
    k_centroids: Tensor
    q_sizes: Tensor
    k_sizes: Tensor
    P: Tensor
    kept: Tensor
    clock: StageClock

    @property
    def stage_ms(self) -> dict[str, float]:
        """Milliseconds of `STAGES` but `other`, which is not over yet."""
        return self.clock.stage_ms
