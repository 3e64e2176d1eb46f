"""fp32 is full fp32, whatever the host program has set for its own products."""

import importlib
import threading
from contextlib import contextmanager

import pytest
import torch

import kernels
from kernels import full_fp32
from tests.kernels.cases import make_case, run
from tests.kernels.test_kmeans import start, tokens

CUBLAS, ONEDNN = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def precisions():
    """What cuBLAS and oneDNN do with fp32 products."""
    return CUBLAS.fp32_precision, ONEDNN.fp32_precision


@pytest.fixture(autouse=True)
def _settings_of_their_own():
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


@contextmanager
def matmul_precision(name):
    torch.set_float32_matmul_precision(name)
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("name", "outside"), [("high", ("tf32", "tf32")), ("medium", ("tf32", "bf16"))]
)
def test_reduced_precision_is_off_inside_and_back_after(name, outside):
    torch.set_float32_matmul_precision(name)
    assert precisions() == outside
    with full_fp32():
        assert precisions() == ("ieee", "ieee")
        assert torch.get_float32_matmul_precision() == "highest"
        with full_fp32():
            assert precisions() == ("ieee", "ieee")
        assert precisions() == ("ieee", "ieee")
    assert precisions() == outside
    assert torch.get_float32_matmul_precision() == name


def test_an_error_restores_all():
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyError), full_fp32():
            raise KeyError
        assert torch.is_autocast_enabled("cpu")
    assert precisions() == ("tf32", "bf16")


def test_cublas_alone_is_restored_alone():
    CUBLAS.allow_tf32 = True
    assert precisions() == ("tf32", "ieee")
    with full_fp32():
        assert precisions() == ("ieee", "ieee")
    assert precisions() == ("tf32", "ieee")


def test_the_two_set_apart_by_torchs_newer_names():
    # torch.get_float32_matmul_precision raises in this state.
    CUBLAS.fp32_precision, ONEDNN.fp32_precision = "tf32", "bf16"
    with full_fp32():
        assert precisions() == ("ieee", "ieee")
    assert precisions() == ("tf32", "bf16")


def test_autocast_is_off_inside_and_as_it_was_after():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", torch.float16):
        with full_fp32():
            assert (x @ x).dtype is torch.float32
        assert (x @ x).dtype is torch.float16


@pytest.mark.parametrize("first_out", [0, 1])
def test_threads_leave_in_any_order(first_out):
    torch.set_float32_matmul_precision("medium")
    leave, left = [threading.Event(), threading.Event()], []
    inside = threading.Barrier(3)

    def hold(event):
        with full_fp32():
            inside.wait()
            event.wait()

    threads = [threading.Thread(target=hold, args=(event,)) for event in leave]
    for thread in threads:
        thread.start()
    inside.wait()
    assert precisions() == ("ieee", "ieee")
    for i in (first_out, 1 - first_out):
        leave[i].set()
        threads[i].join()
        left.append(precisions())
    assert left == [("ieee", "ieee"), ("tf32", "bf16")]


def test_what_the_program_lowers_meanwhile_holds_after_but_not_in_a_new_block():
    with full_fp32():
        torch.set_float32_matmul_precision("medium")
        with full_fp32():
            assert precisions() == ("ieee", "ieee")
    assert precisions() == ("tf32", "bf16")


def test_autocast_of_another_thread_is_its_own():
    seen = []

    def look():
        with torch.autocast("cpu", torch.bfloat16):
            entered.set()
            checked.wait()
            seen.append(torch.is_autocast_enabled("cpu"))

    entered, checked = threading.Event(), threading.Event()
    other = threading.Thread(target=look)
    other.start()
    entered.wait()
    with full_fp32():
        pass
    checked.set()
    other.join()
    assert seen == [True]


def _kmeans():
    x = tokens(700, heads=1, dim=64)
    result = kernels.kmeans(x, start(x, 40), 3)
    return result.labels, result.centroids, result.sizes


def _cluster_means():
    x = tokens(300, dim=64).half()
    labels = torch.arange(300).remainder(7).int().expand(1, 2, 300)
    return (kernels.cluster_means(x, kernels.sort_by_label(labels, 7)),)


def _attention(dtype, *, compensate=False, dense_heads=0):
    case = make_case(n=500, dim=64, heads=2).to(dtype)
    kept = case.kept.clone()
    kept[:, :dense_heads] = True
    return (run(case.with_kept(kept), compensate=compensate),)


OPS = {
    "kmeans": _kmeans,
    "cluster_means": _cluster_means,
    "attention": lambda: _attention(torch.float32),
    "compensated attention": lambda: _attention(torch.float32, compensate=True),
    "attention of which one head is dense": lambda: _attention(torch.float32, dense_heads=1),
    "dense attention": lambda: _attention(torch.float32, dense_heads=2),
    "attention in fp16": lambda: _attention(torch.float16),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("threads", [1, 2])
def test_ops_give_the_same_bits(op, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = OPS[op]()
        for host in (torch.autocast("cpu", torch.bfloat16), matmul_precision("medium")):
            with host:
                results = OPS[op]()
            for actual, wanted in zip(results, expected, strict=True):
                assert actual.dtype is wanted.dtype
                assert torch.equal(actual, wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("op", "module"), [("kmeans", "kmeans"), ("attention", "cluster_attention")]
)
def test_products_run_in_full_precision(op, module, monkeypatch):
    # Whether lower precision shows in the result depends on the chip, so look at the settings.
    reference = importlib.import_module(f"kernels.{module}.reference")
    share_work, seen = reference.share_work, []

    def spy(*arguments):
        seen.append((precisions(), torch.is_autocast_enabled("cpu")))
        share_work(*arguments)

    monkeypatch.setattr(reference, "share_work", spy)
    with matmul_precision("medium"), torch.autocast("cpu", torch.bfloat16):
        OPS[op]()
    assert set(seen) == {(("ieee", "ieee"), False)}
