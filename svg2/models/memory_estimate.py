"""Memory of a denoising step on paper: what a dense one holds, and what the method adds to it.

Counted from shapes: the tensors of one block that are alive at once where the most are, in bytes.
A real run holds somewhat more (`tests/svg2/test_menu.py` watches one), workspaces of kernels and
what an allocator wastes besides, so that the share that the method adds is none too low.
"""

from __future__ import annotations

from dataclasses import dataclass

from svg2.config import SVG2Config

GIB = 1 << 30
_LOW = 2  # bytes of bf16 or fp16


@dataclass(frozen=True)
class TransformerShape:
    """A transformer as memory sees it.

    Attributes:
        layers: self-attention layers.
        mlp_dim: width inside the feed-forward part.
        parameters: of one transformer; experts: transformers that the pipeline has, of which one
            works at a time.
        joint_text: prompt tokens attend together with the video's.
        branches: guidance passes a step, each with centroids of its own.
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
    """Bytes in bf16. `weights` are of one transformer, `activations` of one dense forward.

    `centroids` lie beside both as long as a generation runs, and `clusters` is what else a sparse
    forward holds beyond a dense one.
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
        """What the method adds, of the dense peak."""
        return self.added / self.dense_peak


def memory_need(shape: TransformerShape, tokens: int, config: SVG2Config) -> MemoryNeed:
    """What a step over this many video tokens holds, dense, and what `config` adds."""
    layer = _LOW * tokens * shape.width  # one [N, C] in the model's dtype
    tables = 2 * 4 * tokens * shape.head_dim  # cosines and sines of RoPE
    mlp = _LOW * tokens * shape.mlp_dim
    num_q, num_k = config.num_q_clusters, config.num_k_clusters
    if shape.joint_text:
        # A single-stream block: its input and that normed, the MLP's half waiting, q, k, v; then
        # rotation in fp32 of one of them, or the sorted copies, those with the text, the output.
        waiting = 2 * layer + mlp + 3 * layer
        dense, sparse = waiting + 7 * layer, waiting + (2 + 3 + 1) * layer
    else:
        # The residual and its norm, q, k, v; then one of them rotated, by way of fp32, or the
        # sorted keys and values and the output. Feed-forward: before and after its activation.
        waiting = (2 + 3) * layer
        dense = max(waiting + (1 + 3) * layer, 2 * layer + 2 * mlp)
        sparse = waiting + 3 * layer
    dense, sparse = dense + tables, sparse + tables
    labels_and_order = 2 * 2 * 4 * tokens * shape.heads  # int32, of queries and of keys
    masses = (4 + 4 + 8 + 1) * num_q * num_k * shape.heads  # fp32, sorted, their order, kept
    means = 4 * (num_q + num_k) * shape.width
    values = 4 * num_k * shape.width if config.compensates else 0
    sparse += labels_and_order + masses + means + values
    centroids = _LOW * (num_q + num_k) * shape.width
    return MemoryNeed(
        weights=_LOW * shape.parameters,
        activations=dense,
        centroids=centroids * max(0, shape.layers - config.dense_layers) * shape.branches,
        clusters=max(0, sparse - dense),
    )
