"""Sparse attention on plain tensors, for models and frameworks other than diffusers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from kernels import MAX_K_CLUSTERS, ImplUnavailable, resolve_impl
from svg2.config import SVG2Config
from svg2.errors import ConfigError
from svg2.method.call import sparse_call
from svg2.method.clustering import Centroids
from svg2.method.plan import Plan


@dataclass(frozen=True)
class SparseResult:
    """Output of a sparse attention call, and what the call computed.

    Attributes:
        out: attention output, in the order of the tokens.
        density: kept share of all query-key pairs per head, in (0, 1].
        compute_density: `density` plus the pairs of stand-ins and of the routing pass.
        overhead_density: operations of k-means, as a share of those of all pairs.
        plan: clusters, attention masses and kept pairs.
    """

    out: Float[Tensor, "B H N D"]
    density: Float64[Tensor, "B H"]
    compute_density: Float64[Tensor, "B H"]
    overhead_density: float
    plan: Plan


@torch.no_grad()
def sparse_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    config: SVG2Config | None = None,
    centroids: Centroids | None = None,
    grid: tuple[int, int, int] | None = None,
) -> SparseResult:
    """Sparse self-attention on tensors of any model, on a CPU or on CUDA. No gradients flow.

    Args:
        q, k, v: queries, keys and values of the video tokens alone, after norms and position
            embedding.
        config: method, budget and clusters; None takes the defaults. `warmup_fraction` and
            `dense_layers` have no effect: every call of this function is sparse.
        centroids: a `svg2.Centroids()` per layer and guidance branch. k-means starts from the
            centroids that it holds, and leaves its own there for the next denoising step. None
            starts cold.
        grid: frames, rows and columns of tokens (T, Y, X), for methods that need them.

    Raises:
        ConfigError: different shapes or dtypes of q, k and v; more clusters than tokens, or more
            key clusters than the GPU kernels take; a method that needs `grid` without one; or
            kernels (`config.impl`) that can't run here.
    Source: SVG2, arXiv 2505.18875; stand-ins after SVG-EAR, arXiv 2603.08982.
    """
    config = SVG2Config() if config is None else config
    if q.ndim != 4 or not q.shape == k.shape == v.shape or not q.dtype == k.dtype == v.dtype:
        found = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (q, k, v))
        raise ConfigError(
            f"q, k and v must have one shape [B, H, N, D] and one dtype, not {found}."
        )
    try:
        impl = resolve_impl(config.impl, q, is_matmul=True)
        if impl == "fused" and config.num_k_clusters > MAX_K_CLUSTERS:
            raise ConfigError(
                f"num_k_clusters is {config.num_k_clusters}, and the GPU kernels take at most "
                f"{MAX_K_CLUSTERS}: ask for fewer clusters, or for impl=reference."
            )
        result = sparse_call(q, k, v, config, centroids or Centroids(), grid=grid)
    except ImplUnavailable as error:
        raise ConfigError(str(error)) from error
    plan = result.plan
    return SparseResult(
        result.out, plan.density(), plan.compute_density(), plan.overhead_density(), plan
    )
