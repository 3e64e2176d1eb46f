"""The fields of result.json."""

from __future__ import annotations

import enum
import math
from typing import Any

from svg2.method.stages import DENSE_STAGE, STAGES
from svg2.runs.dense_sparse import DenseRun, SparseRun
from svg2.runs.outlook import warnings_of
from svg2.runs.timing import Steps, Timing, timing
from svg2.trace.metrics import psnr_db, psnr_per_frame, ssim


class Order(enum.Enum):
    """How the runs of a comparison followed each other."""

    IN_TURNS = "in turns"
    DENSE_FIRST = "dense first"
    DENSE_EARLIER = "dense earlier"


def result_record(dense: DenseRun, sparse: SparseRun, order: Order) -> dict[str, Any]:
    """The measurements of a comparison, as JSON values by name.

    - `dense_seconds`, `svg2_seconds`: the denoising loops alone. In models with joint text the
      dense loop leaves out the padding of the prompt; `dense_stock_seconds` is the loop of the
      unmodified pipeline, which masks it.
    - `speedup`, `speedup_quartiles`, `shared_ratio`, `is_scaled`, `is_disturbed`: as
      `svg2.runs.timing.Timing` has them, where the steps of both runs were timed; else `speedup`
      is the ratio of the two loops, and the others are null.
    - `order`: whether the runs took `in turns`, or the dense one came `dense first` or, from an
      earlier comparison, `dense earlier`.
    - `attention_speedup`: self-attention time of the whole loops, dense over sparse. The sparse
      time includes clustering, permutation, selection and the dense warm-up.
    - `attention_share`: share of the dense loop that its self-attention kernel takes.
    - `warnings`: what to distrust of this run, each a sentence.
    - `density`, `compute_density`, `overhead_density`: over the sparse calls; null without any.
    """
    run, stats = sparse.run, sparse.stats
    asked = run.request.to_dict()
    dense_seconds, svg2_seconds = dense.seconds["denoise"], sparse.seconds["denoise"]
    frames_db = psnr_per_frame(dense.frames, sparse.frames).tolist()
    compute_density = stats.compute_density
    psnr = psnr_db(dense.frames, sparse.frames)
    told = _timing(dense, sparse, order)
    return {
        **{
            name: asked[name]
            for name in (
                *("model", "prompt", "negative_prompt", "seed", "height", "width"),
                *("num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2"),
                *("true_cfg_scale", "image", "video"),
            )
        },
        "dtype": sparse.dtype,
        "tokens": run.n_tokens,
        "text_tokens": stats.n_text,
        "method": run.method.name,
        "config": run.config.to_dict(),
        "density": stats.density,
        "density_run": stats.density_run,
        "compute_density": compute_density,
        "overhead_density": stats.overhead_density,
        "flop_ratio": None if compute_density is None else 1 / compute_density,
        "kept_mass": stats.kept_mass,
        "psnr_db": psnr,
        "psnr_per_frame": [None if math.isinf(value) else value for value in frames_db],
        "ssim": ssim(dense.frames, sparse.frames),
        "warnings": warnings_of(psnr, sparse.records),
        "dense_seconds": dense_seconds,
        "dense_stock_seconds": dense.stock_seconds,
        "dense_stock_psnr_db": dense.stock_psnr_db,
        "order": order.value,
        "dense_reused": order is Order.DENSE_EARLIER,
        "svg2_seconds": svg2_seconds,
        "speedup": dense_seconds / svg2_seconds if told is None else told.speedup,
        "speedup_quartiles": told and told.quartiles and list(told.quartiles),
        "shared_ratio": told and told.shared_ratio,
        "is_scaled": told and told.is_scaled,
        "is_disturbed": told and told.is_disturbed,
        "step_seconds": {"dense": list(dense.step_seconds), "svg2": list(sparse.step_seconds)},
        "attention_speedup": _ratio(dense.attention_seconds, stats.attention_seconds),
        "attention_share": _ratio(dense.attention_seconds, dense_seconds),
        "dense_attention_seconds": dense.attention_seconds,
        "svg2_attention_seconds": stats.attention_seconds,
        "stage_seconds": {name: stats.stage_seconds[name] for name in (*STAGES, DENSE_STAGE)},
        "recording_seconds": sparse.recording_seconds,
        "total_seconds": sparse.seconds,
        "dense_total_seconds": dense.seconds,
        "peak_memory_bytes": sparse.peak_memory_bytes,
        "dense_peak_memory_bytes": dense.peak_memory_bytes,
        "centroid_bytes": stats.cache_bytes,
        "backend": {"dense": sparse.backend, "attention": stats.impl},
        **sparse.provenance,
    }


def _timing(dense: DenseRun, sparse: SparseRun, order: Order) -> Timing | None:
    """The two runs step by step; None where the steps of either were not timed."""
    count, stats = len(dense.step_seconds), sparse.stats
    # A step of some schedulers is more than one forward, which is what statistics count.
    if not count or len(sparse.step_seconds) != count or stats.num_steps != count:
        return None
    sparse_steps = set(stats.call[:, 0].tolist())
    dense_times, sparse_times = (
        Steps(
            seconds,
            [*attention, *[None] * count][:count],
            [step not in ran_sparse for step in range(count)],
        )
        for seconds, attention, ran_sparse in (
            (dense.step_seconds, dense.step_attention_seconds, ()),
            (sparse.step_seconds, stats.step_attention_seconds, sparse_steps),
        )
    )
    return timing(dense_times, sparse_times, order is Order.IN_TURNS)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator
