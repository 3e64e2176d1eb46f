"""Estimate of the memory of one denoising step: dense, and what the method adds.

The estimate comes from tensor shapes: the most bytes that the tensors of one block hold at once.
Kernel workspaces and allocator fragmentation are not counted, so a real step holds more:
`tests/svg2/models/test_catalogue.py` compares a dense one with its estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from svg2.config import ROUTED_METHOD, SVG2Config

GIB = 1 << 30
_ELEMENT_BYTES = 2  # bf16 or fp16


@dataclass(frozen=True)
class TransformerShape:
    """The sizes of a transformer that its memory depends on.

    Attributes:
        layers: number of self-attention layers.
        mlp_dim: width inside the feed-forward part.
        parameters: number of parameters of one transformer.
        experts: transformers of the pipeline, of which one runs at a time.
        joint_text: whether prompt tokens take part in the self-attention of the video.
        branches: guidance passes per step, each with its own centroids.
    """

    layers: int
    heads: int
    head_dim: int
    mlp_dim: int
    parameters: int
    experts: int = 1
    joint_text: bool = False
    branches: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class MemoryNeed:
    """Memory of one denoising step in bytes, in bf16.

    Attributes:
        weights: one transformer.
        activations: one dense forward.
        centroids: all cached centroids; they stay for the whole generation.
        clusters: what else a sparse forward holds beyond a dense one.
    """

    weights: int
    activations: int
    centroids: int
    clusters: int

    @property
    def dense_peak(self) -> int:
        return self.weights + self.activations

    @property
    def added(self) -> int:
        return self.centroids + self.clusters

    @property
    def added_share(self) -> float:
        """Memory that the method adds, as a share of the dense peak."""
        return self.added / self.dense_peak


def _selection_bytes(shape: TransformerShape, config: SVG2Config, layer: int) -> int:
    """What is held for pairs of clusters, and what stands for skipped clusters.

    Args:
        layer: bytes of the output, which a selection comes before.
    """
    num_q, num_k = config.num_q_clusters, config.num_k_clusters
    pairs = num_q * num_k * shape.heads
    if config.method != ROUTED_METHOD:
        values = 4 * num_k * shape.width if config.compensates else 0
        return (4 + 4 + 8 + 1) * pairs + values  # fp32, sorted, their order, kept
    # The attention has mass, error and weight in fp32, and kept. The selection has no output yet,
    # but the gain, its bits and their halves, and in int64 query-key pairs, what is left of them
    # in one half, and the half.
    kept = 3 * 4 + 1
    tables = max(kept * pairs, (kept + 4 * 4 + 4 * 8) * pairs - layer)
    each = num_q if config.stand_ins == "pairs" else 1
    return tables + 2 * _ELEMENT_BYTES * each * num_k * shape.width


def memory_need(shape: TransformerShape, tokens: int, config: SVG2Config) -> MemoryNeed:
    """Estimate the memory of one dense step over `tokens` video tokens, and what `config` adds."""
    layer = _ELEMENT_BYTES * tokens * shape.width  # one [N, C] in the model's dtype
    tables = 2 * 4 * tokens * shape.head_dim  # cosines and sines of RoPE
    mlp = _ELEMENT_BYTES * tokens * shape.mlp_dim
    num_q, num_k = config.num_q_clusters, config.num_k_clusters
    if shape.joint_text:
        # A single-stream block. Held: its input, the normed input, the MLP part, q, k and v.
        # On top, dense: RoPE of one of q and k in fp32. Sparse: sorted keys and values, and the
        # output.
        held = 2 * layer + mlp + 3 * layer
        dense, sparse = held + 7 * layer, held + (2 + 1) * layer
    else:
        # Held: the residual, the normed residual, q, k and v. On top, dense: RoPE of one of q and
        # k in fp32. Sparse: sorted keys and values, and the output. The feed-forward part holds
        # its inner tensor before and after the activation.
        held = (2 + 3) * layer
        dense = max(held + (1 + 3) * layer, 2 * layer + 2 * mlp)
        sparse = held + 3 * layer
    dense, sparse = dense + tables, sparse + tables
    labels_and_order = 2 * 2 * 4 * tokens * shape.heads  # int32, of queries and of keys
    means = 4 * (num_q + num_k) * shape.width
    sparse += labels_and_order + means + _selection_bytes(shape, config, layer)
    centroids = _ELEMENT_BYTES * (num_q + num_k) * shape.width
    return MemoryNeed(
        weights=_ELEMENT_BYTES * shape.parameters,
        activations=dense,
        centroids=centroids * max(0, shape.layers - config.dense_layers) * shape.branches,
        clusters=max(0, sparse - dense),
    )
