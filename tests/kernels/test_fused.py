"""The fused ops without a GPU: in Triton's interpreter, in a process of their own.

`TRITON_INTERPRET` is read when a kernel is decorated, so the tests are in files that pytest does
not collect by itself and that run with it set.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import impl

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("fused_*.py"))

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
@pytest.mark.slow(60)
@pytest.mark.parametrize(
    "marked", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)]
)
def test_in_the_interpreter(marked):
    assert len(FILES) == 5
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked]
    done = subprocess.run(
        [*command, *FILES],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout


def test_triton_is_not_imported_until_a_fused_op_runs():
    program = """
import sys, torch, kernels
order = kernels.sort_by_label(torch.zeros(1, 1, 4, dtype=torch.int32), 2)
x = torch.randn(1, 1, 4, 64)
kernels.kmeans(x, x[:, :, :2], 1)
kernels.permute(x, order)
kernels.route(x[:, :, :2], x, x, order.offsets)
assert not {'triton', 'kernels.kmeans.fused', 'kernels.routing.fused'} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=HERE.parent.parent)


def test_auto_is_the_reference_on_a_cpu():
    x = torch.randn(1, 1, 4, 64)
    assert kernels.resolve_impl("auto", x) == "reference"
    assert kernels.kmeans(x, x[:, :, :2], 1).impl == "reference"


@pytest.mark.parametrize("op", ["kmeans", "sort", "permute", "unpermute", "route", "attention"])
def test_fused_on_a_cpu_tensor_says_why_not(op):
    x = torch.randn(1, 1, 4, 64)
    labels = torch.zeros(1, 1, 4, dtype=torch.int32)
    order = kernels.sort_by_label(labels, 1)
    kept = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    call = {
        "kmeans": lambda: kernels.kmeans(x, x[:, :, :2], 1, impl="fused"),
        "sort": lambda: kernels.sort_by_label(labels, 1, impl="fused"),
        "permute": lambda: kernels.permute(x, order, impl="fused"),
        "unpermute": lambda: kernels.unpermute(x, order, impl="fused"),
        "route": lambda: kernels.route(x[:, :, :1], x, x, order.offsets, impl="fused"),
        "attention": lambda: kernels.cluster_attention(
            x, x, x, order.offsets, order.offsets, kept, impl="fused"
        ),
    }[op]
    with pytest.raises(kernels.ImplUnavailable, match="need a CUDA tensor, not one on 'cpu'"):
        call()


@pytest.fixture
def with_cuda(monkeypatch):
    """As if there were a recent card."""
    monkeypatch.setattr(impl, "_faults_here", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


class _OnCuda:
    """What `resolve_impl` looks at."""

    def __init__(self, dtype=torch.bfloat16, head_dim=128) -> None:
        self.device = torch.device("cuda")
        self.dtype = dtype
        self.shape = (1, 2, 64, head_dim)


def test_auto_is_fused_on_cuda(with_cuda):
    assert kernels.resolve_impl("auto") == "fused"
    assert kernels.resolve_impl("auto", _OnCuda(), is_matmul=True) == "fused"
    assert kernels.resolve_impl("fused", _OnCuda(head_dim=64), is_matmul=True) == "fused"
    assert kernels.resolve_impl("reference", _OnCuda()) == "reference"


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (_OnCuda(torch.float32), "take float16 and bfloat16, not float32"),
        (_OnCuda(head_dim=96), "take head dimensions 64 and 128, not 96"),
    ],
)
def test_what_the_kernels_do_not_take(with_cuda, x, reason):
    assert kernels.resolve_impl("auto", x, is_matmul=True) == "reference"
    assert kernels.resolve_impl("fused", x) == "fused"
    with pytest.raises(kernels.ImplUnavailable, match=reason):
        kernels.resolve_impl("fused", x, is_matmul=True)


def test_an_old_card(with_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert kernels.resolve_impl("auto", _OnCuda()) == "reference"
    with pytest.raises(kernels.ImplUnavailable, match=r"a card has compute capability \(7, 5\)"):
        kernels.resolve_impl("fused", _OnCuda())


def test_without_triton(with_cuda, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert kernels.resolve_impl("auto", _OnCuda()) == "reference"
    with pytest.raises(kernels.ImplUnavailable, match="triton is not installed"):
        kernels.resolve_impl("fused", _OnCuda())


def test_without_a_card():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(kernels.ImplUnavailable, match=r"CUDA|triton"):
        kernels.resolve_impl("fused")
    assert kernels.resolve_impl("auto") == "reference"
