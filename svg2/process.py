"""The process of a program that runs on a CPU."""

import contextlib
import ctypes
import gc
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30


def trim_memory() -> None:
    """Give freed memory back to the system, also where much of it is kept.

    No garbage is collected, which would hold up all threads.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors, so that the next ones need no new pages.

    glibc gives each large tensor back to the system, which then clears and maps pages for the
    next: a sixth of a sparse call's time (two cores of an AMD EPYC). What the user has set in the
    environment stays, and other C libraries are left alone. A program calls this, no library.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES - 1)
    mallopt(_M_ARENA_MAX, 1)  # the arenas of other threads are too small for large tensors


def give_back_memory() -> None:
    """Give memory back to the system that a freed model held, also where much of it is kept."""
    gc.collect()  # the parts of a pipeline refer to each other
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim_memory()
