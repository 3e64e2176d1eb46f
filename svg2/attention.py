"""Sparse attention of one layer: cluster, permute, select, attend, and put the tokens back."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from kernels import (
    Compensation,
    Permutation,
    cluster_attention,
    permute,
    sort_by_label,
    unpermute,
)
from svg2.clustering import Centroids, cluster_keys, cluster_queries
from svg2.config import SVG2Config
from svg2.plan import Plan
from svg2.selection import cluster_mass, select_from_mass
from svg2.stats import StageClock


@dataclass(frozen=True)
class TextTokens:
    """Real prompt tokens of a joint model: they see all and are seen by all. T is their number."""

    q: Float[Tensor, "B H T D"]
    k: Float[Tensor, "B H T D"]
    v: Float[Tensor, "B H T D"]


@dataclass(frozen=True)
class SparseResult:
    """Attention output of the video in the tokens' own order, and the plan that it followed.

    `text_out` is that of the text; None without text.
    """

    out: Float[Tensor, "B H N D"]
    plan: Plan
    text_out: Float[Tensor, "B H T D"] | None = None


def sparse_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    config: SVG2Config,
    centroids: Centroids,
    clock: StageClock,
    text: TextTokens | None = None,
) -> SparseResult:
    """Self-attention of each query over the keys of the clusters that its own cluster keeps.

    `q` and `k` come after norm and RoPE and hold the video alone; `text` is one more cluster of
    either side, never skipped and no part of the selection. `centroids` warm-starts k-means and
    is updated; `clock` gets the stages `kmeans`, `permute`, `select` and `attention`.

    Raises:
        ConfigError: there are more clusters than tokens.
        kernels.ImplUnavailable: `config.impl` names kernels that can't run here.
    Source: SVG2, arXiv 2505.18875; compensation after SVG-EAR, arXiv 2603.08982.
    """
    config.check_tokens(q.shape[2])
    q_clusters = cluster_queries(q, config, centroids)
    k_clusters = cluster_keys(k, config, centroids)
    clock.mark("kmeans")

    q_order = sort_by_label(q_clusters.labels, config.num_q_clusters, impl=config.impl)
    k_order = sort_by_label(k_clusters.labels, config.num_k_clusters, impl=config.impl)
    q_sorted, k_sorted, v_sorted = permute(q, q_order), permute(k, k_order), permute(v, k_order)
    clock.mark("permute")

    P = cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes)
    kept = select_from_mass(P, k_clusters.sizes, config.top_p, config.min_keep_ratio)
    clock.mark("select")

    compensation = None
    if config.compensate:
        v_centroids = cluster_means(v_sorted, k_order)
        compensation = Compensation(k_clusters.centroids, v_centroids)
    blocks = _Blocks(
        q_sorted, k_sorted, v_sorted, q_order.offsets, k_order.offsets, kept, compensation
    )
    if text is not None:
        blocks = blocks.with_text(text)
    out_sorted = cluster_attention(
        *(blocks.q, blocks.k, blocks.v, blocks.q_offsets, blocks.k_offsets, blocks.kept),
        compensation=blocks.compensation,
        impl=config.impl,
    )
    clock.mark("attention")
    n_video, text_out = q.shape[2], None
    if text is not None:
        out_sorted, text_out = out_sorted.split([n_video, text.q.shape[2]], dim=2)
    out = unpermute(out_sorted, q_order)
    clock.mark("permute")
    n_text = 0 if text is None else text.q.shape[2]
    plan = Plan(q_clusters, k_clusters, q_order, k_order, P, kept, n_text)
    return SparseResult(out, plan, text_out)


@dataclass(frozen=True)
class _Blocks:
    """What cluster attention takes."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_offsets: Tensor
    k_offsets: Tensor
    kept: Tensor
    compensation: Compensation | None

    def with_text(self, text: TextTokens) -> "_Blocks":
        """The same with the text as the last cluster of either side, kept by all."""
        q, k, v = (
            torch.cat([video, tokens], dim=2)
            for video, tokens in zip(
                (self.q, self.k, self.v), (text.q, text.k, text.v), strict=True
            )
        )
        q_offsets, k_offsets = (
            torch.cat([offsets, offsets[..., -1:] + text.q.shape[2]], dim=-1)
            for offsets in (self.q_offsets, self.k_offsets)
        )
        kept = F.pad(self.kept, (0, 1, 0, 1), value=True)
        compensation = self.compensation
        if compensation is not None:  # of a cluster that is never skipped: any value will do
            compensation = Compensation(
                F.pad(compensation.k_centroids, (0, 0, 0, 1)),
                F.pad(compensation.v_centroids, (0, 0, 0, 1)),
            )
        return _Blocks(q, k, v, q_offsets, k_offsets, kept, compensation)


def cluster_means(
    x_sorted: Float[Tensor, "B H N D"], order: Permutation
) -> Float32[Tensor, "B H K D"]:
    """Mean of each cluster, of tokens already in cluster order; 0 for an empty cluster."""
    sizes_BHK = order.sizes
    # All heads laid end to end are one run of segments; summing by segment is deterministic,
    # scatter-add is not.
    sums = torch.segment_reduce(
        x_sorted.float().flatten(0, 2), "sum", lengths=sizes_BHK.flatten().long(), unsafe=True
    )
    return sums.view(*sizes_BHK.shape, -1) / sizes_BHK.clamp(min=1).unsqueeze(-1)
