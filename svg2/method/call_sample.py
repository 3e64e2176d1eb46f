"""One sparse self-attention call, as whoever observes a run sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svg2.method.stages import StageClock

if TYPE_CHECKING:  # this module loads without torch, so that reading a trace does
    from torch import Tensor


@dataclass(frozen=True)
class CallSample:
    """One sparse self-attention call, as an observer sees it right after its attention ran.

    The tensors are those of the call, on its device and not copied: copy what is to be kept.

    Where the prompts of a batch differ in length, HunyuanVideo attends its samples one by one.
    That is one call still: B is then 1, the tensors are those of the last sample, and `density`
    and `kept_mass` are means over all samples.

    Attributes:
        step, layer, branch: position of the call; branch is 0 cond, 1 uncond, 2 both in one batch,
            more for others.
        density, kept_mass: `[H]`, means over the batch.
        q, k, v: `[B, H, N, D]`, of the video tokens, after norm and RoPE.
        q_labels, k_labels: `[B, H, N]` int32.
        q_centroids, k_centroids: `[B, H, C, D]`, fp32 means of the tokens with each label; an
            empty cluster keeps its old centroid.
        q_sizes, k_sizes: `[B, H, C]` int32.
        P: `[B, H, Q, K]` fp32, attention mass estimated from centroids; `kept`: bool, what was
            attended to.
        error: `[B, H, Q, K]` fp32, predicted error of skipping each block; None where the method
            predicts none.

    Where processes share a video, tensors with H but `density` and `kept_mass` hold the heads of
    this process alone.
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
    error: Tensor | None
    clock: StageClock

    @property
    def stage_ms(self) -> dict[str, float]:
        """Milliseconds by stage, so far: the output layer, a part of `other`, has not run yet.

        Waits for the device on CUDA. Where only times are wanted, `RunStats` after the run has
        them without the wait.
        """
        return self.clock.stage_ms
