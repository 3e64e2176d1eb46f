"""What a contestant's result must be before it is timed: some rows of it, computed in fp64."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svg2.bench.workload import Clustered

ERROR_BUDGET = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""The largest relative error, in norm, by the dtype of q, k and v."""

_CHECKED_HEADS, _CHECKED_ROWS = 3, 64


class ExactRows:
    """Exact attention of some rows of some heads, in fp64.

    `kept` is None for dense attention; `has_virtual` counts what compensation adds.
    """

    def __init__(
        self, clustered: Clustered, kept: Bool[Tensor, "B H Q K"] | None, has_virtual: bool
    ) -> None:
        q = clustered.q_sorted
        generator = torch.Generator().manual_seed(clustered.q_offsets.shape[-1])
        count = min(_CHECKED_HEADS, q.shape[1])
        self.heads = torch.randperm(q.shape[1], generator=generator)[:count].tolist()
        rows = torch.randint(q.shape[2], (_CHECKED_ROWS,), generator=generator)
        # The first and the last row lie on edges of the work.
        self.rows = torch.cat([rows, torch.tensor([0, q.shape[2] - 1])]).to(q.device)
        self.out = torch.stack([self._head(clustered, h, kept, has_virtual) for h in self.heads])

    def _head(
        self, clustered: Clustered, head: int, kept: Tensor | None, has_virtual: bool
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
            k_mean = clustered.compensation.k_centroids[0, head].double()
            virtual = q[self.rows] @ k_mean.t() * scale + k_sizes.double().log()
            virtual = virtual.masked_fill(rows_kept, -torch.inf)
            scores = torch.cat([scores, virtual], dim=-1)
            v = torch.cat([v, clustered.compensation.v_centroids[0, head].double()])
        return torch.softmax(scores, -1) @ v

    def error_of(self, out: Float[Tensor, "B H N D"]) -> float:
        """Relative error in norm; nan where anything at all is not finite."""
        if not out.isfinite().all():
            return float("nan")
        some = torch.stack([out[0, head][self.rows].double() for head in self.heads])
        return ((some - self.out).norm() / self.out.norm()).item()
