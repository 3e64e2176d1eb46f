"""The check of the first fused result; run by `test_fused.py`."""

import pytest
import torch

import kernels
from kernels import exact
from kernels.cluster_attention import fused
from tests.kernels.cases import compensated_attention, make_case, masked_attention, run

FP16 = torch.float16


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    monkeypatch.setattr(exact, "_faults", {})


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
def test_a_right_result_passes_once_for_each_kind(dim, compensate, monkeypatch):
    case = make_case(n=100, dim=dim, batch=2, num_q=3).to(FP16)
    first = run(case, compensate=compensate, impl="fused")
    assert list(exact._faults.values()) == [None]
    monkeypatch.setattr(exact, "exact_rows", lambda *_: pytest.fail("it is checked again"))
    assert torch.equal(run(case, compensate=compensate, impl="fused"), first)


def broken(change):
    right = fused.cluster_attention

    def wrong(*arguments):
        return change(right(*arguments))

    return wrong


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda out: out * 1.1,
        lambda out: out.roll(1, dims=2),
        lambda out: out.index_fill(1, torch.tensor([1]), 0.0),
        lambda out: out.index_fill(2, torch.tensor([out.shape[2] - 1]), float("nan")),
    ],
    ids=["zeros", "scaled", "shifted", "a head", "the last row is NaN"],
)
def test_a_wrong_chip_is_refused_from_its_first_call_on(change, monkeypatch):
    case = make_case(n=100, dim=64, num_q=3).to(FP16)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "cluster_attention", broken(change))
        with pytest.raises(kernels.ImplUnavailable, match=r"wrong attention on .* in float16"):
            run(case, impl="fused")
    with pytest.raises(kernels.ImplUnavailable, match="Set impl to reference"):
        run(case, impl="fused")


@pytest.mark.parametrize("with_stand_ins", [False, True])
def test_the_exact_rows_are_those_of_attention_spelt_out(with_stand_ins):
    case = make_case(n=100, dim=64, batch=2, heads=3)
    whole = (compensated_attention if with_stand_ins else masked_attention)(case)
    q_order, k_order = (
        kernels.sort_by_label(labels, kept)
        for labels, kept in ((case.q_labels, 7), (case.k_labels, 11))
    )
    k, v = (kernels.permute(x, k_order) for x in (case.k, case.v))
    means = [kernels.cluster_means(x, k_order) for x in (case.k, case.v)]
    stand_ins = kernels.StandIns(*means) if with_stand_ins else None
    rows = exact.some_rows(100, torch.device("cpu"))
    assert {0, 99} <= set(rows.tolist())
    for at in ((0, 0), (1, 2)):
        places = q_order.perm[at][rows].long()
        some = exact.exact_rows(
            *(case.q[at][places], k, v, q_order.offsets, k_order.offsets, case.kept),
            *(64**-0.5, stand_ins, at, rows),
        )
        assert exact.relative_error(whole[at][places], some) < 1e-6


def test_each_kind_of_call_is_checked_by_itself(monkeypatch):
    monkeypatch.setattr(exact, "exact_rows", lambda queries, *_: queries.double())
    q = torch.zeros(1, 1, 8, 64, dtype=FP16)
    shared, pairs = torch.zeros(1, 1, 3, 64), torch.zeros(1, 1, 2, 3, 64)
    perm = torch.arange(8).view(1, 1, 8)
    kinds = [
        (None, None),
        (kernels.StandIns(shared, shared), None),
        (kernels.StandIns(pairs, pairs, torch.zeros(1, 1, 2, 3)), None),
        (None, perm),
    ]
    for _ in range(2):
        for stand_ins, q_perm in kinds:
            exact.check_first_call(q, q, q, q, None, None, None, 1.0, stand_ins, q_perm)
    assert len(exact._faults) == len(kinds)
