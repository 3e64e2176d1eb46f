"""Clusterings and the plain dense arithmetic that the ops are held against."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

import kernels

LENGTHS = (1, 17, 63, 64, 257, 1000)
AT_NIGHT = (63, 1000)
"""Of these lengths those that the day's do without: 17 and 257 leave a tile part empty too."""


def grid(*axes: Sequence, at_night: Sequence = ()) -> list:
    """Parameters for `parametrize`: all combinations of the values of the axes.

    A few, in which any two values of any two axes meet, always run; the others are `nightly`, as
    are all that hold a value of `at_night`.
    """
    rows = list(product(*(range(len(axis)) for axis in axes)))
    chosen = _meeting(
        [
            row
            for row in rows
            if not any(axis[place] in at_night for axis, place in zip(axes, row, strict=True))
        ]
    )
    return [
        pytest.param(
            *(axis[place] for axis, place in zip(axes, row, strict=True)),
            marks=() if row in chosen else pytest.mark.nightly,
        )
        for row in rows
    ]


def _meeting(rows: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Rows in which all pairs of entries occur, each time the one with the most new pairs."""

    def pairs(row: tuple[int, ...]) -> set[Any]:
        return set(combinations(enumerate(row), 2))

    left = set().union(*map(pairs, rows))
    chosen = set()
    while left:
        best = max(rows, key=lambda row: len(pairs(row) & left))
        chosen.add(best)
        left -= pairs(best)
    return chosen


@dataclass(frozen=True)
class Case:
    """One problem of cluster attention: tokens in their original order, labels and a map."""

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H S D"]
    v: Float[Tensor, "B H S D"]
    q_labels: Int[Tensor, "B H N"]
    k_labels: Int[Tensor, "B H S"]
    kept: Bool[Tensor, "B H Q K"]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Case":
        """The same with other precision of q, k and v, on another device."""
        return Case(
            *(x.to(device, dtype) for x in (self.q, self.k, self.v)),
            *(x.to(device) for x in (self.q_labels, self.k_labels, self.kept)),
        )

    def with_kept(self, kept: Bool[Tensor, "B H Q K"]) -> "Case":
        """The same with another map."""
        return Case(self.q, self.k, self.v, self.q_labels, self.k_labels, kept)


def make_case(
    *,
    batch: int = 1,
    heads: int = 2,
    n: int = 257,
    n_keys: int | None = None,
    dim: int = 32,
    num_q: int = 7,
    num_k: int = 11,
    kept_share: float = 0.4,
    labels: str = "ragged",
    seed: int = 0,
) -> Case:
    """Random tokens; `labels` is ragged (some clusters empty), giant or own (one token each)."""
    generator = torch.Generator().manual_seed(seed)
    n_keys = n if n_keys is None else n_keys
    q, k, v = (
        torch.randn(batch, heads, length, dim, generator=generator)
        for length in (n, n_keys, n_keys)
    )

    def draw(length: int, num: int) -> Tensor:
        if labels == "own":
            assert num == length
            order = torch.rand(batch, heads, length, generator=generator)
            return order.argsort(dim=-1).int()
        if labels == "giant":
            return torch.full((batch, heads, length), num // 2, dtype=torch.int32)
        uniform = torch.rand(batch, heads, length, generator=generator)
        return (uniform.square() * num).int().clamp(max=num - 1)

    q_labels, k_labels = draw(n, num_q), draw(n_keys, num_k)
    kept = torch.rand(batch, heads, num_q, num_k, generator=generator) < kept_share
    # Every query cluster keeps a cluster that holds a key.
    some_key = torch.randint(n_keys, (batch, heads, num_q), generator=generator)
    kept.scatter_(-1, k_labels.long().gather(-1, some_key)[..., None], True)
    return Case(q, k, v, q_labels, k_labels, kept)


def run(
    case: Case,
    *,
    compensate: bool = False,
    stand_ins: kernels.StandIns | None = None,
    **options,
) -> Tensor:
    """The op under test, from original order to original order."""
    num_q, num_k = case.kept.shape[-2:]
    q_order = kernels.sort_by_label(case.q_labels, num_q)
    k_order = kernels.sort_by_label(case.k_labels, num_k)
    if compensate:
        means = (cluster_means(x.double(), case.k_labels, num_k) for x in (case.k, case.v))
        stand_ins = kernels.StandIns(*(mean.to(case.q.dtype) for mean in means))
    permuted = kernels.cluster_attention(
        kernels.permute(case.q, q_order),
        kernels.permute(case.k, k_order),
        kernels.permute(case.v, k_order),
        q_order.offsets,
        k_order.offsets,
        case.kept,
        stand_ins=stand_ins,
        **options,
    )
    return kernels.unpermute(permuted, q_order)


def cluster_means(
    x: Float[Tensor, "B H N D"], labels: Int[Tensor, "B H N"], num: int
) -> Float[Tensor, "B H C D"]:
    """Mean of the tokens of each cluster by a one-hot product; zeros where there is none."""
    one_hot_BHNC = F.one_hot(labels.long(), num).to(x.dtype)
    return one_hot_BHNC.mT @ x / one_hot_BHNC.sum(-2).clamp(min=1)[..., None]


def token_mask(case: Case) -> Bool[Tensor, "B H N S"]:
    """The map spread out over single tokens."""
    num_k = case.kept.shape[-1]
    rows = case.kept.gather(2, case.q_labels.long()[..., None].expand(-1, -1, -1, num_k))
    columns = case.k_labels.long()[:, :, None].expand(-1, -1, rows.shape[2], -1)
    return rows.gather(3, columns)


def masked_attention(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    """Masked dense attention, spelt out in `dtype`: scores, softmax, values."""
    q, k, v = (x.to(dtype) for x in (case.q, case.k, case.v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~token_mask(case), -math.inf).softmax(-1) @ v


def compensated_attention(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same with every skipped key replaced by the mean of its cluster, key and value.

    n equal keys weigh n·exp(score) together, so this is what compensation must give.
    """
    num_k = case.kept.shape[-1]
    q, k, v = (x.to(dtype) for x in (case.q, case.k, case.v))
    index = case.k_labels.long()[..., None].expand(-1, -1, -1, k.shape[-1])
    mean_k, mean_v = (
        cluster_means(x.double(), case.k_labels, num_k).to(case.q.dtype).to(dtype)
        for x in (case.k, case.v)
    )
    mean_k, mean_v = mean_k.gather(2, index), mean_v.gather(2, index)
    mask = token_mask(case)
    scores = torch.where(mask, q @ k.mT, q @ mean_k.mT) / math.sqrt(q.shape[-1])
    weights = scores.softmax(-1)
    return (weights * mask) @ v + (weights * ~mask) @ mean_v


def assert_as_exact_as(
    actual: Tensor, low_precision: Tensor, exact: Tensor, size: float | Tensor | None = None
) -> None:
    """`actual` errs no more than twice what plain arithmetic in the same precision does.

    Twice, and a few units in the last place of the largest value: another order of summation. What
    is a difference of larger values errs by the units of those: `size` is then the largest.
    """
    assert torch.isfinite(actual).all()
    size = exact.abs().max() if size is None else size
    eps = torch.finfo(actual.dtype).eps
    error = (actual.double() - exact).abs().max()
    budget = 2 * (low_precision.double() - exact).abs().max() + 4 * eps * size
    assert error <= budget, f"error {error:.3g} is above the budget {budget:.3g}"


def stand_in_attention(
    case: Case, stand_ins: kernels.StandIns, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Masked attention where each skipped cluster that holds keys adds one virtual key."""

    def of_queries(x: Tensor, shared_dims: int) -> Tensor:  # [B, H, (Q), K, ...] to [B, H, N, ...]
        if x.ndim == shared_dims:
            x = x[:, :, None].expand(-1, -1, case.kept.shape[2], *x.shape[2:])
        labels = case.q_labels.long()
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        head = torch.arange(x.shape[1], device=x.device)[:, None]
        return x[batch, head, labels].to(dtype)

    sizes = F.one_hot(case.k_labels.long(), case.kept.shape[-1]).sum(2)
    weights = sizes.double().log() if stand_ins.log_weights is None else stand_ins.log_weights
    weights = of_queries(weights, 3)
    keys, values = of_queries(stand_ins.keys, 4), of_queries(stand_ins.values, 4)
    stands = of_queries(~case.kept & (sizes > 0)[:, :, None], 3).bool()
    q, k, v = (x.to(dtype) for x in (case.q, case.k, case.v))
    scale = 1 / math.sqrt(q.shape[-1])
    scores = (q @ k.mT * scale).masked_fill(~token_mask(case), -math.inf)
    virtual = (q[..., None, :] @ keys.mT)[..., 0, :] * scale + weights
    virtual = virtual.masked_fill(~stands, -math.inf)
    p, virtual_p = (
        torch.cat([scores, virtual], -1)
        .softmax(-1)
        .split([scores.shape[-1], virtual.shape[-1]], -1)
    )
    return p @ v + (virtual_p[..., None, :] @ values)[..., 0, :]
