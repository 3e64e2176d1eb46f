"""Time the Triton kernels with other block sizes than those that ship.

    python -m svg2.bench.tune --out FILE.json          on an NVIDIA GPU, at the size of Wan 720p
    TRITON_INTERPRET=1 python -m svg2.bench.tune --toy --out FILE.json    the harness alone

A configuration is timed only after its result was checked. The record changes no kernel: a person
picks from it and edits `config_for` and `tiling_for` of the kernels.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svg2.bench.exact import ERROR_BUDGET, ExactRows
from svg2.bench.harness import Progress, reason, save_record, suite_device
from svg2.bench.turns import time_in_turns
from svg2.bench.workload import ClusteredWorkload, Workload, make_clustered, select_density
from svg2.errors import SuiteUnavailable
from svg2.runs.provenance import provenance

_SIZES = Workload((21, 45, 80), 300, 1000, (0.3, 0.1), heads=40, head_dim=128)
_TOY_SIZES = Workload((3, 4, 4), 3, 6, (0.3,), heads=1, head_dim=64)


def attention_configs(toy: bool) -> dict[str, Any]:
    """Configurations of the attention kernel by name; `shipped` is first."""
    from kernels.cluster_attention import fused

    if toy:
        base = fused.Config(fused.Tiling(32, 32, 4, 1))
        return {"shipped": base, "chunk 8": fused.Config(replace(base.main, chunk=8))}
    device = torch.device("cuda", torch.cuda.current_device())
    shipped = fused.device_config(device, 128)
    sizes = [
        *((128, 128, 8, 2), (128, 128, 8, 3), (128, 128, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3)),
        *((128, 64, 8, 4), (128, 64, 4, 3), (64, 128, 4, 2), (64, 64, 4, 3), (256, 64, 8, 2)),
    ]
    found = {"shipped": shipped, "shipped, no tail": replace(shipped, tail=None)}
    for chunk in (8, 32):
        tail = None if shipped.tail is None else replace(shipped.tail, chunk=chunk)
        main = replace(shipped.main, chunk=chunk)
        found[f"shipped, chunk {chunk}"] = fused.Config(main, tail)
    for programs in (2, 4):
        main = replace(shipped.main, programs=programs)
        found[f"shipped, {programs} programs"] = replace(shipped, main=main)
    for size in sizes:
        name = "{}×{}, {} warps, {} stages".format(*size)
        found[name] = fused.Config(fused.Tiling(*size))
    return found


def assign_tilings(toy: bool) -> dict[str, Any]:
    """Tilings of the k-means assignment kernel by name; `shipped` is first."""
    from kernels.kmeans import fused

    if toy:
        return {"shipped": fused.Tiling(64, 16, 4, 1), "32×16": fused.Tiling(32, 16, 4, 1)}
    device = torch.device("cuda", torch.cuda.current_device())
    sizes = [
        *((128, 128, 8, 2), (128, 128, 8, 3), (128, 128, 4, 3), (128, 64, 4, 4), (256, 64, 8, 3)),
        *((256, 128, 8, 2), (64, 128, 4, 3), (128, 256, 8, 2), (64, 64, 4, 4)),
    ]
    found = {"shipped": fused.device_tiling(device)}
    return found | {
        "{}×{}, {} warps, {} stages".format(*size): fused.Tiling(*size) for size in sizes
    }


def run_tuning(
    out_path: Path, on_progress: Progress, *, toy: bool = False, rounds: int = 7
) -> dict[str, Any]:
    """Time every configuration and write the record to `out_path` after each race.

    `over_shipped` of a row is the speedup over the shipped configuration, the median over rounds;
    None if the shipped one was left out. A configuration that fails here, or whose result is
    wrong, is listed under `left_out`.

    Args:
        toy: run the harness at toy sizes on any device; every row then has `toy: true`.
        rounds: number of rounds per race.

    Raises:
        SuiteUnavailable: there is no GPU, and no toy was asked for.
        OSError: `out_path` can't be written.
    """
    device = suite_device("tuning", toy)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    record: dict[str, Any] = {
        "suite": "tune",
        "toy": toy,
        **provenance(device),
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": rounds,
        "rows": [],
        "left_out": [],
    }
    sizes = _TOY_SIZES if toy else _SIZES
    # The clustering is not timed, and the interpreter would be slow at it.
    clustered = make_clustered(sizes, device.type, dtype, "auto" if toy else "fused")
    tried: list[tuple[dict[str, Any], dict[str, Any], Callable, Callable]] = []
    for density in sizes.densities:
        for compensate in (False, True):
            what, run, is_right = _attention(clustered, density, compensate)
            tried.append((what, attention_configs(toy), run, is_right))
    what, run, is_right = _assignment(clustered)
    tried.append((what, assign_tilings(toy), run, is_right))
    for what, configs, run, is_right in tried:
        on_progress(" ".join(f"{name} {value}" for name, value in what.items()))
        runs = {}
        for name, config in configs.items():
            # Any failure rules a configuration out, such as too much shared memory.
            try:
                fault = None if is_right(run(config)) else "wrong result"
            except Exception as error:
                fault = reason(error)
            if fault is None:
                runs[name] = lambda run=run, config=config: run(config)
                continue
            record["left_out"].append({**what, "name": name, "why": fault})
            on_progress(f"  {name} left out: {fault}")
        ms = time_in_turns(runs, rounds, device, warm_ups=0 if toy else 2)
        for name, times in ms.items():
            row = {
                **what,
                "name": name,
                "config": asdict(configs[name]),
                "toy": toy,
                "ms": statistics.median(times),
                "over_shipped": _median_ratio(ms.get("shipped"), times),
            }
            record["rows"].append(row)
            on_progress(f"  {name}: {row['ms']:.3f} ms, {row['over_shipped']}× the shipped")
        save_record(out_path, record)
    return record


def _median_ratio(numerators: list[float] | None, denominators: list[float]) -> float | None:
    """Median over rounds of one time over another; None if the first was not timed."""
    if numerators is None:
        return None
    pairs = zip(numerators, denominators, strict=True)
    return round(statistics.median(a / b for a, b in pairs), 4)


def _attention(
    clustered: ClusteredWorkload, asked: float, compensate: bool
) -> tuple[dict[str, Any], Callable, Callable]:
    from kernels.cluster_attention import fused

    _, kept, density = select_density(clustered, asked)
    exact = ExactRows(clustered, kept, has_virtual=compensate)
    q = clustered.q_sorted

    def run(config: Any) -> Tensor:
        return fused.attend_with(
            *(q, clustered.k_sorted, clustered.v_sorted),
            *(clustered.q_offsets, clustered.k_offsets, kept, q.shape[-1] ** -0.5),
            *(clustered.stand_ins if compensate else None, None, config),
        )

    def is_right(out: Tensor) -> bool:
        return exact.error_of(out) <= ERROR_BUDGET[q.dtype]

    return {"op": "attention", "density": density, "compensate": compensate}, run, is_right


def _assignment(clustered: ClusteredWorkload) -> tuple[dict[str, Any], Callable, Callable]:
    from kernels.kmeans import fused

    centroids = clustered.k_clusters.centroids
    expected = fused.kmeans_and_sort(clustered.k, centroids, 1)[0]

    def run(tiling: Any) -> Tensor:
        return fused.lloyd(clustered.k, centroids, 1, tiling)[0]

    def is_right(labels: Tensor) -> bool:
        # Another order of summation may decide near ties differently.
        return (labels == expected).float().mean().item() > 0.999

    return {"op": "kmeans", "iters": 1, "clusters": centroids.shape[2]}, run, is_right


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m svg2.bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try out the harness")
    arguments = parser.parse_args(argv)
    try:
        with torch.inference_mode():
            run_tuning(
                arguments.out,
                lambda text: print(text, file=sys.stderr),
                toy=arguments.toy,
                rounds=1 if arguments.toy else 7,
            )
    except (SuiteUnavailable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
