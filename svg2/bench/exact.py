"""The check of a result before it is timed: some of its rows, against the same rows in fp64."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svg2.bench.workload import ClusteredWorkload

ERROR_BUDGET = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Largest relative error, in norm, of a right result; by the dtype of q, k and v."""

_CHECKED_HEADS, _CHECKED_ROWS = 3, 64


class ExactRows:
    """Attention of some query rows of some heads, in fp64, over the tokens sorted by cluster.

    Args:
        kept: the selection; None is dense attention.
        has_virtual: whether skipped clusters contribute through their centroids (compensation).
    """

    def __init__(
        self, clustered: ClusteredWorkload, kept: Bool[Tensor, "B H Q K"] | None, has_virtual: bool
    ) -> None:
        q = clustered.q_sorted
        generator = torch.Generator().manual_seed(clustered.q_offsets.shape[-1])
        count = min(_CHECKED_HEADS, q.shape[1])
        self.heads = torch.randperm(q.shape[1], generator=generator)[:count].tolist()
        rows = torch.randint(q.shape[2], (_CHECKED_ROWS,), generator=generator)
        # Also the first and the last row, where an error at an edge would show.
        self.rows = torch.cat([rows, torch.tensor([0, q.shape[2] - 1])]).to(q.device)
        self.out = torch.stack([self._head(clustered, h, kept, has_virtual) for h in self.heads])

    def _head(
        self, clustered: ClusteredWorkload, head: int, kept: Tensor | None, has_virtual: bool
    ) -> Float[Tensor, "rows D"]:
        q, k, v = (
            x[0, head].double()
            for x in (clustered.q_sorted, clustered.k_sorted, clustered.v_sorted)
        )
        q_ends = clustered.q_offsets[0, head, 1:].long().contiguous()
        k_sizes = clustered.k_offsets[0, head].diff().long()
        scale = q.shape[-1] ** -0.5
        scores = q[self.rows] @ k.t() * scale
        if kept is None:
            return torch.softmax(scores, -1) @ v
        rows_kept = kept[0, head][torch.searchsorted(q_ends, self.rows, right=True)]
        is_kept = rows_kept.repeat_interleave(k_sizes, dim=-1, output_size=len(k))
        scores = scores.masked_fill(~is_kept, -torch.inf)
        if has_virtual:
            k_mean = clustered.stand_ins.keys[0, head].double()
            virtual = q[self.rows] @ k_mean.t() * scale + k_sizes.double().log()
            virtual = virtual.masked_fill(rows_kept, -torch.inf)
            scores = torch.cat([scores, virtual], dim=-1)
            v = torch.cat([v, clustered.stand_ins.values[0, head].double()])
        return torch.softmax(scores, -1) @ v

    def error_of(self, out: Float[Tensor, "B H N D"]) -> float:
        """Relative error of the checked rows, in norm; nan if any value of `out` is not finite."""
        if not out.isfinite().all():
            return float("nan")
        some = torch.stack([out[0, head][self.rows].double() for head in self.heads])
        return ((some - self.out).norm() / self.out.norm()).item()
