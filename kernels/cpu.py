"""What the reference ops need of a CPU: one-thread workers, and whether it multiplies bf16."""

import itertools
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar, cast

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Function = TypeVar("_Function", bound=Callable[..., object])

_pools: dict[tuple[int, str], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
_local = threading.local()


def _forget_pools() -> None:
    """A forked process has no threads of its parent, also not the one that held the lock."""
    global _pools_lock
    _pools_lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


@cache
def bf16_is_native() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX or AVX512-BF16).

    Elsewhere PyTorch emulates them, hundreds of times slower than fp32.
    """
    cpu = torch.cpu
    tests = (
        getattr(cpu, "_is_amx_tile_supported", None),
        getattr(cpu, "_is_avx512_bf16_supported", None),
    )
    return any(test() for test in tests if test is not None)


@cache
def multiplies_bf16_tiles() -> bool:
    """Whether this CPU has AMX, for which attention over small blocks is worth doing in bf16.

    With AVX512-BF16 alone it is no faster than in fp32 (measured on AMD EPYC).
    """
    test = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return test is not None and test()


def scripted(function: _Function) -> _Function:
    """The function in TorchScript: loops of small operations then run without Python's lock.

    Two workers that hold the lock between operations take 51 ms for blocks of attention that take
    30 ms without it (AMD EPYC). Where TorchScript is missing, this is the function itself, with
    the same results.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return cast(_Function, torch.jit.script(function))
    except Exception:  # whatever a torch without TorchScript raises
        return function


def on_one_thread(work: Callable[[], _Result], device: torch.device) -> _Result:
    """Call `work` where each torch operation takes one thread, and `share_work` all workers.

    Between its operations OpenMP makes threads wait for each other. Where other processes keep the
    cores busy, each small operation then waits for the slowest; large shares of work do not.
    On another device than a CPU, or with one thread, `work` is just called.
    """
    num_workers = torch.get_num_threads()
    if device.type != "cpu" or num_workers <= 1:
        return work()

    def in_worker() -> _Result:
        _local.num_workers = num_workers
        try:
            with torch.no_grad():
                return work()
        finally:
            _local.num_workers = None

    return _pool(num_workers, "driver").submit(in_worker).result()


def share_work(
    items: Sequence[_Item],
    work: Callable[[Callable[[], _Item | None]], object],
    device: torch.device,
) -> None:
    """Share `items`, in order, among one-thread workers; as many as the caller has torch threads.

    Small tensor operations do not scale inside one call, so on a CPU each worker runs whole items
    with one thread of its own; on another device this thread runs them all. `work(take)` runs once
    per worker, in inference mode, and calls `take()` for its next item until that is None; scratch
    memory that it allocates serves all its items. An error in a worker is raised here, after the
    others have ended.
    """
    next_index = itertools.count()

    def take() -> _Item | None:
        index = next(next_index)  # atomic under the interpreter lock
        return items[index] if index < len(items) else None

    def in_inference_mode() -> None:
        with torch.inference_mode():
            work(take)

    num_threads = getattr(_local, "num_workers", None) or torch.get_num_threads()
    num_workers = min(num_threads, len(items))
    if num_workers <= 1 or device.type != "cpu":
        in_inference_mode()
        return
    pool = _pool(num_threads)
    futures = [pool.submit(in_inference_mode) for _ in range(num_workers)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]


def _pool(num_workers: int, kind: str = "workers") -> ThreadPoolExecutor:
    """Threads that each run torch operations on one thread; one pool per number of workers.

    Drivers are other threads than the workers that they wait for.
    """
    with _pools_lock:
        if (num_workers, kind) not in _pools:
            all_up = threading.Barrier(num_workers + 1)

            def start() -> None:
                # The first look at the count sets this thread's own to the global one; only a
                # count set after it stays.
                torch.get_num_threads()
                torch.set_num_threads(1)
                all_up.wait()

            pool = ThreadPoolExecutor(num_workers, thread_name_prefix=f"kernels-{kind}")
            for _ in range(num_workers):
                pool.submit(start)
            all_up.wait()
            # set_num_threads is per thread and global at once: give the global one back, or every
            # later thread of the process would start with one. In a thread that ends with it:
            # the caller may be a worker of another kind, with one thread of its own.
            giving_back = threading.Thread(target=torch.set_num_threads, args=(num_workers,))
            giving_back.start()
            giving_back.join()
            _pools[num_workers, kind] = pool
        return _pools[num_workers, kind]
