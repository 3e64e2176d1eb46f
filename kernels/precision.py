"""Products that are fp32 to the last bit, whatever the host program has set."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_LOCK = threading.Lock()
_depth = 0
_before = "highest"


@contextmanager
def full_fp32() -> Iterator[None]:
    """Neither autocast nor TF32 inside the block; what was set comes back after it.

    Autocast belongs to a thread, and the precision of products to the process: the first thread
    in saves it, and the last one out restores it.
    """
    global _depth, _before
    with ExitStack() as undo:
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                undo.enter_context(torch.autocast(device_type, enabled=False))
        with _LOCK:
            if _depth == 0:
                _before = torch.get_float32_matmul_precision()
                if _before != "highest":
                    torch.set_float32_matmul_precision("highest")
            _depth += 1
        try:
            yield
        finally:
            with _LOCK:
                _depth -= 1
                if _depth == 0 and _before != "highest":
                    torch.set_float32_matmul_precision(_before)
