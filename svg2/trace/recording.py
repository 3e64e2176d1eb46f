"""Recording a run for its trace: which calls, and of each clusters, colours and true recall."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Int, UInt8, UInt16
from numpy import ndarray

from svg2.config import SVG2Config
from svg2.method.call_sample import CallSample
from svg2.trace.file import trace_bytes
from svg2.trace.records import (
    MAX_BYTES,
    MAX_PAIRS,
    NUM_NEAR,
    Record,
    RecordingPolicy,
    Trace,
)
from svg2.trace.thresholds import gain_thresholds, log_gain

NUM_RECALL_QUERIES = 64
NUM_STEPS = 4
NUM_HEADS = 3

_RECORDS_SHARE = 0.75  # of a trace; the rest is for its clips and statistics

_MIN_AXIS_SHARE = 0.4


@dataclass(frozen=True)
class Selection:
    """The calls that are recorded, and one sentence where the policy's size made them fewer.

    `heads` are their numbers, or how many there are of each layer, see `heads_by_density`.
    """

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...] | int
    note: str


def choose(
    policy: RecordingPolicy,
    config: SVG2Config,
    *,
    num_steps: int,
    num_layers: int,
    num_heads: int,
    n_tokens: int,
) -> Selection:
    """What `policy` records of a run, thinned so that its records leave room in `max_bytes`.

    Steps and layers that run dense are left out. Thinning takes heads first, then steps, then
    layers, always spread over what there is. Records are counted before compression, for one
    guidance branch.
    """
    sparse_steps = range(config.warmup_steps(num_steps), num_steps)
    sparse_layers = range(config.dense_layers, num_layers)
    steps = spread(sparse_steps, NUM_STEPS) if policy.steps is None else policy.steps
    layers = tuple(sparse_layers) if policy.layers is None else policy.layers
    heads = range(min(NUM_HEADS, num_heads)) if policy.heads is None else policy.heads
    asked = (
        tuple(s for s in sorted(set(steps)) if s in sparse_steps),
        tuple(x for x in sorted(set(layers)) if x in sparse_layers),
        tuple(h for h in sorted(set(heads)) if 0 <= h < num_heads),
    )
    num_q, num_k = config.num_q_clusters, config.num_k_clusters
    masses = 4 if config.predicts else 2  # float16, and the gains as well
    record_bytes = (
        4 * n_tokens + masses * num_q * num_k + num_q * num_k // 8 + 3 * num_q + 11 * num_k
    )
    room = int(min(policy.max_bytes, MAX_BYTES) * _RECORDS_SHARE) // record_bytes
    room = min(room, MAX_PAIRS // (num_q * num_k))
    steps, layers, heads = asked
    if len(steps) * len(layers) * len(heads) > room:
        heads = spread(heads, max(1, room // max(1, len(steps) * len(layers))))
        steps = spread(steps, max(1, room // max(1, len(layers) * len(heads))))
        layers = spread(layers, room // max(1, len(steps) * len(heads)))
    thinned = [
        f"{len(left)} of {len(wanted)} {name}"
        for name, left, wanted in zip(
            ("steps", "layers", "heads"), (steps, layers, heads), asked, strict=True
        )
        if len(left) < len(wanted)
    ]
    note = ""
    if thinned:
        note = f"Recorded {', '.join(thinned)} to stay under {policy.max_bytes / 2**20:.0f} MB."
    return Selection(steps, layers, len(heads) if policy.heads is None else heads, note)


class Recorder:
    """An observer for `svg2.hooks.enable` that turns the selected calls into trace records.

    Attributes:
        records: what was recorded so far, of run 0.
        seconds: time that recording took, which is no part of the run. The wait for work that was
            queued on the GPU before is part of the run and not counted here.

    Args:
        min_keep_ratio: setting of a method that selects by predicted errors, whose errors are then
            recorded; None for other methods.
    """

    def __init__(
        self,
        selection: Selection,
        branches: Sequence[int],
        seed: int = 0,
        min_keep_ratio: float | None = None,
    ) -> None:
        self.records: list[Record] = []
        self.seconds = 0.0
        self._selection = selection
        self._branches = frozenset(branches)
        self._min_keep_ratio = min_keep_ratio
        self._rng = np.random.default_rng(seed)
        self._heads: dict[tuple[int, int], tuple[int, ...]] = {}  # by layer and branch

    def __call__(self, call: CallSample) -> None:
        """Record one sparse call, if it is among those selected."""
        chosen = call.step in self._selection.steps and call.layer in self._selection.layers
        if not chosen or call.branch not in self._branches:
            return
        if call.q.device.type == "cuda":
            import torch

            torch.cuda.synchronize(call.q.device)
        started = time.perf_counter()
        errors = _errors(call, self._min_keep_ratio)
        self.records += [_record(call, head, self._rng, errors) for head in self._heads_of(call)]
        self.seconds += time.perf_counter() - started

    def _heads_of(self, call: CallSample) -> tuple[int, ...]:
        """The same heads of a layer at every step, so that they can be followed."""
        wanted = self._selection.heads
        if not isinstance(wanted, int):
            return wanted
        place = (call.layer, call.branch)
        if place not in self._heads:
            kept, q_sizes, k_sizes = (
                x[-1].cpu().numpy() for x in (call.kept, call.q_sizes, call.k_sizes)
            )
            pairs = (kept * q_sizes[..., None] * k_sizes[:, None]).sum((1, 2))
            self._heads[place] = heads_by_density(pairs, wanted)
        return self._heads[place]


def heads_by_density(densities: Sequence[float] | ndarray, count: int) -> tuple[int, ...]:
    """Numbers of `count` heads spread by density, both ends included; one is the middle one."""
    order = np.argsort(densities, kind="stable")
    found = (order[len(order) // 2],) if count == 1 else spread(order, count)
    return tuple(sorted(int(head) for head in found))


@dataclass(frozen=True)
class _Errors:
    """Gains of all heads, and what they must exceed at each budget."""

    gain: Float16[ndarray, "H Q K"]
    thresholds: Float32[ndarray, " ticks"]


def _errors(call: CallSample, min_keep_ratio: float | None) -> _Errors | None:
    """None where errors do not decide alone, or other processes have some of the heads."""
    shares_heads = call.P.shape[1] != len(call.density)
    if min_keep_ratio is None or call.error is None or shares_heads:
        return None
    error, P, q_sizes, k_sizes = (
        x[-1].cpu().numpy() for x in (call.error, call.P, call.q_sizes, call.k_sizes)
    )
    gain = log_gain(error, k_sizes)
    return _Errors(gain, gain_thresholds(gain, P, q_sizes, k_sizes, min_keep_ratio))


def _record(
    call: CallSample, head: int, rng: np.random.Generator, errors: _Errors | None
) -> Record:
    # The last sample: pipelines that put both guidance branches in one batch put the conditional
    # one last. The densities of the call are means over the batch.
    def array(tensor: Any) -> ndarray:
        tensor = tensor[-1, head]
        return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()

    q_labels, k_labels = array(call.q_labels), array(call.k_labels)
    k_centroids, kept = array(call.k_centroids), array(call.kept)
    q_rgb, k_rgb = centroid_colours(array(call.q_centroids), k_centroids)
    q, k = call.q[-1, head], array(call.k)
    rows = np.sort(rng.choice(len(q), min(NUM_RECALL_QUERIES, len(q)), replace=False))
    queries = q[rows.tolist()].float().cpu().numpy()
    return Record(
        run=0,
        step=call.step,
        layer=call.layer,
        branch=call.branch,
        head=head,
        q_labels=q_labels.astype(np.uint16),
        k_labels=k_labels.astype(np.uint16),
        P=array(call.P).astype(np.float16),
        kept=kept,
        q_rgb=q_rgb,
        k_rgb=k_rgb,
        k_near=nearest_clusters(k_centroids, array(call.k_sizes)),
        recall=attention_recall(queries, k, q_labels[rows], k_labels, kept),
        gain=None if errors is None else errors.gain[head],
        thresholds=None if errors is None else errors.thresholds,
    )


def fit(trace: Trace, max_bytes: int, most: int = 0) -> Trace:
    """The trace with fewer records, so that its file has at most `max_bytes` and can be read.

    Run `most` keeps its records longest. Of the other runs heads go first, then steps, then
    layers, always spread over what there is; of that run steps, then heads, then layers. The clips
    and the statistics of every call stay, so a file without any record may still be larger.
    """
    records = {most: [r for r in trace.records if r.run == most]}
    records[-1] = [r for r in trace.records if r.run != most]
    fitted = trace
    for run, axes in ((-1, ("head", "step", "layer")), (most, ("step", "head", "layer"))):
        whole, cuts = records[run], _cuts(records[run], axes)
        while not _fits(fitted, max_bytes) and (cut := next(cuts, None)) is not None:
            records[run] = _thinned(whole, cut)
            kept = set(map(id, records[most] + records[-1]))
            fitted = dataclasses.replace(
                trace, records=tuple(r for r in trace.records if id(r) in kept)
            )
    if fitted is trace:
        return trace
    note = (
        f"Kept {len(fitted.records)} of {len(trace.records)} records to stay under "
        f"{max_bytes / 2**20:.1f} MB, most of them of run {most + 1}."
    )
    return dataclasses.replace(fitted, policy=trace.policy | {"note": note})


def _fits(trace: Trace, max_bytes: int) -> bool:
    return not trace.is_too_large and len(trace_bytes(trace)) <= max_bytes


def _cuts(records: Sequence[Record], axes: Sequence[str]) -> Iterator[dict[str, int]]:
    """How many heads, steps and layers to keep of each run, fewer from cut to cut, to none."""
    counts = {axis: len({getattr(r, axis) for r in records}) for axis in axes}
    for axis in axes:
        while counts[axis] > 1:
            counts[axis] -= 1
            yield dict(counts)
    yield dict.fromkeys(axes, 0)


def _thinned(records: Sequence[Record], counts: Mapping[str, int]) -> list[Record]:
    """Of each run so many steps and layers, and of each of its layers so many heads."""
    if not all(counts.values()):
        return []
    left = []
    for run in sorted({r.run for r in records}):
        own = [r for r in records if r.run == run]
        steps = spread(sorted({r.step for r in own}), counts["step"])
        for layer in spread(sorted({r.layer for r in own}), counts["layer"]):
            here = [r for r in own if r.layer == layer]
            seen: dict[int, Record] = {}
            for record in here:
                seen.setdefault(record.head, record)
            numbers = list(seen)
            heads = {
                numbers[i]
                for i in heads_by_density([_pairs(r) for r in seen.values()], counts["head"])
            }
            left += [r for r in here if r.step in steps and r.head in heads]
    return left


def _pairs(record: Record) -> int:
    """Number of pairs of tokens that were kept."""
    num_q, num_k = record.kept.shape
    q_sizes = np.bincount(record.q_labels, minlength=num_q)
    k_sizes = np.bincount(record.k_labels, minlength=num_k)
    return int(q_sizes @ record.kept @ k_sizes)


def spread(items: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the items at even distances, first and last included."""
    if count >= len(items):
        return tuple(items)
    places = np.linspace(0, len(items) - 1, count).round().astype(int)
    return tuple(items[i] for i in places)


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
    _, vectors = np.linalg.eigh(joint.T @ joint)  # many times faster than an SVD of all centroids
    axes = vectors.T[::-1][:3].copy()
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
    count = min(NUM_NEAR, len(points))
    order = np.sort(np.argpartition(distance, count - 1, axis=1)[:, :count], axis=1)
    closest = np.take_along_axis(distance, order, axis=1)
    order = np.take_along_axis(order, np.argsort(closest, axis=1, kind="stable"), axis=1)
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
    """Share of the softmax mass, in fp32, that lands on kept keys; mean over the queries."""
    scores = queries.astype(np.float32) @ keys.astype(np.float32).T / np.sqrt(queries.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    seen = kept[query_labels][:, key_labels]
    return float(((weights * seen).sum(axis=1) / weights.sum(axis=1)).mean())
