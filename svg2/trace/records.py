"""What a trace holds: frozen records of a dense run, of sparse runs, and of single calls."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int32, UInt8, UInt16
from numpy import ndarray

from svg2.config import ceil_fraction

VERSION = 1
NUM_NEAR = 4
TICKS = 200
"""Budgets of top-p that a page offers: 1/200 to 200/200."""
NO_GAIN = -60_000.0
"""Stands for the logarithm of 0 in a trace."""
MAX_BYTES = 96 << 20
"""Most bytes of a trace file, unpacked."""
MAX_PAIRS = 16 << 20
"""Most pairs of a query and a key cluster, in all records of a trace together."""
MAX_TOKENS = 1 << 19
"""Most video tokens of a trace."""


@dataclass(frozen=True)
class RecordingPolicy:
    """Which sparse calls are recorded in full; statistics are kept of every call.

    Attributes:
        steps: step numbers; None takes 4 spread over the sparse steps, first and last included.
        layers: layer numbers; None takes all.
        heads: head numbers; None takes three of each layer: in its first recorded call the one
            that keeps least, the one that keeps most, and one between.
        branches: guidance branches, 0 conditional, 1 unconditional, 2 both in one batch.
        max_bytes: bound on the size of the trace. Records, counted before compression, are thinned
            to take at most three quarters of it, which leaves the rest to clips and statistics.
    """

    steps: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    branches: tuple[int, ...] = (0, 2)
    max_bytes: int = 20 << 20


@dataclass(frozen=True, eq=False)
class Record:
    """One head of one sparse call: its clusters, their masses, what was kept.

    A trace has at most one record per position. Of a batch it is the last sample, which is the
    conditional one where both guidance branches are in one batch.

    Attributes:
        run: index into `Trace.runs`.
        q_labels, k_labels: cluster of each token, tokens in (frame, row, column) order.
        P: attention mass of each key cluster per query cluster, as estimated from centroids; rows
            sum to 1, up to the rounding to float16.
        kept: the selection that the method made.
        q_rgb, k_rgb: colours of the centroids, by joint principal components, so that near
            clusters look near.
        k_near: per key cluster the 4 nearest others that hold tokens, nearest first (its own id
            where there are fewer).
        gain: logarithm of the predicted error of skipping a block over the keys that it costs;
            None where the method predicts none.
        thresholds: per budget i / 200 of top-p what the gain of a block must exceed to be kept,
            which depends on all heads of the layer; None without `gain`.
        recall: share of the true softmax mass over the video tokens that fell on kept keys, mean
            over 64 random queries.
    """

    run: int
    step: int
    layer: int
    branch: int
    head: int
    q_labels: UInt16[ndarray, "N"]
    k_labels: UInt16[ndarray, "N"]
    P: Float16[ndarray, "Q K"]
    kept: Bool[ndarray, "Q K"]
    q_rgb: UInt8[ndarray, "Q 3"]
    k_rgb: UInt8[ndarray, "K 3"]
    k_near: UInt16[ndarray, "K 4"]
    recall: float
    gain: Float16[ndarray, "Q K"] | None = None
    thresholds: Float32[ndarray, " ticks"] | None = None

    @property
    def position(self) -> tuple[int, int, int, int, int]:
        """Run, step, layer, branch and head."""
        return self.run, self.step, self.layer, self.branch, self.head

    @property
    def q_sizes(self) -> Int32[ndarray, "Q"]:
        """Tokens per query cluster."""
        return np.bincount(self.q_labels, minlength=self.P.shape[0]).astype(np.int32)

    @property
    def k_sizes(self) -> Int32[ndarray, "K"]:
        """Tokens per key cluster."""
        return np.bincount(self.k_labels, minlength=self.P.shape[1]).astype(np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays as stored, before compression."""
        arrays = (self.q_labels, self.k_labels, self.P, self.q_rgb, self.k_rgb, self.k_near)
        extra = 0 if self.gain is None else self.gain.nbytes + 4 * (TICKS + 1)
        return sum(a.nbytes for a in arrays) + -(-self.kept.size // 8) + extra


@dataclass(frozen=True, eq=False)
class TraceRun:
    """One sparse run: its clip, its result, and statistics of every sparse call.

    Attributes:
        config: the settings of the method, as `SVG2Config.to_dict` gives them.
        result: the fields of result.json.
        psnr_frame: dB per frame against dense; infinite where identical.
        call: step, layer and branch of each sparse call, in order.
        density, kept_mass: per call and head, means over the batch.
        stage_ms: milliseconds per call in each of `STAGES`.
    """

    method: str
    config: dict[str, Any]
    result: dict[str, Any]
    mp4: bytes
    psnr_frame: Float32[ndarray, "F"]
    call: Int32[ndarray, "calls 3"]
    density: Float32[ndarray, "calls H"]
    kept_mass: Float32[ndarray, "calls H"]
    stage_ms: Float32[ndarray, "calls 5"]


@dataclass(frozen=True, eq=False)
class Trace:
    """One dense run and the sparse runs of the same request.

    Attributes:
        request: prompt, negative_prompt, model, seed, sizes, steps, guidance, dtype, device, and
            fps of the clips.
        grid: latent frames, rows and columns of tokens (T, Y, X).
        n_tokens: video tokens, T·Y·X; n_text: text tokens in the same attention (0 for Wan).
        policy: the recording policy, with `note` saying what was thinned away, if anything was.
        provenance: hardware, device, versions, commit, date, impl.
        dense_result: seconds and the like of the dense run.
    """

    version: int
    request: dict[str, Any]
    grid: tuple[int, int, int]
    n_tokens: int
    n_text: int
    policy: dict[str, Any]
    provenance: dict[str, Any]
    dense_result: dict[str, Any]
    dense_mp4: bytes
    runs: tuple[TraceRun, ...] = field(default=())
    records: tuple[Record, ...] = field(default=())

    @property
    def stored_bytes(self) -> int:
        """Bytes of clips and arrays as stored, before compression."""
        arrays = sum(
            array.nbytes
            for run in self.runs
            for array in (run.psnr_frame, run.call, run.density, run.kept_mass, run.stage_ms)
        )
        clips = len(self.dense_mp4) + sum(len(run.mp4) for run in self.runs)
        return clips + arrays + sum(record.nbytes for record in self.records)

    @property
    def file_bytes(self) -> int:
        """Bytes of its file, unpacked: a little more than they are."""
        header = [self.request, self.policy, self.provenance, self.dense_result]
        header += [part for run in self.runs for part in (run.method, run.config, run.result)]
        arrays = 2 + 6 * len(self.runs) + 12 * len(self.records)
        return self.stored_bytes + _bytes_of_json(header) + 128 * arrays

    @property
    def held_bytes(self) -> int:
        """Bytes that the trace takes in memory, roughly: kept pairs are a byte each."""
        pairs = sum(record.kept.size for record in self.records)
        return self.file_bytes + pairs + 4096 * len(self.records)

    @property
    def is_too_large(self) -> bool:
        """Whether no file could be read that holds all of it."""
        pairs = sum(record.P.size for record in self.records)
        return pairs > MAX_PAIRS or self.file_bytes > MAX_BYTES


def selection_at(record: Record, top_p: float, min_keep_ratio: float) -> Bool[ndarray, "Q K"]:
    """What the method would keep of the recorded masses at another budget, in float64.

    Where errors are recorded: the blocks whose gain is above the threshold of the nearest budget
    of `TICKS`, and the heaviest of each row. Else top-p: rows are normalised by their own sum,
    since float16 moved it off 1; heaviest first, ties by index, kept while the sum of those before
    is below `top_p`; at least ceil(min_keep_ratio·K). Never an empty cluster; 1 keeps all.

    Raises:
        ValueError: `top_p` outside (0, 1] or `min_keep_ratio` outside [0, 1].
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}.")
    if not 0 <= min_keep_ratio <= 1:
        raise ValueError(f"min_keep_ratio must lie in [0, 1], got {min_keep_ratio}.")
    occupied = record.k_sizes > 0
    num_q, num_k = record.P.shape
    if top_p == 1:
        return np.repeat(occupied[None], num_q, axis=0)
    mass = np.where(occupied, record.P.astype(np.float64), 0)
    if record.gain is not None and record.thresholds is not None:
        kept = record.gain > record.thresholds[max(1, round(top_p * TICKS))]
        heaviest = np.where(occupied, mass, -1).argmax(axis=1)
        kept[np.arange(num_q), heaviest] = True
        return kept & occupied
    mass /= np.maximum(mass.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    order = np.argsort(np.where(occupied, -mass, np.inf), axis=1, kind="stable")
    before = mass_before(np.take_along_axis(mass, order, axis=1))
    at_least = max(1, ceil_fraction(min_keep_ratio, num_k))
    kept_ranked = (before < top_p) | (np.arange(num_k) < at_least)
    kept = np.empty_like(kept_ranked)
    np.put_along_axis(kept, order, kept_ranked, axis=1)
    return kept & occupied


def mass_before(ranked: Float64[ndarray, "*rows K"]) -> Float64[ndarray, "*rows K"]:
    """The sum of the masses in front of each."""
    return np.cumsum(ranked, axis=-1) - ranked


def computed_share(result: Mapping[str, Any]) -> float | None:
    """Share of all query-key pairs of a run that were computed, from the fields of its result.

    Dense steps, stand-ins and the routing pass are included: what "computed" means wherever a
    whole run is spoken of. Without `compute_density` it is `density_run`, and without that
    `density`; None where none is known.
    """
    density = result.get("density")
    over_run = result.get("density_run", density)
    computed = result.get("compute_density")
    if density is None or over_run is None or computed is None or density >= 1:
        return over_run
    sparse_calls = (1 - over_run) / (1 - density)
    return over_run + sparse_calls * (computed - density)


def policy_dict(policy: RecordingPolicy, note: str = "") -> dict[str, Any]:
    """The policy as it stands in a trace's header."""
    return {**asdict(policy), "note": note}


def _bytes_of_json(value: Any) -> int:
    size, level = 0, [value]
    while level:
        size += sum(map(sys.getsizeof, level))
        dicts = [value for value in level if isinstance(value, dict)]
        lists = [value for value in level if isinstance(value, list | tuple)]
        level = [x for d in dicts for x in (*d, *d.values())] + [x for part in lists for x in part]
    return size
