"""Settings of this process that must be made before torch loads."""

import ctypes
import os

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30


def prepare_process() -> None:
    """Let waiting threads sleep, and keep freed memory, for programs that run on a CPU.

    OpenMP's threads otherwise spin after each operation, on cores that the workers of sparse
    attention or other processes could use. And glibc gives each large tensor back to the system
    when it is freed, so that the next one pays for new pages. What the user has set in the
    environment stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES - 1)
    mallopt(_M_ARENA_MAX, 1)  # the arenas of other threads are too small for large tensors
