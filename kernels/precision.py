"""Matrix products in full fp32, whatever the host program has set."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICE_TYPES = ("cpu", "cuda")
# What fp32 matrix products obey: cuBLAS's setting (TF32) and oneDNN's (TF32 and bf16 passes).
_SETTINGS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)

_lock = threading.Lock()
_num_inside = 0
# What to restore: the setting of torch.set_float32_matmul_precision, and each of _SETTINGS.
_lowered: tuple[str | None, tuple] | None = None


@contextmanager
def full_fp32() -> Iterator[None]:
    """Turn off autocast and reduced precision of fp32 products, and restore both at the end.

    Autocast belongs to a thread, the precision of products to the process. So the last thread
    that leaves restores the precision, and until then products of all other threads are in full
    fp32 as well. A lower precision that the program sets meanwhile stays.
    """
    with ExitStack() as on_exit:
        for device_type in _DEVICE_TYPES:
            if torch.is_autocast_enabled(device_type):
                on_exit.enter_context(torch.autocast(device_type, enabled=False))
        _enter()
        on_exit.callback(_leave)
        yield


def _enter() -> None:
    global _num_inside, _lowered
    with _lock:
        # Not only the first: the program may have lowered it since another thread entered.
        if not _is_full():
            _lowered = _legacy_precision(), tuple(s.fp32_precision for s in _SETTINGS)
            torch.set_float32_matmul_precision("highest")
        _num_inside += 1


def _leave() -> None:
    global _num_inside, _lowered
    with _lock:
        _num_inside -= 1
        if _num_inside > 0 or _lowered is None:
            return
        (legacy, precisions), _lowered = _lowered, None
        if not _is_full():
            return
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for setting, precision in zip(_SETTINGS, precisions, strict=True):
            if setting.fp32_precision != precision:
                setting.fp32_precision = precision


def _is_full() -> bool:
    return all(s.fp32_precision in ("none", "ieee") for s in _SETTINGS)


def _legacy_precision() -> str | None:
    """None where the program has set the two apart: torch then refuses to name one precision."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
