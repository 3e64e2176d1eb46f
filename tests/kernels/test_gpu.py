"""The fused ops on a real GPU, each check also with the reference on a CPU: a test of the test.

Errors are held against plain arithmetic in the same precision, on the same device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import kernels
from tests.kernels.cases import (
    Case,
    assert_as_exact_as,
    cluster_means,
    compensated_attention,
    grid,
    make_case,
    masked_attention,
    stand_in_attention,
)
from tests.kernels.routing_cases import check
from tests.kernels.test_kmeans import assert_consistent, distances, start, tokens

FP16, BF16 = torch.float16, torch.bfloat16
# No tile divides it, and every kind of tile has some of it.
NUM_TOKENS = {"cuda": 4999, "cpu": 257}


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "cpu"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    return request.param


def impl_on(device: str) -> str:
    return {"cuda": "fused", "cpu": "reference"}[device]


@contextmanager
def nothing_waits(device: str) -> Iterator[None]:
    """An error where the host waits for the GPU."""
    if device == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass(frozen=True)
class Call:
    """All that one sparse call takes; the tokens are in their original order."""

    case: Case
    q_start: Tensor
    k_start: Tensor
    compensate: bool
    permuted: bool
    impl: str
    variant: str | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """The result in the order of the tokens, and the labels of queries and keys."""
        q, k, v = self.case.q, self.case.k, self.case.v
        q_clusters = kernels.kmeans(q, self.q_start, 2, impl=self.impl)
        k_clusters = kernels.kmeans(k, self.k_start, 2, impl=self.impl)
        q_order, k_order = self.sort(q_clusters), self.sort(k_clusters)
        stand_ins = None
        if self.compensate:
            v_means = kernels.cluster_means(v, k_order, impl=self.impl)
            stand_ins = kernels.StandIns(k_clusters.centroids, v_means)
        out = kernels.cluster_attention(
            q if self.permuted else kernels.permute(q, q_order, impl=self.impl),
            kernels.permute(k, k_order, impl=self.impl),
            kernels.permute(v, k_order, impl=self.impl),
            q_order.offsets,
            k_order.offsets,
            self.case.kept,
            stand_ins=stand_ins,
            q_perm=q_order.perm if self.permuted else None,
            impl=self.impl,
            variant=self.variant,
        )
        if not self.permuted:
            out = kernels.unpermute(out, q_order, impl=self.impl)
        return out, q_clusters.labels, k_clusters.labels

    def sort(self, clusters: kernels.KMeansResult) -> kernels.Permutation:
        if clusters.order is not None:
            return clusters.order
        return kernels.sort_by_label(clusters.labels, clusters.sizes.shape[-1], impl=self.impl)

    def new_tokens(self, seed: int) -> None:
        """Other q, k and v, in the memory of these."""
        other = make_case(n=self.case.q.shape[2], dim=self.case.q.shape[3], seed=seed)
        for name in ("q", "k", "v"):
            getattr(self.case, name).copy_(getattr(other, name))


def make_call(
    device: str, dtype: torch.dtype, dim: int, compensate: bool = True, permuted: bool = True
) -> Call:
    num_q, num_k = (7, 11) if device == "cpu" else (20, 70)
    case = make_case(n=NUM_TOKENS[device], dim=dim, num_q=num_q, num_k=num_k).to(dtype, device)
    q_start, k_start = start(case.q, num_q), start(case.k, num_k)
    return Call(case, q_start, k_start, compensate, permuted, impl_on(device))


@pytest.mark.parametrize(
    ("dtype", "dim", "compensate", "permuted"),
    grid((BF16, FP16), (64, 128), (False, True), (False, True)),
)
def test_a_sparse_call_is_as_exact_as_plain_arithmetic(device, dtype, dim, compensate, permuted):
    call = make_call(device, dtype, dim, compensate, permuted)
    call()  # compiles
    with nothing_waits(device):
        out, q_labels, k_labels = call()
    case = Case(call.case.q, call.case.k, call.case.v, q_labels, k_labels, call.case.kept)
    attention = compensated_attention if compensate else masked_attention
    assert compensate or every_query_keeps_a_key(case)
    assert out.dtype is dtype
    assert_as_exact_as(out, attention(case, dtype), attention(case))


def every_query_keeps_a_key(case: Case) -> bool:
    """Plain masked attention knows no other case."""
    num_k = case.kept.shape[-1]
    sizes = kernels.sort_by_label(case.k_labels, num_k, impl="reference").sizes
    return bool((case.kept & (sizes > 0)[:, :, None]).any(-1).all())


@pytest.mark.parametrize(
    ("dtype", "dim", "compensate", "permuted"),
    grid((BF16, FP16), (64, 128), (False, True), (False, True)),
)
def test_each_attend_variant(device, dtype, dim, compensate, permuted):
    call = make_call(device, dtype, dim, compensate, permuted)
    expected, *_ = call()
    variants = [None]
    if device == "cuda":
        from kernels.cluster_attention import fused

        variants = list(fused.device_variants(torch.device("cuda", 0), dim))
        assert "portable" in variants
    for variant in variants:
        call = replace(call, variant=variant)
        call()  # compiles
        with nothing_waits(device):
            out, q_labels, k_labels = call()
        case = Case(call.case.q, call.case.k, call.case.v, q_labels, k_labels, call.case.kept)
        attention = compensated_attention if compensate else masked_attention
        assert_as_exact_as(out, attention(case, dtype), attention(case))
        # A race between warps would change the bits from call to call.
        assert all(torch.equal(call()[0], out) for _ in range(5))
        assert out.shape == expected.shape


@pytest.mark.parametrize(("dtype", "dim"), grid((BF16, FP16), (64, 128)))
def test_kmeans(device, dtype, dim):
    x = tokens(NUM_TOKENS[device], dim=dim).to(device, dtype)
    before = start(x, 35)
    with nothing_waits(device):
        result = kernels.kmeans(x, before, 1, impl=impl_on(device))
    to_own = distances(x, before).gather(-1, result.labels.long()[..., None])[..., 0]
    nearest = distances(x, before).amin(-1)
    # Twice the rounding of a sum of D products, in each of the two distances that it compares.
    rounding = (dim + 4) * torch.finfo(torch.float32).eps * x.double().square().sum(-1).max()
    assert (to_own - nearest).max() <= 4 * rounding
    assert_consistent(x, before, result)
    assert result.impl == impl_on(device)


@pytest.mark.parametrize(("dtype", "dim"), grid((BF16, FP16), (64, 128)))
def test_means_of_clusters(device, dtype, dim):
    n = NUM_TOKENS[device]
    x = tokens(n, dim=dim).to(device, dtype)
    labels = torch.arange(n, device=device).remainder(7).int().expand(1, 2, n)
    with nothing_waits(device):
        order = kernels.sort_by_label(labels, 9, impl=impl_on(device))
        means = kernels.cluster_means(x, order, impl=impl_on(device))
    bound = 32 * torch.finfo(torch.float32).eps * x.abs().max()
    assert (means - cluster_means(x.double(), labels, 9)).abs().max() <= bound
    assert (means[:, :, 7:] == 0).all()


def routed_call(call: Call, per_pair: bool) -> tuple[kernels.Routes, Tensor]:
    """Routes of the keys sorted by the labels of the case, and attention with their stand-ins."""
    case, impl = call.case, call.impl
    num_q, num_k = case.kept.shape[-2:]
    q_order = kernels.sort_by_label(case.q_labels, num_q, impl=impl)
    k_order = kernels.sort_by_label(case.k_labels, num_k, impl=impl)
    centroids = kernels.cluster_means(case.q, q_order, impl=impl)
    # Room behind the keys, as joint models leave for the text.
    k, v = (
        kernels.permute(x, k_order, room=5, impl=impl)[:, :, : x.shape[2]]
        for x in (case.k, case.v)
    )
    routes = kernels.route(centroids, k, v, k_order.offsets, per_pair=per_pair, impl=impl)
    out = kernels.cluster_attention(
        *(case.q, k, v, q_order.offsets, k_order.offsets, case.kept),
        stand_ins=routes.stand_ins,
        q_perm=q_order.perm,
        impl=impl,
    )
    return routes, out


@pytest.mark.parametrize(
    ("dtype", "dim", "per_pair"), grid((BF16, FP16), (64, 128), (False, True))
)
def test_routing(device, dtype, dim, per_pair):
    call = make_call(device, dtype, dim)
    routed_call(call, per_pair)  # compiles
    with nothing_waits(device):
        routes, out = routed_call(call, per_pair)
    check(call.case, per_pair, call.impl)
    stand_ins = routes.stand_ins
    assert_as_exact_as(
        out,
        stand_in_attention(call.case, stand_ins, dtype),
        stand_in_attention(call.case, stand_ins),
    )
    again, _ = routed_call(call, per_pair)
    assert torch.equal(again.error, routes.error)
    assert torch.equal(again.stand_ins.keys, stand_ins.keys)


@pytest.mark.parametrize("num", [1, 40, 2000])
def test_sort_there_and_back(device, num):
    n, impl = NUM_TOKENS[device], impl_on(device)
    generator = torch.Generator().manual_seed(num)
    labels = torch.randint(num, (2, 3, n), generator=generator, dtype=torch.int32).to(device)
    x = torch.randn(2, n, 3, 128, generator=generator).to(device, BF16).transpose(1, 2)
    with nothing_waits(device):
        order = kernels.sort_by_label(labels, num, impl=impl)
        there = kernels.permute(x, order, impl=impl)
        back = kernels.unpermute(there, order, impl=impl)
    assert torch.equal(order.perm, labels.sort(dim=-1, stable=True).indices)
    counts = torch.stack([head.bincount(minlength=num) for head in labels.flatten(0, 1).long()])
    assert torch.equal(order.sizes.flatten(0, 1).long(), counts)
    assert torch.equal(there, x.gather(2, order.perm[..., None].expand_as(x)))
    assert torch.equal(back, x)


def test_twice_the_same_bits(device):
    call = make_call(device, BF16, 128)
    for first, second in zip(call(), call(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("host", ["autocast", "reduced precision"])
def test_what_the_host_sets_changes_no_bit(device, host):
    call = make_call(device, BF16, 64)
    expected = call()
    setting = torch.autocast(device, FP16) if host == "autocast" else nullcontext()
    torch.set_float32_matmul_precision("medium" if host == "reduced precision" else "highest")
    try:
        with setting:
            results = call()
    finally:
        torch.set_float32_matmul_precision("highest")
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.dtype is wanted.dtype
        assert torch.equal(actual, wanted)


def captured(call: Callable[[], tuple[Tensor, ...]], device: str) -> Callable:
    """What replays the call as a CUDA graph, and returns its results; on a CPU, the call."""
    if device == "cpu":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles, and allocates what only the first call does
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def test_a_whole_sparse_call_as_a_graph(device):
    call = make_call(device, BF16, 128)
    before = [x.clone() for x in call()]
    replay = captured(call, device)
    for seed in (1, 2):
        call.new_tokens(seed)
        results = [x.clone() for x in replay()]
        for result, eager, old in zip(results, call(), before, strict=True):
            assert torch.equal(result, eager)
            assert not torch.equal(result, old)


@pytest.mark.gpu
def test_a_wait_is_noticed():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    x = torch.zeros(1, device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"), nothing_waits("cuda"):
        x.item()
