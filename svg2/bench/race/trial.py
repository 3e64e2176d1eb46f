"""One attend variant in a process of its own: is it right, with every option and every time?

    python -m svg2.bench.race.trial OP NAME --chip CHIP --out FOLDER
    python -m svg2.bench.race.trial OP --chip CHIP --out FOLDER

The last line on stdout is the largest relative error as JSON, or why the variant is out. A crash
or a hang ends this process alone. Without NAME all variants of an op run once, so that they are
compiled when their turn comes.
"""

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels import StandIns, cluster_attention, route, sort_by_label
from kernels.exact import ERROR_BUDGET
from svg2.bench.exact import ExactRows
from svg2.bench.gpu import Case
from svg2.bench.harness import reason
from svg2.bench.race.contests import step_contests, step_keys
from svg2.bench.race.entries import behave, entries_of
from svg2.bench.race.record import Place
from svg2.bench.race.supervise import add_place, place_of, stop_with_parent
from svg2.bench.workload import ClusteredWorkload, Workload, make_clustered, select_density

_SMALL = Workload((3, 11, 17), 7, 40, (0.3,), heads=2, head_dim=128)
_WIDE = Workload((9, 24, 24), 24, 400, (0.2,), heads=16, head_dim=128)
_TOY = Workload((2, 6, 7), 3, 8, (0.4,), heads=1, head_dim=64)
_REPEATS = 3


def try_variant(place: Place, name: str, config: Any) -> float:
    """The largest relative error of a variant over all options.

    Raises:
        ValueError: a result is wrong, or changes from one call to the next.
    """
    worst = _with_options(place, name, config)
    clustered = _clustered(place, _TOY if place.is_rehearsal else _WIDE)
    _, kept, _ = select_density(clustered, 0.2)
    exact = ExactRows(clustered, kept, has_virtual=False)
    # On a GPU enough work for every multiprocessor: a race between warps shows as a result that
    # changes.
    outs = [_attend(name, config, clustered, kept) for _ in range(_REPEATS)]
    worst = max(worst, _checked("a large call", exact.error_of(outs[0]), place))
    if not all(torch.equal(outs[0], out) for out in outs):
        raise ValueError("the same input gives another result each time")
    return worst


def _with_options(place: Place, name: str, config: Any) -> float:
    """Every kind of stand-ins, with and without `q_perm`, against the reference in fp32."""
    clustered = _clustered(place, _TOY if place.is_rehearsal else _SMALL)
    _, kept, _ = select_density(clustered, 0.3)
    q_clusters = clustered.q_clusters
    num_clusters = q_clusters.centroids.shape[2]
    q_perm = sort_by_label(q_clusters.labels.cpu(), num_clusters, impl="reference").perm
    routes = route(
        *(x.float().cpu() for x in (q_clusters.centroids, clustered.k_sorted)),
        *(clustered.v_sorted.float().cpu(), clustered.k_offsets.cpu()),
        impl="reference",
    )
    worst = 0.0
    # Rounded as the kernels would round them, so that what is compared is attention alone.
    for what, stand_ins in (
        ("no stand-ins", None),
        ("stand-ins of clusters", _moved(clustered.stand_ins, place.device, place.dtype)),
        ("stand-ins of pairs", _moved(routes.stand_ins, place.device, place.dtype)),
    ):
        in_fp32 = cluster_attention(
            *(x.float().cpu() for x in (clustered.q_sorted, clustered.k_sorted)),
            clustered.v_sorted.float().cpu(),
            *(x.cpu() for x in (clustered.q_offsets, clustered.k_offsets, kept)),
            stand_ins=_moved(stand_ins, torch.device("cpu"), torch.float32),
            impl="reference",
        )
        for perm in (None, q_perm.to(place.device)):
            out = _attend(name, config, clustered, kept, stand_ins, perm).float().cpu()
            if perm is not None:
                out = out.gather(2, perm.cpu()[..., None].expand(out.shape))
            error = float("nan")
            if out.isfinite().all():
                error = ((out - in_fp32).norm() / in_fp32.norm()).item()
            where = f"{what}{'' if perm is None else ', queries in token order'}"
            worst = max(worst, _checked(where, error, place))
    return worst


def _checked(what: str, error: float, place: Place) -> float:
    if not error <= ERROR_BUDGET[place.dtype]:
        raise ValueError(f"wrong result with {what}: relative error {error:.2e}")
    return error


def _clustered(place: Place, workload: Workload) -> ClusteredWorkload:
    impl = "reference" if place.is_rehearsal else "fused"
    return make_clustered(workload, place.device.type, place.dtype, impl)


def _attend(
    name: str,
    config: Any,
    clustered: ClusteredWorkload,
    kept: Tensor,
    stand_ins: StandIns | None = None,
    perm: Tensor | None = None,
) -> Tensor:
    from kernels.cluster_attention.fused import attend_with

    q = clustered.q_sorted if perm is None else clustered.q
    scale = q.shape[-1] ** -0.5
    return behave(
        name,
        lambda: attend_with(
            q, clustered.k_sorted, clustered.v_sorted, clustered.q_offsets, clustered.k_offsets,
            kept, scale, stand_ins, perm, config,
        ),
        is_timed=False,
    )  # fmt: skip


def _moved(
    stand_ins: StandIns | None, device: torch.device, dtype: torch.dtype
) -> StandIns | None:
    if stand_ins is None:
        return None
    weights = stand_ins.log_weights
    return replace(
        stand_ins,
        keys=stand_ins.keys.to(device, dtype),
        values=stand_ins.values.to(device, dtype),
        log_weights=None if weights is None else weights.to(device),
    )


def compile_all(place: Place, chip: str, op: str) -> None:
    """Run each variant of a step once; what fails is found when it is raced."""
    workload = _TOY if place.is_rehearsal else _SMALL
    case = Case("trial", workload)
    (key,) = (key for key in step_keys(case) if key["op"] == op)
    clustered = make_clustered(workload, place.device.type, place.dtype, "fused")
    (contest,) = step_contests(place, chip, case, clustered, [key])
    for name in contest.entries:
        with suppress(Exception):
            contest.run(name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m svg2.bench.race.trial")
    parser.add_argument("op")
    parser.add_argument("name", nargs="?")
    parser.add_argument("--chip", required=True)
    add_place(parser)
    arguments = parser.parse_args(argv)
    stop_with_parent()
    place, op, name = place_of(arguments), arguments.op, arguments.name
    outcome: dict[str, Any] = {}
    try:
        with torch.inference_mode():
            if name is None:
                compile_all(place, arguments.chip, op)
            else:
                config = entries_of(place, arguments.chip, op)[name]
                outcome = {"error": try_variant(place, name, config)}
    except Exception as error:  # whatever it is rules this variant out
        outcome = {"why": reason(error)}
    print(json.dumps(outcome), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
