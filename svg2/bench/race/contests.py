"""The contests of a race: what each op's variants are given, and what their results must be."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.exact import ERROR_BUDGET
from svg2.bench.baselines import (
    Attend,
    BaselineUnavailable,
    dense_baselines,
    flash_attention_4,
    flashinfer_blocks,
)
from svg2.bench.exact import ExactRows
from svg2.bench.gpu import CASES, Case
from svg2.bench.harness import reason
from svg2.bench.race.entries import attend_op, behave, entries_of
from svg2.bench.race.record import Place, Record
from svg2.bench.workload import ClusteredWorkload, Workload, select_density

DENSITIES = (0.3, 0.1)
_CHECKED = 512
_FLASH_4 = "flash_attention_4"
_TOY_CASES = (Case("toy", Workload((3, 6, 8), 4, 8, DENSITIES, heads=1, head_dim=64)),)


def race_cases(place: Place) -> tuple[Case, ...]:
    """Wan 720p, HunyuanVideo 720p and 480p; those of the GPU suite."""
    return _TOY_CASES if place.is_rehearsal else CASES[:3]


@dataclass(frozen=True)
class Contest:
    """Variants of one op on one input.

    Attributes:
        key: op and sizes, by which a second call knows it.
        work: how much each variant does, to predict what other contests cost.
        entries: variants by name, as the op takes them.
        run: runs one of them, by name.
        fault: what is wrong with a result, or None; and its relative error, where that is known.
        dense, others: kernels of others beside them: of all pairs, and of the kept ones.
        facts: more fields of each row.
    """

    key: dict[str, Any]
    work: float
    entries: Mapping[str, Any]
    run: Callable[[str], Any]
    fault: Callable[[Any], tuple[str | None, float | None]]
    dense: Mapping[str, Attend] = field(default_factory=dict)
    others: Mapping[str, Attend] = field(default_factory=dict)
    is_dense_right: Callable[[Any], tuple[str | None, float | None]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def op(self) -> str:
        """The op, as the file of winners names it."""
        return self.key["op"]


def attend_key(case: Case, density: float) -> dict[str, Any]:
    """What the contest of a density is known by, before its input is made."""
    sizes = case.workload.sizes
    return {"op": attend_op(sizes["head_dim"]), "case": case.name, **sizes, "asked": density}


def attend_work(case: Case, density: float) -> float:
    """Pairs of tokens that attention computes, with those of a dense call for scale."""
    return case.workload.heads * case.workload.tokens**2 * (density + 0.2)


def attend_contest(
    place: Place,
    chip: str,
    case: Case,
    clustered: ClusteredWorkload,
    density: float,
    record: Record,
) -> Contest:
    """Cluster attention at one density, beside dense and other sparse kernels.

    Args:
        record: gets the kernels of others that can't run here, with the reason.
    """
    from kernels.cluster_attention.fused import attend_with

    top_p, kept, found = select_density(clustered, density)
    q, head_dim = clustered.q_sorted, case.workload.head_dim
    key = attend_key(case, density)
    entries = entries_of(place, chip, key["op"])

    def run(name: str) -> Tensor:
        return behave(
            name,
            lambda: attend_with(
                q, clustered.k_sorted, clustered.v_sorted, clustered.q_offsets,
                clustered.k_offsets, kept, head_dim**-0.5, None, None, entries[name],
            ),
            is_timed=True,
        )  # fmt: skip

    others: dict[str, Attend] = {}
    dense = dense_baselines(clustered, "fused")
    for name, build in (
        (_FLASH_4, lambda: flash_attention_4(clustered)),
        ("flashinfer", lambda: flashinfer_blocks(clustered, kept)),
    ):
        absent, kind = record.content["absent"], "dense" if name == _FLASH_4 else "others"
        if name in absent or record.is_dropped(kind, name):
            continue
        record.start(kind, name, "build")
        try:
            (dense if kind == "dense" else others)[name] = build()
        except BaselineUnavailable:
            absent[name] = "not installed"
        except Exception as error:  # another's kernel: whatever it is leaves it out
            absent[name] = reason(error)
    return Contest(
        key=key,
        work=attend_work(case, density),
        entries=entries,
        run=run,
        fault=_close_to(ExactRows(clustered, kept, has_virtual=False), q.dtype),
        dense=dense,
        others=others,
        is_dense_right=_close_to(ExactRows(clustered, None, has_virtual=False), q.dtype),
        facts={
            "density": found,
            "top_p": top_p,
            "gflop": 4 * head_dim * case.workload.heads * case.workload.tokens**2 / 1e9,
        },
    )


def step_contests(
    place: Place,
    chip: str,
    case: Case,
    clustered: ClusteredWorkload,
    keys: list[dict[str, Any]],
) -> Iterator[Contest]:
    """One k-means iteration of the keys, the sort of their labels, and routing of two heads."""
    for key, make in zip(step_keys(case), (_kmeans, _sort, _route), strict=True):
        if key in keys:
            yield make(place, chip, case, clustered)


def step_keys(case: Case) -> list[dict[str, Any]]:
    """What the contests of `step_contests` are known by."""
    sizes = case.workload.sizes
    ops = (f"assign D{sizes['head_dim']}", "sort", f"route D{sizes['head_dim']}")
    return [{"op": op, "case": case.name, **sizes} for op in ops]


def _kmeans(place: Place, chip: str, case: Case, clustered: ClusteredWorkload) -> Contest:
    from kernels.kmeans import fused

    x, centroids = clustered.k, clustered.k_clusters.centroids
    key = step_keys(case)[0]
    entries = entries_of(place, chip, key["op"])
    head = x[0, 0, :_CHECKED].double()
    rounded = centroids.to(x.dtype)[0, 0].double()
    scores = head @ rounded.t() - rounded.square().sum(-1) / 2
    slack = 64 * torch.finfo(torch.float32).eps * scores.abs().max()

    def fault(labels: Tensor) -> tuple[str | None, float | None]:
        own = scores.gather(1, labels[0, 0, :_CHECKED, None].long())[:, 0]
        miss = (scores.amax(-1) - own).max()
        return (None if miss <= slack else f"a token is not nearest to its centroid: {miss}"), None

    return Contest(
        key=key,
        work=float(centroids.shape[2] * x.shape[1] * x.shape[2]),
        entries=entries,
        run=lambda name: fused.lloyd(x, centroids, 1, entries[name])[0],
        fault=fault,
    )


def _sort(place: Place, chip: str, case: Case, clustered: ClusteredWorkload) -> Contest:
    from kernels.permutation import fused

    labels, num_clusters = clustered.k_clusters.labels, case.workload.num_k_clusters
    key = step_keys(case)[1]
    entries = entries_of(place, chip, key["op"])
    expected = labels.argsort(dim=-1, stable=True)

    def fault(perm: Tensor) -> tuple[str | None, float | None]:
        return (
            None if torch.equal(perm, expected) else "the order is not that of a stable sort"
        ), None

    return Contest(
        key=key,
        work=float(labels.numel()),
        entries=entries,
        run=lambda name: fused.counting_sort(labels, num_clusters, entries[name])[0],
        fault=fault,
        others={"torch.sort": lambda: labels.argsort(dim=-1, stable=True)},
    )


def _route(place: Place, chip: str, case: Case, clustered: ClusteredWorkload) -> Contest:
    from kernels import route
    from kernels.routing import fused

    heads = slice(0, 2)  # stand-ins of pairs are asked for a few heads at a time
    video = clustered.k.shape[2]
    k, v = (x[:, heads, :video] for x in (clustered.k_sorted, clustered.v_sorted))
    offsets = clustered.k_offsets[:, heads, : clustered.k_clusters.sizes.shape[-1] + 1]
    q_centroids = clustered.q_clusters.centroids[:, heads]
    scale = k.shape[-1] ** -0.5
    key = step_keys(case)[2]
    entries = entries_of(place, chip, key["op"])
    head = (q_centroids[:, :1].to(k.dtype), k[:, :1], v[:, :1])
    routes = route(*(x.float().cpu() for x in head), offsets[:, :1].cpu(), impl="reference")
    expected = {0: routes.mass, 1: routes.error, 3: routes.stand_ins.values}

    def fault(found: tuple[Tensor, ...]) -> tuple[str | None, float | None]:
        errors = [
            ((found[i][:, :1].float().cpu() - right).norm() / right.norm()).item()
            for i, right in expected.items()
        ]
        budget = ERROR_BUDGET[k.dtype]
        error = next((e for e in errors if not e <= budget), max(errors))
        return (None if error <= budget else f"wrong result: relative error {error:.2e}"), error

    return Contest(
        key=key,
        work=float(q_centroids.shape[2] * video),
        entries=entries,
        run=lambda name: fused.route_with(q_centroids, k, v, offsets, scale, True, entries[name]),
        fault=fault,
    )


def _close_to(exact: ExactRows, dtype: torch.dtype) -> Callable:
    def fault(out: Tensor) -> tuple[str | None, float | None]:
        error = exact.error_of(out)
        wrong = (
            None if error <= ERROR_BUDGET[dtype] else f"wrong result: relative error {error:.2e}"
        )
        return wrong, None if error != error else error

    return fault
