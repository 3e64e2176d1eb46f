"""Many prompts with every method at every budget: one dense run each, statistics over prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svg2.method.selection import METHODS
from svg2.runs.call import load_for
from svg2.runs.dense_file import load_dense, save_dense
from svg2.runs.dense_sparse import DenseRun, check_sparse, generate_dense, generate_sparse
from svg2.runs.progress import Watch
from svg2.runs.provenance import provenance
from svg2.runs.result import Order, result_record
from svg2.runs.run import Run
from svg2.trace.atomic import json_bytes, write_atomic
from svg2.trace.records import RecordingPolicy

_NOTHING = RecordingPolicy(steps=())
_MEASURES = (
    *("density", "compute_density", "overhead_density", "density_run"),
    *("psnr_db", "ssim", "attention_speedup", "speedup"),
)
IDENTICAL_DB = 100.0
"""What counts as the PSNR of identical clips in statistics."""


@dataclass(frozen=True)
class Grid:
    """Every method at every budget, for every prompt.

    Attributes:
        run: the request and the settings that all points share; its own prompt is not used.
        prompts: prompt and seed of each video.
        methods: names of methods.
        budgets: shares of the query-key pairs that a sparse call computes, stand-ins and routing
            included, so that methods are compared at equal work.
    """

    run: Run
    prompts: tuple[tuple[str, int], ...]
    methods: tuple[str, ...]
    budgets: tuple[float, ...]

    def points(self, prompt: str, seed: int) -> list[tuple[str, float, Run]]:
        """Method, budget and run of each point of a prompt, without budgets that do not fit.

        Raises:
            InputError: an unknown method, or an invalid prompt.
        """
        request = dataclasses.replace(self.run.request, prompt=prompt, seed=seed)
        base = dataclasses.replace(self.run, request=request)
        found = []
        for method in self.methods:
            run = base.with_settings(method=method)
            for budget in self.budgets:
                density = budget - fixed_density(run)
                if density > 0:
                    found.append((method, budget, run.with_settings(density=density)))
        return found


def fixed_density(run: Run) -> float:
    """Share of the pairs that a method computes whatever it keeps: stand-ins and routing."""
    config, method = run.config, METHODS[run.config.method]
    virtual = config.num_k_clusters if config.compensates else 0
    return (virtual + method.passes * config.num_q_clusters) / run.n_tokens


def sweep_prompts(
    grid: Grid, folder: Path, pipe: Any = None, watch: Watch | None = None
) -> dict[str, Any]:
    """Run what is missing in `folder` and return the content of sweep.json.

    Each point is a file of its own, named after all that it depends on, so that a sweep goes on
    where it was stopped, and more methods or budgets can be added later.

    Args:
        folder: where the files are written; it must exist.
        pipe: the loaded pipeline of the model; None loads it.

    Raises:
        As `svg2.runs.sweep.sweep`.
    """
    watch = watch or Watch()
    points: list[dict[str, Any]] = []
    for prompt, seed in grid.prompts:
        dense: DenseRun | None = None
        for method, budget, run in grid.points(prompt, seed):
            path = folder / f"point-{_digest(run)}.json"
            if (record := _read(path)) is None:
                pipe = load_for(run, watch) if pipe is None else pipe
                check_sparse(pipe, run)
                dense = dense or _dense_of(run, folder, pipe, watch)
                sparse = generate_sparse(pipe, run, watch, _NOTHING)
                record = result_record(dense, sparse, Order.DENSE_EARLIER)
                write_atomic(path, json_bytes(record))
            points.append(record | {"method": method, "budget": budget})
    content = {
        **provenance_of(points),
        "prompts": [{"prompt": prompt, "seed": seed} for prompt, seed in grid.prompts],
        "statistics": statistics_of(points),
        "points": [_short(point) for point in points],
    }
    write_atomic(folder / "sweep.json", json_bytes(content))
    return content


def statistics_of(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and quartiles over the prompts of each method and budget."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault((point["method"], point["budget"]), []).append(point)
    return [
        {"method": method, "budget": budget, "prompts": len(group)}
        | {name: _quartiles([_number(point, name) for point in group]) for name in _MEASURES}
        for (method, budget), group in groups.items()
    ]


def provenance_of(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where the points were made; of the last one, since a sweep may go on elsewhere."""
    import torch

    names = provenance(torch.device("cpu")).keys()
    last = points[-1] if points else {}
    sizes = ("model", "height", "width", "num_frames", "num_inference_steps", "dtype", "tokens")
    return {name: last.get(name) for name in (*sizes, *names)}


def _quartiles(values: Sequence[float | None]) -> dict[str, float] | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    if len(known) == 1:
        return {"low": known[0], "median": known[0], "high": known[0]}
    low, median, high = statistics.quantiles(known, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high}


def _number(point: dict[str, Any], name: str) -> float | None:
    if name == "psnr_db" and point[name] is None:
        return IDENTICAL_DB
    return point.get(name)


def _short(point: dict[str, Any]) -> dict[str, Any]:
    names = ("method", "budget", "prompt", "seed", *_MEASURES, "dense_seconds", "svg2_seconds")
    return {name: point.get(name) for name in names}


def _dense_of(run: Run, folder: Path, pipe: Any, watch: Watch) -> DenseRun:
    """The dense run of a prompt, from an earlier sweep if there is one."""
    path = folder / f"dense-{_digest(run, of_method=False)}.npz"
    dense = load_dense(path, run.request)
    if dense is None:
        dense = generate_dense(pipe, run, watch)
        save_dense(path, dense)
    return dense


def _digest(run: Run, of_method: bool = True) -> str:
    """A name for everything that a result depends on but the machine."""
    fields: dict[str, Any] = {"request": dataclasses.asdict(run.request)}
    del fields["request"]["device"]
    if of_method:
        fields["config"] = run.config.to_dict()
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
