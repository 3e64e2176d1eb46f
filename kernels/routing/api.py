"""Routing: what each query centroid sees of each key cluster, and what skipping it would cost."""

import math
from dataclasses import dataclass

from jaxtyping import Float, Float32, Int
from torch import Tensor

from kernels.cluster_attention.stand_ins import StandIns
from kernels.impl import Impl, refuse_gradients, resolve_impl
from kernels.routing import reference


@dataclass(frozen=True)
class Routes:
    """What query centroids saw of key clusters.

    Attributes:
        mass: softmax mass of each key cluster at each query centroid; rows sum to 1.
        error: error of the output at the query centroid if the mean value of a skipped cluster
            stood for its values, as a length in units of the values: `|V - M·v_mean| / Z`, where M
            is the mass before it is normalised, V the values so weighted, and Z the sum of M.
        stand_ins: keys, values and weights that stand for skipped clusters.
    """

    mass: Float32[Tensor, "B H Q K"]
    error: Float32[Tensor, "B H Q K"]
    stand_ins: StandIns


def route(
    q_centroids: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    k_offsets: Int[Tensor, "B H K1"],
    *,
    scale: float | None = None,
    per_pair: bool = True,
    impl: Impl = "auto",
) -> Routes:
    """Attend from query centroids to all keys, summed by key cluster.

    Args:
        k, v: in the order of their clusters.
        k_offsets: where each cluster starts, and the number of keys.
        scale: of the logits; 1/sqrt(D) if not given.
        per_pair: whether each pair of clusters gets stand-ins of its own. If so, key and value are
            the means of the cluster weighted by what the query centroid sees of each key, and the
            weight makes the stand-in exact at the query centroid and its weight exact in first
            order around it. That takes `2·Q·K·D` numbers a head. If not, key and value are the
            plain means of the cluster, and the weight still gives the mass seen, held between
            `n/e` and `n·e^3` for a cluster of n keys.

    Raises:
        ValueError: an input requires a gradient.
        ImplUnavailable: the implementation asked for cannot run here.
    Source: the error-aware routing of SVG-EAR, arXiv 2603.08982, with an error of our own.
    """
    refuse_gradients("route", q_centroids=q_centroids, k=k, v=v)
    if scale is None:
        scale = 1 / math.sqrt(k.shape[-1])
    if resolve_impl(impl, k, is_matmul=True) == "fused":
        from kernels.routing import fused

        mass, error, keys, values, log_weights = fused.route(
            q_centroids, k, v, k_offsets, scale, per_pair
        )
        return Routes(mass, error, StandIns(keys, values, log_weights))
    return Routes(*reference.route(q_centroids, k, v, k_offsets, scale, per_pair))
