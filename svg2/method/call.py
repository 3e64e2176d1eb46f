"""One call of sparse attention: cluster, permute, select, attend."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels import (
    KMeansResult,
    Permutation,
    StandIns,
    cluster_attention,
    on_one_thread,
    permute,
    sort_by_label,
)
from svg2.config import SVG2Config
from svg2.method.clustering import Centroids, cluster_tokens, kmeans_distances
from svg2.method.plan import CallResult, Plan, TextTokens, Tokens
from svg2.method.selection import METHODS
from svg2.method.stages import StageClock


def sparse_call(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    config: SVG2Config,
    centroids: Centroids,
    clock: StageClock | None = None,
    text: TextTokens | None = None,
    grid: tuple[int, int, int] | None = None,
    sum_heads: Callable[[Tensor], Tensor] | None = None,
) -> CallResult:
    """Self-attention of each query over the keys of the clusters that its own cluster keeps.

    Args:
        q, k, v: the video tokens alone; q and k after norm and RoPE.
        centroids: start of k-means; updated in place.
        clock: gets the stages `kmeans`, `permute`, `select` and `attention`.
        text: prompt tokens of a joint model. All queries attend to them and they attend to all
            keys; the selection is of video tokens alone.
        grid: frames, rows and columns of tokens (T, Y, X), for methods that need them.
        sum_heads: adds up a tensor over the processes that share the heads.

    Raises:
        ConfigError: more clusters than tokens, or a method that needs `grid` without one.
        kernels.ImplUnavailable: kernels (`config.impl`) that can't run here.
    Source: SVG2, arXiv 2505.18875; stand-ins for skipped clusters after SVG-EAR, arXiv 2603.08982.
    """
    config.check_tokens(q.shape[2])
    clock = clock or StageClock(q.device)
    tensors = (q, k, v)
    return on_one_thread(
        lambda: _sparse_call(tensors, config, centroids, clock, text, grid, sum_heads), q.device
    )


def _sparse_call(
    tensors: tuple[Tensor, Tensor, Tensor],
    config: SVG2Config,
    centroids: Centroids,
    clock: StageClock,
    text: TextTokens | None,
    grid: tuple[int, int, int] | None,
    sum_heads: Callable[[Tensor], Tensor] | None,
) -> CallResult:
    q, k, v = tensors
    method = METHODS[config.method]
    if method.attend is not None:
        result = method.function("attend")(q, k, v, config, text, sum_heads)
        clock.mark("attention")
        return result
    distances = kmeans_distances(q.shape[2], config, centroids)
    q_clusters, k_clusters = (
        cluster_tokens(x, config, centroids, s, grid) for x, s in ((q, "q"), (k, "k"))
    )
    clock.mark("kmeans")

    n_video, n_text = q.shape[2], 0 if text is None else text.q.shape[2]
    q_order, k_order = _order(q_clusters, config), _order(k_clusters, config)
    k_sorted, v_sorted = (permute(x, k_order, room=n_text, impl=config.impl) for x in (k, v))
    if text is not None:  # the text comes last, where `permute` left room
        k_sorted[:, :, n_video:] = text.k
        v_sorted[:, :, n_video:] = text.v
    clock.mark("permute")

    tokens = Tokens(
        *(q, k, v, k_sorted[:, :, :n_video], v_sorted[:, :, :n_video]),
        *(q_order, k_order, q_clusters, k_clusters, grid),
        **({} if sum_heads is None else {"sum_heads": sum_heads}),
    )
    routed = method.function("route")(tokens, config)
    kept = method.function("select")(tokens, routed, config)
    clock.mark("select")

    keys = _Keys(k_order.offsets, kept, routed.stand_ins)
    keys = keys if text is None else keys.with_text(n_text)
    # The kernel sorts the queries and unsorts the output, so both are in token order here.
    out = cluster_attention(
        *(q, k_sorted, v_sorted, q_order.offsets, keys.offsets, keys.kept),
        stand_ins=keys.stand_ins,
        q_perm=q_order.perm,
        impl=config.impl,
    )
    text_out = None
    if text is not None:  # attends to all keys, so their order does not matter
        text_out = F.scaled_dot_product_attention(text.q, k_sorted, v_sorted)
    clock.mark("attention")
    plan = Plan(
        *(q_clusters, k_clusters, routed.P, kept, routed.error),
        has_stand_ins=routed.stand_ins is not None,
        passes=routed.passes,
        kmeans_distances=distances,
        n_text=n_text,
    )
    return CallResult(out, plan, text_out)


def _order(clusters: KMeansResult, config: SVG2Config) -> Permutation:
    """The tokens sorted by cluster; some methods have sorted them already."""
    if clusters.order is not None:
        return clusters.order
    return sort_by_label(clusters.labels, clusters.sizes.shape[-1], impl=config.impl)


@dataclass(frozen=True)
class _Keys:
    """Key clusters of `cluster_attention`, and which of them each query cluster keeps."""

    offsets: Int[Tensor, "B H K1"]
    kept: Bool[Tensor, "B H Q K"]
    stand_ins: StandIns | None

    def with_text(self, n_text: int) -> "_Keys":
        """The clusters with the text as a last one that every query cluster keeps."""
        stand_ins = self.stand_ins
        if stand_ins is not None:  # zeros: the text is never skipped, so they are not read
            log_weights = stand_ins.log_weights
            stand_ins = StandIns(
                F.pad(stand_ins.keys, (0, 0, 0, 1)),
                F.pad(stand_ins.values, (0, 0, 0, 1)),
                None if log_weights is None else F.pad(log_weights, (0, 1)),
            )
        offsets = torch.cat([self.offsets, self.offsets[..., -1:] + n_text], dim=-1)
        return _Keys(offsets, F.pad(self.kept, (0, 1), value=True), stand_ins)
