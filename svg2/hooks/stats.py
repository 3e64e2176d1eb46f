"""What a generation did and how long it took: its attention calls, one by one and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from svg2.method.stages import DENSE_STAGE, STAGES, StageClock

if TYPE_CHECKING:  # this module loads without torch
    from torch import Tensor

    from svg2.hooks.steps import Position


@dataclass(frozen=True)
class RunStats:
    """The latest generation so far, in numbers.

    A call is the self-attention of one layer in one forward of the transformer, also where the
    samples of a batch attend one by one.

    Attributes:
        impl: implementation of k-means in the sparse calls, `reference` or `fused`; None while
            none ran.
        num_steps: denoising steps of the generation; num_layers: self-attention layers of one
            transformer.
        n_tokens: video tokens, N; n_text: real prompt tokens in the same attention, of the longest
            prompt in the first guidance branch; 0 where the model has none there.
        density: kept share of the query-key pairs, mean over the sparse calls and heads; None
            where none ran sparse.
        density_run: mean over all calls, where a dense one counts 1; None before the first call.
        compute_density: `density` plus the pairs of stand-ins and of the routing pass.
        overhead_density: operations of k-means as a share of those of all pairs, mean over the
            sparse calls; None where none ran sparse.
        kept_mass: attention mass of what is kept, estimated from centroids, mean over the sparse
            calls and heads; None where none ran sparse.
        stage_seconds: seconds of `STAGES` over the sparse calls, and of `dense_attention`, the
            attention kernel alone of the dense calls; that is None where a dense call's kernel
            could not be told apart (not measured).
        observer_seconds: wall time spent in the observer, no part of `stage_seconds`. On CUDA it
            includes the observer's wait for work that was queued before.
        cache_bytes: the most memory that centroids held at once.
        step_attention_seconds: `attention_seconds` of each step, with the time of its statistics.
        call: int32 `[calls, 3]`, step, layer and branch of every sparse call, in order; row i of
            `call_density`, `call_kept_mass` (float32 `[calls, H]`, means over the batch) and
            `call_stage_ms` (float32 `[calls, 5]`, in the order of `STAGES`) belong to it.
        dense_call: int32 `[dense calls, 3]`, the same of the dense calls.
    """

    impl: str | None
    num_steps: int
    num_layers: int
    n_tokens: int
    n_text: int
    density: float | None
    density_run: float | None
    compute_density: float | None
    overhead_density: float | None
    kept_mass: float | None
    stage_seconds: dict[str, float | None]
    observer_seconds: float
    cache_bytes: int
    step_attention_seconds: tuple[float | None, ...]
    call: np.ndarray
    call_density: np.ndarray
    call_kept_mass: np.ndarray
    call_stage_ms: np.ndarray
    dense_call: np.ndarray

    @property
    def sparse_calls(self) -> int:
        """Self-attention calls that ran sparse."""
        return len(self.call)

    @property
    def dense_calls(self) -> int:
        """Self-attention calls that ran dense."""
        return len(self.dense_call)

    @property
    def attention_seconds(self) -> float | None:
        """All of `stage_seconds` but `other`; None where a part of it was not measured."""
        parts = [seconds for stage, seconds in self.stage_seconds.items() if stage != "other"]
        known = [seconds for seconds in parts if seconds is not None]
        return sum(known) if len(known) == len(parts) else None

    def density_table(self) -> np.ndarray:
        """Density `[num_layers, num_steps]`, mean over the heads and calls of a layer in a step.

        A dense call counts 1; nan where no call ran.
        """
        total = np.zeros((self.num_layers, self.num_steps))
        count = np.zeros_like(total)
        step, layer = self.call[:, 0], self.call[:, 1]
        np.add.at(total, (layer, step), self.call_density.mean(axis=1, dtype=np.float64))
        np.add.at(count, (layer, step), 1)
        step, layer = self.dense_call[:, 0], self.dense_call[:, 1]
        np.add.at(total, (layer, step), 1.0)
        np.add.at(count, (layer, step), 1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


@dataclass(frozen=True)
class _SparseCall:
    place: tuple[int, int, int]
    density: Tensor
    compute_density: Tensor
    kept_mass: Tensor
    overhead_density: float
    clock: StageClock


@dataclass(frozen=True)
class _DenseCall:
    place: tuple[int, int, int]
    clock: StageClock | None


class StatsRecorder:
    """Collects the calls of one generation, and reads nothing from the device while it does.

    `snapshot` and `step_density` read, and so wait for the device.
    """

    def __init__(self, num_layers: int, num_heads: int) -> None:
        self._num_layers = num_layers
        self._num_heads = num_heads
        self.reset()

    def reset(self) -> None:
        """Forget everything: a generation begins."""
        self._num_steps = 0
        self._n_tokens = 0
        self._n_text = 0
        self._impl: str | None = None
        self._cache_bytes = 0
        self._observer_seconds = 0.0
        self._sparse: list[_SparseCall] = []
        self._dense: list[_DenseCall] = []
        self._step_totals: dict[int, list[float]] = {}  # step: sum of densities, number of calls
        self._totalled = (0, 0)  # sparse and dense calls that are in those sums

    def forward(self, num_steps: int, n_tokens: int) -> None:
        """Note the size of the generation."""
        self._num_steps, self._n_tokens = num_steps, n_tokens

    def text(self, n_text: int) -> None:
        """Note the prompt tokens of a guidance branch; the first number above 0 is kept."""
        self._n_text = self._n_text or n_text

    def sparse_call(
        self,
        position: Position,
        layer: int,
        impl: str,
        density: Tensor,
        compute_density: Tensor,
        kept_mass: Tensor,
        overhead_density: float,
        clock: StageClock,
    ) -> None:
        """Add a sparse call; the tensors are `[H]`."""
        self._impl = impl
        place = (position.step, layer, position.branch)
        self._sparse.append(
            _SparseCall(place, density, compute_density, kept_mass, overhead_density, clock)
        )

    def dense_call(self, position: Position, layer: int, clock: StageClock | None) -> None:
        """Add a dense call; the clock is of its attention kernel, None if not told apart."""
        self._dense.append(_DenseCall((position.step, layer, position.branch), clock))

    def observed(self, seconds: float) -> None:
        """Add time spent in the observer."""
        self._observer_seconds += seconds

    def cache_bytes(self, nbytes: int) -> None:
        """Note what centroids take now; the most is kept."""
        self._cache_bytes = max(self._cache_bytes, nbytes)

    def step_density(self) -> tuple[float, ...]:
        """Mean density of each step in which a call ran, in order; a dense call counts 1.

        Reads the calls since the last reading alone. Waits for the device on CUDA.
        """
        num_sparse, num_dense = self._totalled
        sparse, dense = self._sparse[num_sparse:], self._dense[num_dense:]
        densities = _stack([call.density for call in sparse], self._num_heads).mean(axis=1)
        new = [
            *((call.place[0], float(x)) for call, x in zip(sparse, densities, strict=True)),
            *((call.place[0], 1.0) for call in dense),
        ]
        for step, density in new:
            total = self._step_totals.setdefault(step, [0.0, 0])
            total[0] += density
            total[1] += 1
        self._totalled = (len(self._sparse), len(self._dense))
        return tuple(total / count for _, (total, count) in sorted(self._step_totals.items()))

    def snapshot(self) -> RunStats:
        """The numbers so far, put together from every call. Waits for the device on CUDA."""
        heads = self._num_heads
        density = _stack([call.density for call in self._sparse], heads)
        kept_mass = _stack([call.kept_mass for call in self._sparse], heads)
        stage_ms = np.array(
            [[call.clock.stage_ms.get(stage, 0.0) for stage in STAGES] for call in self._sparse]
        ).reshape(-1, len(STAGES))
        sums = stage_ms.sum(axis=0) / 1e3
        stage_seconds: dict[str, float | None] = dict(zip(STAGES, sums.tolist(), strict=True))
        stage_seconds[DENSE_STAGE] = self._dense_seconds()

        mean_density = mean_mass = compute_density = overhead_density = density_run = None
        if self._sparse:
            mean_density, mean_mass = float(density.mean()), float(kept_mass.mean())
            compute_density = float(
                _stack([call.compute_density for call in self._sparse], heads).mean()
            )
            overhead_density = float(np.mean([call.overhead_density for call in self._sparse]))
        calls = len(self._sparse) + len(self._dense)
        if calls:
            density_run = (float(density.mean(axis=1).sum()) + len(self._dense)) / calls
        return RunStats(
            impl=self._impl,
            num_steps=self._num_steps,
            num_layers=self._num_layers,
            n_tokens=self._n_tokens,
            n_text=self._n_text,
            density=mean_density,
            density_run=density_run,
            compute_density=compute_density,
            overhead_density=overhead_density,
            kept_mass=mean_mass,
            stage_seconds=stage_seconds,
            observer_seconds=self._observer_seconds,
            cache_bytes=self._cache_bytes,
            step_attention_seconds=self._attention_by_step(stage_ms),
            call=_places(self._sparse),
            call_density=density.astype(np.float32),
            call_kept_mass=kept_mass.astype(np.float32),
            call_stage_ms=stage_ms.astype(np.float32),
            dense_call=_places(self._dense),
        )

    def _attention_by_step(self, stage_ms: np.ndarray) -> tuple[float | None, ...]:
        """Seconds of all stages but `other`, and of dense kernels, in each step."""
        seconds: list[float | None] = [0.0] * self._num_steps
        # What statistics take between a call's stages is the method's.
        skipped = np.array([call.clock.skipped_ms for call in self._sparse])
        ours = (stage_ms.sum(axis=1) - stage_ms[:, STAGES.index("other")] + skipped) / 1e3
        times = [(call.place[0], x) for call, x in zip(self._sparse, ours.tolist(), strict=True)]
        for call in self._dense:
            dense = None if call.clock is None else call.clock.stage_ms[DENSE_STAGE] / 1e3
            times.append((call.place[0], dense))
        for step, took in times:
            before = seconds[step]
            seconds[step] = None if took is None or before is None else before + took
        return tuple(seconds)

    def _dense_seconds(self) -> float | None:
        clocks = [call.clock for call in self._dense]
        if any(clock is None for clock in clocks):
            return None
        return sum(clock.stage_ms[DENSE_STAGE] for clock in clocks if clock is not None) / 1e3


def _stack(rows: Sequence[Tensor], width: int) -> np.ndarray:
    if not rows:
        return np.zeros((0, width))
    import torch

    return torch.stack(list(rows)).double().cpu().numpy()


def _places(calls: Sequence[_SparseCall | _DenseCall]) -> np.ndarray:
    return np.array([call.place for call in calls], dtype=np.int32).reshape(-1, 3)
