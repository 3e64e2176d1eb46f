"""Made-up traces with real geometry: a ball over a checkered floor, clustered and encoded."""

import numpy as np
from numpy import ndarray

from svg2.method.selection import METHODS
from svg2.trace.file import STAGES
from svg2.trace.metrics import psnr_db, psnr_per_frame, ssim
from svg2.trace.recording import attention_recall, centroid_colours, nearest_clusters
from svg2.trace.records import (
    VERSION,
    Record,
    RecordingPolicy,
    Trace,
    TraceRun,
    policy_dict,
    selection_at,
)
from svg2.trace.thresholds import gain_thresholds, log_gain
from svg2.trace.video import encode_mp4

HEAD_DIM = 16


def make_synthetic_trace(
    grid: tuple[int, int, int] = (5, 8, 8),
    num_q: int = 8,
    num_k: int = 20,
    steps: int = 6,
    layers: int = 2,
    heads: int = 2,
    seed: int = 0,
    runs: tuple[tuple[str, float], ...] = (("svg2", 0.9), ("svg2", 0.7), ("svg2-comp", 0.9)),
    min_keep_ratio: float = 0.1,
    warmup_steps: int = 1,
) -> Trace:
    """A sound trace without a model: clusters, masses and metrics are computed, times invented.

    Every run records its first and last sparse step, all layers and up to two heads, as the
    default policy does.
    """
    rng = np.random.default_rng(seed)
    num_frames, fps = 2 * grid[0] - 1, 8
    dense = _clip(grid, num_frames, np.random.default_rng(seed))
    sparse_steps = list(range(warmup_steps, steps))
    call = np.array(
        [(s, layer, b) for s in sparse_steps for layer in range(layers) for b in (0, 1)], np.int32
    )
    recorded_steps = sorted({sparse_steps[0], sparse_steps[-1]})
    geometry = {
        (s, layer, h): _clusters(grid, num_q, num_k, s / steps, layer, h, seed)
        for s in recorded_steps
        for layer in range(layers)
        for h in range(min(heads, 2))
    }
    routed = _with_errors(geometry, min_keep_ratio)
    made_runs, records = [], []
    for r, (method, top_p) in enumerate(runs):
        noise = rng.normal(0, (1.05 - top_p) * (8 if method == "svg2-comp" else 25), dense.shape)
        sparse = np.clip(dense + noise, 0, 255).astype(np.uint8)
        densities = []
        by_error = METHODS[method].rule == "error" if method in METHODS else False
        for (step, layer, head), parts in (routed if by_error else geometry).items():
            record = _record(r, step, layer, head, parts, top_p, min_keep_ratio)
            records.append(record)
            densities.append(_density(record))
        density = np.clip(
            rng.normal(np.mean(densities), 0.02, (len(call), heads)), 0.01, 1
        ).astype(np.float32)
        stage_ms = rng.uniform(0.5, 2.0, (len(call), len(STAGES))).astype(np.float32)
        mean_density = float(density.mean())
        result = {
            "method": method,
            "psnr_db": psnr_db(dense, sparse),
            "psnr_per_frame": [
                None if np.isinf(v) else float(v) for v in psnr_per_frame(dense, sparse)
            ],
            "ssim": ssim(dense, sparse),
            "density": mean_density,
            "density_run": (mean_density * len(sparse_steps) + warmup_steps) / steps,
            "compute_density": mean_density + (0.04 if method == "svg2-comp" else 0.0),
            "dense_seconds": 12.0,
            "svg2_seconds": 12.0 * (0.35 + 0.65 * mean_density),
            "speedup": 1 / (0.35 + 0.65 * mean_density),
            "attention_speedup": 1 / (0.15 + mean_density),
            "attention_share": 0.7,
            "stage_seconds": dict(zip(STAGES, (stage_ms.sum(axis=0) / 1e3).tolist(), strict=True)),
            "total_seconds": {
                "encode": 0.1,
                "denoise": 12.0 * (0.35 + 0.65 * mean_density),
                "decode": 0.3,
            },
            "backend": {"dense": "native", "attention": "reference"},
            "device": "cpu",
            "num_frames": num_frames,
            "num_inference_steps": steps,
            "tokens": int(np.prod(grid)),
        }
        made_runs.append(
            TraceRun(
                method=method,
                config={
                    "top_p": top_p,
                    "num_q_clusters": num_q,
                    "num_k_clusters": num_k,
                    "min_keep_ratio": min_keep_ratio,
                    "compensate": method == "svg2-comp",
                },
                result=result,
                mp4=encode_mp4(sparse, fps),
                psnr_frame=psnr_per_frame(dense, sparse),
                call=call,
                density=density,
                kept_mass=np.clip(density + 0.5, 0, 1).astype(np.float32),
                stage_ms=stage_ms,
            )
        )
    return Trace(
        version=VERSION,
        request={
            "prompt": "a red ball rolling to the right over a checkered floor",
            "negative_prompt": "",
            "model": "synthetic",
            "seed": seed,
            "height": dense.shape[1],
            "width": dense.shape[2],
            "num_frames": num_frames,
            "num_inference_steps": steps,
            "guidance_scale": 4.0,
            "dtype": "fp32",
            "device": "cpu",
            "fps": fps,
        },
        grid=grid,
        n_tokens=int(np.prod(grid)),
        n_text=0,
        policy=policy_dict(RecordingPolicy()),
        provenance={
            "device": "cpu",
            "hardware": "synthetic",
            "versions": {"svg2": "0"},
            "commit": None,
            "date": "2025-01-01T00:00:00+00:00",
            "impl": "reference",
        },
        dense_result={
            "dense_seconds": 12.0,
            "total_seconds": {"encode": 0.1, "denoise": 12.0, "decode": 0.3},
        },
        dense_mp4=encode_mp4(dense, fps),
        runs=tuple(made_runs),
        records=tuple(records),
    )


def _clip(grid: tuple[int, int, int], num_frames: int, rng: np.random.Generator) -> ndarray:
    """uint8 [F, 8Y, 8X, 3]: a shaded red ball that crosses a checkered floor."""
    height, width = 8 * grid[1], 8 * grid[2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    floor = (
        90
        + 80 * (((y // 8).astype(int) + (x // 8).astype(int)) % 2)
        + rng.normal(0, 3, (height, width))
    )
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    radius = height / 5
    for f in range(num_frames):
        centre = radius + (width - 2 * radius) * f / max(1, num_frames - 1)
        far = np.hypot(x - centre, y - 0.6 * height) / radius
        ball = (255 * np.clip(1.1 - 0.7 * far, 0.2, 1))[..., None] * np.array([1, 0.2, 0.15])
        clip[f] = np.where(
            (far < 1)[..., None], ball, np.repeat(floor[..., None], 3, axis=-1)
        ).clip(0, 255)
    return clip


def _clusters(
    grid: tuple[int, int, int],
    num_q: int,
    num_k: int,
    progress: float,
    layer: int,
    head: int,
    seed: int,
) -> dict[str, ndarray]:
    """Clustered queries and keys of a ball on a floor; even heads see content, odd position."""
    rng = np.random.default_rng([seed, layer, head, int(progress * 1000)])
    t, y, x = (
        g.ravel() for g in np.meshgrid(*(np.linspace(0, 1, n) for n in grid), indexing="ij")
    )
    ball = np.exp(-((x - 0.2 - 0.6 * t) ** 2 + (y - 0.6) ** 2) / 0.03)
    checker = np.sin(grid[2] * np.pi * x) * np.sin(grid[1] * np.pi * y)
    content, place = (3.0, 1.0) if head % 2 == 0 else (1.0, 3.0)
    features = np.stack(
        [content * ball, content * checker, place * x, place * y, 0.5 * place * t], axis=1
    )
    noise = 1 - 0.8 * progress  # early steps are noisy, so their clusters are ragged
    mix_q, mix_k = rng.normal(size=(2, features.shape[1], HEAD_DIM))
    mix_k = 0.8 * mix_q + 0.2 * mix_k
    q = 1.5 * features @ mix_q + noise * rng.normal(size=(len(t), HEAD_DIM))
    k = 1.5 * features @ mix_k + noise * rng.normal(size=(len(t), HEAD_DIM)) + 1.0
    q, k = q.astype(np.float32), k.astype(np.float32)
    q_labels, q_centroids = _kmeans(q, num_q, rng)
    k_labels, k_centroids = _kmeans(k, num_k, rng)
    sizes = np.bincount(k_labels, minlength=num_k)
    scores = q_centroids @ k_centroids.T / np.sqrt(HEAD_DIM)
    mass = sizes * np.exp(scores - scores.max(axis=1, keepdims=True))
    return {
        "q": q,
        "k": k,
        "q_labels": q_labels.astype(np.uint16),
        "k_labels": k_labels.astype(np.uint16),
        "q_centroids": q_centroids,
        "k_centroids": k_centroids,
        "k_sizes": sizes,
        "P": (mass / mass.sum(axis=1, keepdims=True)).astype(np.float16),
        "rows": rng.choice(len(q), min(64, len(q)), replace=False),
    }


def _with_errors(
    geometry: dict[tuple[int, int, int], dict[str, ndarray]], min_keep_ratio: float
) -> dict[tuple[int, int, int], dict[str, ndarray]]:
    """The same clusters as the query centroids see them: mass, and error of leaving a block out.

    Values are the keys. One budget is for all heads of a layer.
    """
    seen = {place: {**parts, **_seen(parts)} for place, parts in geometry.items()}
    for step, layer in {place[:2] for place in seen}:
        heads = [parts for place, parts in seen.items() if place[:2] == (step, layer)]
        q_sizes = [np.bincount(p["q_labels"], minlength=len(p["P"])) for p in heads]
        stacked = [np.stack([p[name] for p in heads]) for name in ("gain", "P", "k_sizes")]
        gain, mass, k_sizes = stacked
        thresholds = gain_thresholds(gain, mass, np.stack(q_sizes), k_sizes, min_keep_ratio)
        for parts in heads:
            parts["thresholds"] = thresholds
    return seen


def _seen(parts: dict[str, ndarray]) -> dict[str, ndarray]:
    scores = parts["q_centroids"] @ parts["k"].T / np.sqrt(HEAD_DIM)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    member = np.eye(len(parts["k_sizes"]))[parts["k_labels"]]
    mass = weights @ member
    values = np.einsum("qn,nk,nd->qkd", weights, member, parts["k"])
    missed = values - mass[..., None] * parts["k_centroids"]
    error = (missed**2).sum(axis=-1)
    return {"P": mass.astype(np.float16), "gain": log_gain(error, parts["k_sizes"])}


def _kmeans(points: ndarray, count: int, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
    centroids = points[rng.choice(len(points), count, replace=False)]
    for _ in range(6):
        labels = (points @ centroids.T - (centroids**2).sum(axis=1) / 2).argmax(axis=1)
        sizes = np.bincount(labels, minlength=count)
        sums = np.zeros_like(centroids)
        np.add.at(sums, labels, points)
        centroids = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
    return labels, centroids


def _record(
    run: int,
    step: int,
    layer: int,
    head: int,
    parts: dict[str, ndarray],
    top_p: float,
    min_keep_ratio: float,
) -> Record:
    q_rgb, k_rgb = centroid_colours(parts["q_centroids"], parts["k_centroids"])
    blank = np.zeros(parts["P"].shape, bool)
    names = ("q_labels", "k_labels", "P", "gain", "thresholds")
    fields = {name: parts[name] for name in names if name in parts}
    near = nearest_clusters(parts["k_centroids"], parts["k_sizes"])
    draft = Record(
        run,
        step,
        layer,
        0,
        head,
        **fields,
        kept=blank,
        q_rgb=q_rgb,
        k_rgb=k_rgb,
        k_near=near,
        recall=0,
    )
    kept = selection_at(draft, top_p, min_keep_ratio)
    rows = parts["rows"]
    recall = attention_recall(
        parts["q"][rows], parts["k"], parts["q_labels"][rows], parts["k_labels"], kept
    )
    return Record(
        run,
        step,
        layer,
        0,
        head,
        **fields,
        kept=kept,
        q_rgb=q_rgb,
        k_rgb=k_rgb,
        k_near=near,
        recall=recall,
    )


def _density(record: Record) -> float:
    n = len(record.q_labels)
    return float(record.q_sizes @ record.kept @ record.k_sizes) / n**2
