"""The fields of result.json."""

from __future__ import annotations

import math
from typing import Any

from svg2.method.stages import DENSE_STAGE, STAGES
from svg2.runs.dense_sparse import DenseRun, SparseRun
from svg2.trace.metrics import psnr_db, psnr_per_frame, ssim


def result_record(
    dense: DenseRun, sparse: SparseRun, dense_reused: bool = False
) -> dict[str, Any]:
    """The measurements of a comparison, as JSON values by name.

    - `dense_seconds`, `svg2_seconds`: the denoising loops alone. In models with joint text the
      dense loop leaves out the padding of the prompt; `dense_stock_seconds` is the loop of the
      unmodified pipeline, which masks it.
    - `attention_speedup`: self-attention time of the whole loops, dense over sparse. The sparse
      time includes clustering, permutation, selection and the dense warm-up.
    - `attention_share`: share of the dense loop that its self-attention kernel takes.
    - `density`, `compute_density`, `overhead_density`: over the sparse calls; null without any.

    Args:
        dense_reused: whether the dense run was made for an earlier comparison.
    """
    run, stats = sparse.run, sparse.stats
    asked = run.request.to_dict()
    dense_seconds, svg2_seconds = dense.seconds["denoise"], sparse.seconds["denoise"]
    frames_db = psnr_per_frame(dense.frames, sparse.frames).tolist()
    compute_density = stats.compute_density
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
        "psnr_db": psnr_db(dense.frames, sparse.frames),
        "psnr_per_frame": [None if math.isinf(value) else value for value in frames_db],
        "ssim": ssim(dense.frames, sparse.frames),
        "dense_seconds": dense_seconds,
        "dense_stock_seconds": dense.stock_seconds,
        "dense_stock_psnr_db": dense.stock_psnr_db,
        "dense_reused": dense_reused,
        "svg2_seconds": svg2_seconds,
        "speedup": dense_seconds / svg2_seconds,
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


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator
