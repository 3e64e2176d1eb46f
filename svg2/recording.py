"""What a record shows beyond labels and masses: cluster colours, neighbours, true recall."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from numpy import ndarray

from svg2.trace import NUM_NEAR

NUM_RECALL_QUERIES = 64

_MIN_AXIS_SHARE = 0.4


def centroid_colours(
    q_centroids: Float[ndarray, "Q D"], k_centroids: Float[ndarray, "K D"]
) -> tuple[UInt8[ndarray, "Q 3"], UInt8[ndarray, "K 3"]]:
    """Colours from the first three principal components of query and key centroids together.

    Queries and keys lie far apart (each has a large mean of its own), and that offset alone would
    be the first component: each side is centred on its own mean first. The scale is robust: the
    2nd to 98th percentile fill the range, but a minor axis is not stretched beyond 2.5 times the
    first one's scale.
    """
    sides = [
        c.astype(np.float64) - c.mean(axis=0, dtype=np.float64) for c in (q_centroids, k_centroids)
    ]
    joint = np.concatenate(sides)
    _, _, axes = np.linalg.svd(joint, full_matrices=False)
    axes = axes[:3]
    # an axis has no sign of its own: fix it, so that the colours of a record do not depend on the
    # linear algebra library
    axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1) < 0, -1, 1)
    points = joint @ axes.T
    points = np.pad(points, ((0, 0), (0, 3 - points.shape[1])))
    low, high = np.percentile(points, [2, 98], axis=0)
    extent = np.maximum(high - low, max(_MIN_AXIS_SHARE * (high - low).max(), 1e-12))
    unit = 0.5 + (points - (low + high) / 2) / extent
    # never black or white: lines drawn over them must stay visible
    rgb = (40 + 200 * np.clip(unit, 0, 1)).round().astype(np.uint8)
    return rgb[: len(q_centroids)], rgb[len(q_centroids) :]


def nearest_clusters(
    centroids: Float[ndarray, "K D"], sizes: Int[ndarray, "K"]
) -> UInt16[ndarray, "K 4"]:
    """Per cluster the nearest others that hold tokens, nearest first; its own id to fill up."""
    points = centroids.astype(np.float64)
    norms = (points**2).sum(axis=1)
    distance = norms[:, None] + norms - 2 * points @ points.T
    distance[:, np.asarray(sizes) == 0] = np.inf
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, :NUM_NEAR]
    found = np.isfinite(np.take_along_axis(distance, order, axis=1))
    near = np.where(found, order, np.arange(len(points))[:, None])
    fill = np.repeat(np.arange(len(points))[:, None], NUM_NEAR - near.shape[1], axis=1)
    return np.concatenate([near, fill], axis=1).astype(np.uint16)


def attention_recall(
    queries: Float[ndarray, "S D"],
    keys: Float[ndarray, "N D"],
    query_labels: Int[ndarray, "S"],
    key_labels: Int[ndarray, "N"],
    kept: Bool[ndarray, "Q K"],
) -> float:
    """Share of the exact softmax mass that lands on kept keys, mean over the queries."""
    scores = queries.astype(np.float32) @ keys.astype(np.float32).T / np.sqrt(queries.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    seen = kept[query_labels][:, key_labels]
    return float(((weights * seen).sum(axis=1) / weights.sum(axis=1)).mean())
