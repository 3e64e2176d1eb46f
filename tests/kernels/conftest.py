"""Fixtures of the kernel tests."""

import importlib
from collections.abc import Iterator

import pytest
import torch

from kernels.impl import INTERPRETING


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors are full of NaN until they are written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def interpreter_patches_once() -> None:
    """Let Triton's interpreter patch triton.language once, not at every call of a jit function.

    The patches are the same each time; making and undoing them is most of its run time.
    """
    if not INTERPRETING:
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = getattr(interpreter, "_patch_lang", None)
    if patch is None:
        return
    patched = set()

    class Kept:
        def restore(self) -> None:
            pass

    def patch_once(fn) -> Kept:
        languages = {
            name
            for value in fn.__globals__.values()
            if (name := getattr(value, "__name__", None))
            in {"triton.language", "triton.language.core"}
        }
        if not languages <= patched:
            patch(fn)
            patched.update(languages)
        return Kept()

    interpreter._patch_lang = patch_once
