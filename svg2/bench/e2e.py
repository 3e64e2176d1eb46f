"""The end-to-end suite: whole transformers in their published sizes, with random weights.

Random weights take the same time as trained ones, but their attention has no structure. So a
setting names a density, and the suite searches the top-p that gives it. The time of a whole run
is the sum of measured forwards: dense, sparse from a cold start, and sparse from warm centroids.
"""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

from svg2.bench.harness import Progress, reason, save_record, suite_device
from svg2.bench.turns import time_in_turns
from svg2.config import SVG2Config, ceil_fraction
from svg2.hooks.enable import Handle, enable, measure_dense
from svg2.hooks.stats import RunStats
from svg2.method.selection import COMPENSATED_METHOD, PAPER_METHOD
from svg2.method.stages import STAGES
from svg2.runs.provenance import peak_memory, provenance

# diffusers' names; sparse runs are compared with the fastest one.
_BACKENDS = ("native", "_native_flash", "_native_cudnn")
_CALIBRATION_BLOCKS = 2
_BISECTIONS = 7


@dataclass(frozen=True)
class Setting:
    """Settings of the method; `density` is over the sparse calls and takes the place of top-p."""

    density: float
    warmup_fraction: float
    num_q_clusters: int
    num_k_clusters: int
    method: str = PAPER_METHOD


@dataclass(frozen=True)
class Model:
    """A transformer in its published configuration and the latent video it denoises.

    Attributes:
        latent: channels, frames, rows, columns.
        num_steps: denoising steps of a run.
        config: arguments of the transformer's class that differ from its defaults, which are
            those of the largest model.
        text_tokens: prompt tokens without padding; HunyuanVideo has them in its self-attention.
        branches: forwards per step: 2 with classifier-free guidance, 1 if guidance is distilled.
    """

    name: str
    latent: tuple[int, int, int, int]
    num_steps: int
    settings: tuple[Setting, ...]
    config: dict[str, Any] = field(default_factory=dict)
    transformer: type = WanTransformer3DModel
    text_tokens: int = 512
    branches: int = 2

    @property
    def tokens(self) -> int:
        """Number of video tokens; a patch is 1x2x2."""
        return self.latent[1] * (self.latent[2] // 2) * (self.latent[3] // 2)


_PAPER = Setting(0.295, 0.3, 300, 1000)
_FURTHER = Setting(0.2, 0.1, 300, 1000, method=COMPENSATED_METHOD)
MODELS = (
    Model("Wan 2.1 14B, 720p, 81 frames", (16, 21, 90, 160), 50, (_PAPER, _FURTHER)),
    Model(
        "Wan 2.1 1.3B, 480p, 81 frames",
        (16, 21, 60, 104),
        50,
        (Setting(0.295, 0.3, 200, 1000), Setting(0.2, 0.1, 200, 1000, method=COMPENSATED_METHOD)),
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    Model(
        "HunyuanVideo 13B, 720p, 129 frames",
        (16, 33, 90, 160),
        50,
        (Setting(0.255, 0.1, 400, 1000), Setting(0.2, 0.1, 400, 1000, method=COMPENSATED_METHOD)),
        transformer=HunyuanVideoTransformer3DModel,
        config={"guidance_embeds": True},
        text_tokens=256,
        branches=1,
    ),
)
TOY_MODELS = (
    Model(
        "toy",
        (16, 3, 16, 16),
        4,
        (Setting(0.4, 0.25, 6, 12), Setting(0.3, 0.25, 6, 12, method=COMPENSATED_METHOD)),
        {
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "ffn_dim": 64,
            "num_layers": 3,
            "text_dim": 32,
        },
        text_tokens=8,
    ),
    Model(
        "toy, joint",
        (4, 3, 16, 16),
        4,
        (Setting(0.4, 0.25, 6, 12),),
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "num_layers": 2,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (8, 12, 12),
            "guidance_embeds": True,
        },
        transformer=HunyuanVideoTransformer3DModel,
        text_tokens=8,
        branches=1,
    ),
)


def run_e2e_suite(
    out_path: Path, on_progress: Progress, *, toy: bool = False, rounds: int = 3
) -> dict[str, Any]:
    """Measure all models and write the record to `out_path` after every row.

    The fields of a row:

    - `stock_forward_ms`: a forward of the unchanged model.
    - `dense_forward_ms`: a dense forward without the padding of the prompt, on the fastest
      backend. This one is compared with sparse forwards.
    - `speedup`: time of the whole dense run over that of the whole sparse run.
    - `bound`: `speedup_limit` if sparse attention took `density` of the time of dense attention
      and nothing else.
    - `predicted`: `speedup_limit` with the measured time of sparse attention and its overheads.
    - `unexplained`: share of the sparse run's time that `predicted` leaves out.

    Args:
        toy: run the harness at toy sizes on any device; every row then has `toy: true`.
        rounds: number of timed forwards per median.

    Raises:
        SuiteUnavailable: there is no GPU, and no toy was asked for.
        OSError: `out_path` can't be written.
    """
    device = suite_device("end-to-end", toy)
    record: dict[str, Any] = {
        "suite": "e2e",
        "toy": toy,
        "weights": "random",
        **provenance(device),
        "rounds": rounds,
        "runs": [],
        "left_out": [],
    }

    for model in TOY_MODELS if toy else MODELS:
        on_progress(f"{model.name}: random weights, {model.tokens:,} tokens")
        try:
            bench = _Bench(model, device, rounds)
            for setting in model.settings:
                row = {"toy": toy, **bench.run(setting)}
                record["runs"].append(row)
                save_record(out_path, record)
                on_progress(
                    f"  density {row['density']:.3f}, warm-up {row['warmup_fraction']}: "
                    f"{row['speedup']:.2f}x of at most {row['bound']:.2f}x"
                )
        except (RuntimeError, TypeError, ValueError) as error:
            record["left_out"].append({"model": model.name, "why": reason(error)})
            on_progress(f"  left out: {reason(error)}")
    save_record(out_path, record)
    return record


def speedup_limit(attention_share: float, warmup_fraction: float, relative_cost: float) -> float:
    """Speedup of a run whose self-attention alone becomes cheaper: Amdahl's law.

    Args:
        attention_share: share of self-attention in the time of a dense forward.
        warmup_fraction: share of the steps that stay dense.
        relative_cost: time of sparse over dense self-attention in the other steps.
    """
    return 1 / (1 - attention_share * (1 - warmup_fraction) * (1 - relative_cost))


class _Bench:
    """A transformer on its device, and the time of its dense forward on the fastest backend."""

    def __init__(self, model: Model, device: torch.device, rounds: int) -> None:
        self.model, self.device, self.rounds = model, device, rounds
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device, _default_dtype(dtype):
            torch.manual_seed(0)
            self.transformer = model.transformer(**model.config).eval().requires_grad_(False)
            self.inputs = _inputs(self.transformer, model)
        self.pipe = SimpleNamespace(
            transformer=self.transformer,
            transformer_2=None,
            scheduler=SimpleNamespace(step_index=None, timesteps=self.inputs["timestep"]),
            num_timesteps=model.num_steps,
            maybe_free_model_hooks=lambda: None,
        )
        self.backend_errors: dict[str, str] = {}
        self.backend_ms = self._backends()
        if not self.backend_ms:
            raise RuntimeError(f"no attention backend works here: {self.backend_errors}")
        self.backend = min(self.backend_ms, key=self.backend_ms.__getitem__)
        self.transformer.set_attention_backend(self.backend)
        # Models with a mask over the prompt's padding apply it here.
        self.stock_ms, _ = self._timed()
        with measure_dense(self.pipe) as handle:
            self.dense_ms, self.dense_peak = self._timed()
            stats = handle.stats
        attention_seconds = stats.attention_seconds
        if attention_seconds is None:
            raise RuntimeError(f"the attention of backend {self.backend} can't be timed")
        self.attention_share = attention_seconds * 1e3 / _forwards(stats) / self.dense_ms

    def run(self, setting: Setting) -> dict[str, Any]:
        """Measure one setting; returns its row."""
        config = SVG2Config(
            num_q_clusters=setting.num_q_clusters,
            num_k_clusters=setting.num_k_clusters,
            warmup_fraction=0.0,
            min_keep_ratio=0.0,
            kmeans_iters_init=50 if self.device.type == "cuda" else 3,
            method=setting.method,
        )
        config = config.replace(top_p=self._calibrate(config, setting.density))
        with self._enabled(config):
            self._forward()  # compiles kernels
        with self._enabled(config) as handle:
            (cold_ms,) = time_in_turns({"cold": self._forward}, 1, self.device, warm_ups=0)["cold"]
            cold = handle.stats
            warm_ms, peak_bytes = self._timed()
            stats = handle.stats
        # The first calls are those of the cold forward.
        warm_calls = stats.call_stage_ms[len(cold.call) :].astype(float)
        sums_ms = warm_calls.sum(axis=0) / (_forwards(stats) - 1)
        stage_ms = dict(zip(STAGES, sums_ms.tolist(), strict=True))
        model = self.model
        warmup_steps = ceil_fraction(setting.warmup_fraction, model.num_steps)
        sparse_steps = model.num_steps - warmup_steps
        dense_run = model.num_steps * self.dense_ms
        sparse_run = warmup_steps * self.dense_ms + cold_ms + (sparse_steps - 1) * warm_ms
        density, warmup = stats.density, warmup_steps / model.num_steps
        assert density is not None, "nothing ran sparse"
        a = self.attention_share
        dense_attention_ms = a * self.dense_ms
        ours_ms = sum(ms for stage, ms in stage_ms.items() if stage != "other")
        predicted = speedup_limit(a, warmup, ours_ms / dense_attention_ms)
        return {
            "model": model.name,
            "weights": "random",
            "tokens": model.tokens,
            "num_steps": model.num_steps,
            "method": setting.method,
            "config": config.to_dict(),
            "density_asked": setting.density,
            "density": density,
            "compute_density": stats.compute_density,
            "warmup_fraction": warmup,
            "impl": stats.impl,
            "backend": self.backend,
            "backend_forward_ms": self.backend_ms,
            "backend_errors": self.backend_errors,
            "stock_forward_ms": self.stock_ms,
            "dense_forward_ms": self.dense_ms,
            "cold_forward_ms": cold_ms,
            "warm_forward_ms": warm_ms,
            "stage_ms_per_forward": stage_ms,
            "attention_share": a,
            "dense_seconds": model.branches * dense_run / 1e3,
            "svg2_seconds": model.branches * sparse_run / 1e3,
            "speedup": dense_run / sparse_run,
            "bound": speedup_limit(a, warmup, density),
            "attention_share_of_dense_tflops": density
            * dense_attention_ms
            / stage_ms["attention"],
            "overhead_share_of_dense_attention": (ours_ms - stage_ms["attention"])
            / dense_attention_ms,
            "predicted": predicted,
            "unexplained": 1 - dense_run / sparse_run / predicted,
            "dense_peak_memory_bytes": self.dense_peak,
            "peak_memory_bytes": peak_bytes,
        }

    def _backends(self) -> dict[str, float]:
        """Milliseconds of a dense forward per backend that works here."""
        found: dict[str, float] = {}
        for name in _BACKENDS if self.device.type == "cuda" else _BACKENDS[:1]:
            try:
                self.transformer.set_attention_backend(name)
                with measure_dense(self.pipe):
                    times = time_in_turns({name: self._forward}, 1, self.device, warm_ups=1)
            except (RuntimeError, ValueError) as error:
                self.backend_errors[name] = reason(error)
                continue
            found[name] = times[name][0]
        return found

    def _timed(self) -> tuple[float, int | None]:
        with peak_memory(self.device) as peak:
            times = time_in_turns({"forward": self._forward}, self.rounds, self.device, warm_ups=1)
        return statistics.median(times["forward"]), peak.nbytes

    def _calibrate(self, config: SVG2Config, density: float) -> float:
        """The top-p whose density is nearest to `density`, searched on the first blocks alone."""
        low, high, best = 0.0, 1.0, (math.inf, 1.0)
        lists = {
            name: module
            for name, module in self.transformer.named_children()
            if name in ("blocks", "transformer_blocks", "single_transformer_blocks")
        }
        for name, blocks in lists.items():
            setattr(self.transformer, name, nn.ModuleList(list(blocks)[:_CALIBRATION_BLOCKS]))
        try:
            for _ in range(_BISECTIONS):
                top_p = (low + high) / 2
                with self._enabled(config.replace(top_p=top_p)) as handle:
                    for _ in range(2):
                        self._forward()
                    found = handle.stats.density
                assert found is not None
                best = min(best, (abs(found - density), top_p))
                low, high = (low, top_p) if found > density else (top_p, high)
        finally:
            for name, blocks in lists.items():
                setattr(self.transformer, name, blocks)
        return best[1]

    def _enabled(self, config: SVG2Config) -> Handle:
        self.pipe.scheduler.step_index = None
        return enable(self.pipe, config)

    @torch.inference_mode()
    def _forward(self) -> Tensor:
        scheduler = self.pipe.scheduler
        with self.transformer.cache_context("cond"):
            out = self.transformer(**self.inputs, return_dict=False)[0]
        scheduler.step_index = 1 if scheduler.step_index is None else scheduler.step_index + 1
        return out


def _inputs(transformer: nn.Module, model: Model) -> dict[str, Tensor]:
    """Random inputs of one forward; the prompt has no padding."""
    config = transformer.config
    inputs = {
        "hidden_states": torch.randn(1, *model.latent),
        "timestep": torch.full((1,), 500.0),
    }
    if model.transformer is WanTransformer3DModel:
        text = torch.randn(1, model.text_tokens, config.text_dim)
        return inputs | {"encoder_hidden_states": text}
    return inputs | {
        "encoder_hidden_states": torch.randn(1, model.text_tokens, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(1, model.text_tokens, dtype=torch.int64),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "guidance": torch.full((1,), 6000.0),
    }


def _forwards(stats: RunStats) -> int:
    return (stats.dense_calls + stats.sparse_calls) // stats.num_layers


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
