"""The end-to-end suite: whole transformers in their published sizes, with random weights.

Random weights take the same time as trained ones, but their attention has no structure. So a
setting names a density, and the suite searches the top-p that gives it. The time of a whole run
is the sum of measured forwards: dense, sparse from a cold start, and sparse from warm centroids.
With a few blocks of each kind in place of all, the forwards too are put together, from the times
of single blocks (`svg2.bench.blocks`).
"""

import math
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from svg2.bench.blocks import BlockClock, block_counts, shortened
from svg2.bench.e2e_models import (
    BLOCK_MODELS,
    MODELS,
    TOY_BLOCK_MODELS,
    TOY_MODELS,
    Model,
    Setting,
)
from svg2.bench.harness import Progress, reason, save_record, suite_device
from svg2.bench.turns import time_in_turns
from svg2.config import SVG2Config, ceil_fraction
from svg2.hooks.enable import Handle, enable, measure_dense
from svg2.hooks.stats import RunStats
from svg2.method.stages import STAGES
from svg2.runs.provenance import peak_memory, provenance

# diffusers' names; sparse runs are compared with the fastest one.
_BACKENDS = ("native", "_native_flash", "_native_cudnn")
_CALIBRATION_BLOCKS = 2
_BISECTIONS = 7


def run_e2e_suite(
    out_path: Path,
    on_progress: Progress,
    *,
    toy: bool = False,
    rounds: int = 3,
    blocks: int | None = None,
    measured: Iterable[dict[str, Any]] = (),
    facts: dict[str, Any] | None = None,
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
        blocks: make this many blocks of each kind, and put whole forwards together from the times
            of single blocks; None: make them all.
        measured: rows of an earlier call, which are kept and not measured again.
        facts: more fields of each new row.

    Raises:
        SuiteUnavailable: there is no GPU, and no toy was asked for.
        OSError: `out_path` can't be written.
    """
    device = suite_device("end-to-end", toy)
    models = {
        (False, False): MODELS,
        (True, False): TOY_MODELS,
        (False, True): BLOCK_MODELS,
        (True, True): TOY_BLOCK_MODELS,
    }[toy, blocks is not None]
    record: dict[str, Any] = {
        "suite": "e2e",
        "toy": toy,
        "weights": "random",
        **provenance(device),
        "rounds": rounds,
        "blocks": blocks,
        "runs": list(measured),
        "left_out": [],
    }
    done = {(row["model"], row["method"], row["density_asked"]) for row in record["runs"]}

    for model in models:
        settings = [s for s in model.settings if (model.name, s.method, s.density) not in done]
        if not settings:
            continue
        on_progress(f"{model.name}: random weights, {model.tokens:,} tokens")
        try:
            bench = _Bench(model, device, rounds, blocks)
            for setting in settings:
                row = {"toy": toy, **bench.run(setting), **(facts or {})}
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

    def __init__(
        self, model: Model, device: torch.device, rounds: int, blocks: int | None = None
    ) -> None:
        self.model, self.device, self.rounds = model, device, rounds
        counts = block_counts(model.transformer, model.config)
        config = model.config
        if blocks is not None:
            config = shortened(model.transformer, config, blocks)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device, _default_dtype(dtype):
            torch.manual_seed(0)
            self.transformer = model.transformer(**config).eval().requires_grad_(False)
            self.inputs = _inputs(self.transformer, model)
        self.clock = BlockClock(self.transformer, counts, device)
        self.made = sum(len(made) for made in self.clock.blocks.values())
        self.whole = sum(counts.values())
        self.block_ms: dict[str, dict[str, float]] = {}
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
        self.stock_ms, _ = self._timed("stock")
        with measure_dense(self.pipe) as handle:
            self.dense_ms, self.dense_peak = self._timed("dense")
            stats = handle.stats
        attention_seconds = stats.attention_seconds
        if attention_seconds is None:
            raise RuntimeError(f"the attention of backend {self.backend} can't be timed")
        attention_ms = attention_seconds * 1e3 / _forwards(stats) * self.whole / self.made
        self.attention_share = attention_ms / self.dense_ms

    def run(self, setting: Setting) -> dict[str, Any]:
        """Measure one setting; returns its row."""
        config = SVG2Config(
            num_q_clusters=setting.num_q_clusters,
            num_k_clusters=setting.num_k_clusters,
            warmup_fraction=0.0,
            min_keep_ratio=0.0,
            kmeans_iters_init=setting.kmeans_iters_init if self.device.type == "cuda" else 3,
            method=setting.method,
        )
        if setting.is_budget:
            config = config.replace(density=setting.density)
        else:
            config = config.replace(top_p=self._calibrate(config, setting.density))
        with self._enabled(config):
            self._forward()  # compiles kernels
        with self._enabled(config) as handle:
            cold_ms = self._whole_ms("cold", 1, warm_ups=0)
            cold = handle.stats
            warm_ms, peak_bytes = self._timed("warm")
            stats = handle.stats
        # The first calls are those of the cold forward.
        warm_calls = stats.call_stage_ms[len(cold.call) :].astype(float)
        sums_ms = warm_calls.sum(axis=0) / (_forwards(stats) - 1) * self.whole / self.made
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
            "blocks_made": self.made,
            "blocks_of_model": self.whole,
            "block_ms": dict(self.block_ms),
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

    def _timed(self, what: str) -> tuple[float, int | None]:
        with peak_memory(self.device) as peak:
            ms = self._whole_ms(what, self.rounds, warm_ups=1)
        return ms, peak.nbytes

    def _whole_ms(self, what: str, rounds: int, warm_ups: int) -> float:
        """A forward of the whole model: the median measured, and the blocks that were not made."""
        with self.clock.running():
            times = time_in_turns({what: self._forward}, rounds, self.device, warm_ups)
        block_ms = self.clock.block_ms(rounds)
        self.block_ms[what] = block_ms
        missing = self.clock.missing
        return statistics.median(times[what]) + sum(missing[k] * block_ms[k] for k in missing)

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
