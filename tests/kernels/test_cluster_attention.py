"""Cluster attention against dense attention in fp64."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from tests.kernels.cases import (
    assert_as_exact_as,
    compensated_attention,
    grid,
    make_case,
    masked_attention,
    run,
)

reference = importlib.import_module("kernels.cluster_attention.reference")

LENGTHS = (1, 17, 63, 64, 257, 1000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(case, *, compensate: bool = False) -> None:
    """The op in the precision of the case against the same arithmetic in fp64."""
    dense = compensated_attention if compensate else masked_attention
    actual = run(case, compensate=compensate)
    assert actual.dtype is case.q.dtype
    assert_as_exact_as(actual, dense(case, case.q.dtype), dense(case))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("compensate", [False, True])
def test_everything_kept_is_dense_attention(n, compensate):
    case = make_case(n=n)
    case = case.with_kept(torch.ones_like(case.kept))
    actual = run(case, compensate=compensate)
    exact = F.scaled_dot_product_attention(case.q.double(), case.k.double(), case.v.double())
    stock = F.scaled_dot_product_attention(case.q, case.k, case.v)
    assert_as_exact_as(actual, stock, exact)


def test_a_map_without_the_empty_clusters_is_dense_too():
    # Selection never keeps an empty cluster: the dense path must not depend on that.
    case = make_case(n=64, num_k=40)
    k_sizes = kernels.sort_by_label(case.k_labels, 40).sizes
    assert (k_sizes == 0).any()
    kept = (k_sizes > 0)[:, :, None].expand_as(case.kept)
    full = case.with_kept(torch.ones_like(kept))
    assert torch.equal(run(case.with_kept(kept)), run(full))


@pytest.mark.parametrize(("n", "dtype", "compensate"), grid(LENGTHS, DTYPES, (False, True)))
def test_any_map_is_masked_attention(n, dtype, compensate):
    check(make_case(n=n, batch=2).to(dtype), compensate=compensate)


@pytest.mark.parametrize("dim", [8, 64, 96, 128])
def test_head_dims(dim):
    check(make_case(n=200, dim=dim))


@pytest.mark.parametrize("compensate", [False, True])
def test_more_keys_than_queries(compensate):
    check(make_case(n=100, n_keys=331), compensate=compensate)


@pytest.mark.parametrize("compensate", [False, True])
def test_one_token_per_cluster(compensate):
    check(make_case(n=63, num_q=63, num_k=63, labels="own"), compensate=compensate)


@pytest.mark.parametrize("compensate", [False, True])
def test_one_giant_cluster_among_empty_ones(compensate):
    case = make_case(n=257, labels="giant", kept_share=0.0)
    assert case.kept.sum(-1).max() == 1
    check(case, compensate=compensate)


@pytest.mark.parametrize("compensate", [False, True])
def test_all_tokens_identical(compensate):
    case = make_case(n=257)
    same = [x[:, :, :1].expand_as(x) for x in (case.q, case.k, case.v)]
    case = type(case)(*same, *_rest(case))
    # Every average of equal values is that value, whatever is skipped.
    torch.testing.assert_close(run(case, compensate=compensate), case.v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compensate", [False, True])
def test_large_logits(compensate):
    case = make_case(n=257)
    case = type(case)(30 * case.q, 30 * case.k, case.v, *_rest(case))
    check(case, compensate=compensate)


def _rest(case):
    return case.q_labels, case.k_labels, case.kept


def test_some_heads_dense_and_some_sparse():
    case = make_case(n=257, batch=2, heads=3)
    kept = case.kept.clone()
    kept[0, 1] = True
    kept[1, 0] = True
    check(case.with_kept(kept))


def test_a_query_cluster_that_keeps_nothing_gets_zeros():
    case = make_case(n=64, num_q=3)
    kept = case.kept.clone()
    kept[:, :, 1] = False
    out = run(case.with_kept(kept))
    alone = case.q_labels == 1
    assert alone.any()
    assert (out[alone] == 0).all()
    assert torch.isfinite(out).all()


def test_with_compensation_it_attends_to_the_centroids_alone():
    case = make_case(n=64, num_q=3)
    kept = case.kept.clone()
    kept[:, :, 1] = False
    check(case.with_kept(kept), compensate=True)


@pytest.mark.parametrize("compensate", [False, True])
def test_native_bf16_products(monkeypatch, compensate):
    monkeypatch.setattr(reference, "multiplies_bf16_tiles", lambda: True)
    check(make_case(n=200).to(torch.bfloat16), compensate=compensate)


def test_scale():
    case = make_case(n=100)
    sharper = type(case)(3 * case.q, case.k, case.v, *_rest(case))
    scale = 3 / case.q.shape[-1] ** 0.5
    torch.testing.assert_close(run(case, scale=scale), run(sharper))


@pytest.mark.parametrize("compensate", [False, True])
def test_twice_the_same(compensate):
    case = make_case(n=1000)
    assert torch.equal(run(case, compensate=compensate), run(case, compensate=compensate))


@pytest.mark.parametrize("compensate", [False, True])
def test_no_uninitialised_memory_is_read(poisoned_memory, compensate):
    check(make_case(n=257, num_k=40), compensate=compensate)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_changes_nothing(threads):
    case = make_case(n=257)
    expected = run(case)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(run(case), expected)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_strided_input():
    case = make_case(n=100)
    # [B, N, H, D] seen as [B, H, N, D]: the layout in which models hand q, k and v over.
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k, case.v)]
    num_q, num_k = case.kept.shape[-2:]
    q_offsets = kernels.sort_by_label(case.q_labels, num_q).offsets
    k_offsets = kernels.sort_by_label(case.k_labels, num_k).offsets
    out = kernels.cluster_attention(*strided, q_offsets, k_offsets, case.kept)
    plain = (case.q, case.k, case.v)
    assert torch.equal(out, kernels.cluster_attention(*plain, q_offsets, k_offsets, case.kept))


def test_inputs_stay_as_they_were():
    case = make_case(n=100)
    before = [x.clone() for x in (case.q, case.k, case.v, case.kept)]
    run(case, compensate=True)
    after = (case.q, case.k, case.v, case.kept)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_inference_mode(mode):
    case = make_case(n=100)
    expected = run(case)
    with mode():
        assert torch.equal(run(case), expected)


@settings(max_examples=40)
@given(
    n=st.integers(1, 90),
    n_keys=st.integers(1, 90),
    num_q=st.integers(1, 12),
    num_k=st.integers(1, 12),
    kept_share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    compensate=st.booleans(),
)
def test_law_any_shape_is_masked_attention(n, n_keys, num_q, num_k, kept_share, seed, compensate):
    case = make_case(
        n=n,
        n_keys=n_keys,
        num_q=num_q,
        num_k=num_k,
        kept_share=kept_share,
        heads=1,
        dim=8,
        seed=seed,
    )
    check(case, compensate=compensate)


@settings(max_examples=20)
@given(kept_share=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_law_output_is_an_average_of_values(kept_share, seed):
    case = make_case(n=80, kept_share=kept_share, seed=seed)
    out = run(case, compensate=True)
    low, high = case.v.amin(2, keepdim=True), case.v.amax(2, keepdim=True)
    # The bound of a sum of n rounded terms.
    slack = case.v.shape[2] * torch.finfo(torch.float32).eps * case.v.abs().max()
    assert (out >= low - slack).all()
    assert (out <= high + slack).all()


def test_shapes_that_do_not_fit():
    case = make_case(n=64)
    q_offsets = kernels.sort_by_label(case.q_labels, case.kept.shape[2]).offsets
    with pytest.raises(ValueError, match="k_offsets must be"):
        kernels.cluster_attention(case.q, case.k, case.v, q_offsets, q_offsets, case.kept)


def test_fused_is_never_swapped_silently():
    with pytest.raises(kernels.ImplUnavailable, match="fused"):
        run(make_case(n=64), impl="fused")
    assert torch.equal(run(make_case(n=64), impl="reference"), run(make_case(n=64)))
