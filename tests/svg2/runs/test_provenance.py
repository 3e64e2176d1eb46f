"""What a number was measured on."""

import mmap
import subprocess

import torch

from svg2.runs.provenance import commit, peak_memory, provenance
from tests.tree import ROOT

CPU = torch.device("cpu")


def test_provenance_names_what_a_number_was_measured_on():
    facts = provenance(CPU)
    assert facts["device"] == "cpu"
    assert "cores" in facts["hardware"]
    assert facts["versions"]["torch"] == torch.__version__
    assert {"svg2", "python", "diffusers", "triton"} <= set(facts["versions"])


def test_peak_memory_is_of_the_block_alone():
    size = 64 << 20
    with peak_memory(CPU) as small:
        pass
    # New pages: an allocator may have as much left over from earlier tests.
    with peak_memory(CPU) as large, mmap.mmap(-1, size) as block:
        block.write(b"1" * size)
    assert large.nbytes is None or large.nbytes > size
    if small.nbytes is not None and large.nbytes is not None:
        assert large.nbytes - small.nbytes > size // 2


def test_the_commit_is_that_of_this_checkout() -> None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert commit() == done.stdout.strip()
