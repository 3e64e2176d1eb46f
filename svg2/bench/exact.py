"""The check of a result before it is timed: some of its rows, against the same rows in fp64."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.exact import exact_rows, relative_error
from svg2.bench.workload import ClusteredWorkload

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
        where = (clustered.q_offsets, clustered.k_offsets, kept, q.shape[-1] ** -0.5)
        stand_ins = clustered.stand_ins if has_virtual else None
        self.out = torch.stack(
            [
                exact_rows(
                    *(q[0, head][self.rows], clustered.k_sorted, clustered.v_sorted),
                    *(*where, stand_ins, (0, head), self.rows),
                )
                for head in self.heads
            ]
        )

    def error_of(self, out: Float[Tensor, "B H N D"]) -> float:
        """Relative error of the checked rows, in norm; nan if any value of `out` is not finite."""
        if not out.isfinite().all():
            return float("nan")
        return relative_error(torch.stack([out[0, h][self.rows] for h in self.heads]), self.out)
