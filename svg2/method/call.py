"""One sparse call: cluster, permute, select, attend, and put the tokens back."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kernels import (
    Compensation,
    KMeansResult,
    Permutation,
    cluster_attention,
    cluster_means,
    permute,
    sort_by_label,
)
from svg2.config import SVG2Config
from svg2.method.clustering import Centroids, cluster_tokens
from svg2.method.plan import Clustered, Plan, cluster_mass
from svg2.method.selection import METHODS
from svg2.method.stages import StageClock


@dataclass(frozen=True)
class TextTokens:
    """Real prompt tokens of a joint model: they see all and are seen by all. T is their number."""

    q: Float[Tensor, "B H T D"]
    k: Float[Tensor, "B H T D"]
    v: Float[Tensor, "B H T D"]

    def of_heads(self, heads: slice) -> "TextTokens":
        """The same of some heads alone."""
        return TextTokens(self.q[:, heads], self.k[:, heads], self.v[:, heads])


@dataclass(frozen=True)
class CallResult:
    """Attention output of the video in the tokens' own order, and the plan that it followed.

    `text_out` is that of the text; None without text.
    """

    out: Float[Tensor, "B H N D"]
    plan: Plan
    text_out: Float[Tensor, "B H T D"] | None = None


def sparse_call(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    config: SVG2Config,
    centroids: Centroids,
    clock: StageClock | None = None,
    text: TextTokens | None = None,
) -> CallResult:
    """Self-attention of each query over the keys of the clusters that its own cluster keeps.

    `q` and `k` come after norm and RoPE and hold the video alone. `text` is one more cluster of
    either side, never skipped and no part of the selection. `centroids` warm-starts k-means and
    is updated. `clock` gets the stages `kmeans`, `permute`, `select` and `attention`.

    Raises:
        ConfigError: there are more clusters than tokens.
        kernels.ImplUnavailable: `config.impl` names kernels that cannot run here.
    """
    config.check_tokens(q.shape[2])
    method = METHODS[config.method]
    clock = clock or StageClock(q.device)
    q_clusters, k_clusters = (
        cluster_tokens(x, config, centroids, s) for x, s in ((q, "q"), (k, "k"))
    )
    clock.mark("kmeans")

    q_order, k_order = _order(q_clusters, config), _order(k_clusters, config)
    k_sorted, v_sorted = (permute(x, k_order, impl=config.impl) for x in (k, v))
    clock.mark("permute")

    P = cluster_mass(q_clusters.centroids, k_clusters.centroids, k_clusters.sizes)
    kept = method.function("select")(Clustered(q_clusters, k_clusters, P), config)
    clock.mark("select")

    compensation = None
    if method.compensates:
        v_centroids = cluster_means(v, k_order, impl=config.impl)
        compensation = Compensation(k_clusters.centroids, v_centroids)
    blocks = _Blocks(q, k_sorted, v_sorted, q_order, k_order.offsets, kept, compensation)
    if text is not None:
        blocks = blocks.with_text(text)
    # Queries go in and come out in their own order: sorting them is part of the attention.
    out = cluster_attention(
        *(blocks.q, blocks.k, blocks.v, blocks.q_order.offsets, blocks.k_offsets, blocks.kept),
        compensation=blocks.compensation,
        q_perm=blocks.q_order.perm,
        impl=config.impl,
    )
    clock.mark("attention")
    n_text, text_out = 0, None
    if text is not None:
        n_text = text.q.shape[2]
        out, text_out = out.split([q.shape[2], n_text], dim=2)
    return CallResult(out, Plan(q_clusters, k_clusters, P, kept, n_text), text_out)


def _order(clusters: KMeansResult, config: SVG2Config) -> Permutation:
    """The tokens sorted by cluster, which k-means may have done already."""
    if clusters.order is not None:
        return clusters.order
    return sort_by_label(clusters.labels, clusters.sizes.shape[-1], impl=config.impl)


@dataclass(frozen=True)
class _Blocks:
    """What cluster attention takes: queries in their own order, keys and values sorted."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_order: Permutation
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
        n_video, n_text = self.q.shape[2], text.q.shape[2]
        own_places = torch.arange(n_video, n_video + n_text, device=q.device)
        perm = self.q_order.perm
        q_order = Permutation(
            torch.cat([perm, own_places.expand(*perm.shape[:2], -1)], dim=-1),
            _with_end(self.q_order.offsets, n_text),
        )
        k_offsets = _with_end(self.k_offsets, n_text)
        kept = F.pad(self.kept, (0, 1, 0, 1), value=True)
        compensation = self.compensation
        if compensation is not None:  # of a cluster that is never skipped: any value will do
            compensation = Compensation(
                F.pad(compensation.k_centroids, (0, 0, 0, 1)),
                F.pad(compensation.v_centroids, (0, 0, 0, 1)),
            )
        return _Blocks(q, k, v, q_order, k_offsets, kept, compensation)


def _with_end(offsets: Tensor, length: int) -> Tensor:
    """Offsets with one more cluster of `length` tokens."""
    return torch.cat([offsets, offsets[..., -1:] + length], dim=-1)
