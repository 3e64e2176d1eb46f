"""Work shared among one-thread workers."""

import multiprocessing
import threading

import pytest
import torch

from kernels import cpu
from kernels.cpu import bf16_is_native, on_one_thread, share_work

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_item_once_and_one_torch_thread_each(two_threads):
    seen: list[tuple[int, int]] = []

    def work(take):
        while (item := take()) is not None:
            seen.append((item, torch.get_num_threads()))

    share_work(range(100), work, CPU)
    assert sorted(seen) == [(i, 1) for i in range(100)]


def test_other_threads_keep_their_torch_threads(two_threads):
    share_work(range(4), lambda take: list(iter(take, None)), CPU)
    assert torch.get_num_threads() == 2
    counts = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert counts == [2]


def test_an_error_reaches_the_caller_and_the_workers_live_on(two_threads):
    def work(take):
        while (item := take()) is not None:
            if item == 3:
                raise KeyError(item)

    with pytest.raises(KeyError):
        share_work(range(10), work, CPU)
    done = []
    share_work(range(10), lambda take: done.extend(iter(take, None)), CPU)
    assert sorted(done) == list(range(10))


def test_nothing_to_do():
    share_work([], lambda take: list(iter(take, None)), CPU)


def test_callers_in_several_threads_at_once(two_threads):
    results: dict[int, list[int]] = {}

    def call(name: int) -> None:
        done: list[int] = []
        share_work(range(50), lambda take: done.extend(iter(take, None)), CPU)
        results[name] = sorted(done)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == {i: list(range(50)) for i in range(4)}


def test_bf16_is_native_is_what_the_chip_says():
    with open("/proc/cpuinfo") as cpuinfo:
        flags = set(next((line for line in cpuinfo if line.startswith("flags")), "").split())
    if not flags:
        pytest.skip("this system lists no CPU flags")
    assert bf16_is_native() == bool(flags & {"amx_bf16", "avx512_bf16"})


def test_threads_that_come_later_have_all_cores_also_where_workers_began_in_a_driver(
    two_threads, monkeypatch
):
    """A page makes each run in a new thread: dense attention must not be left with one core."""
    monkeypatch.setattr(cpu, "_pools", {})
    on_one_thread(lambda: share_work(range(4), lambda take: list(iter(take, None)), CPU), CPU)
    counts = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert counts == [2]
    assert torch.get_num_threads() == 2


def _share_some(out):
    seen = []

    def work(take):
        while (item := take()) is not None:
            seen.append(item)

    share_work(range(7), work, CPU)
    out.put((sorted(seen), on_one_thread(lambda: 3, CPU)))


@pytest.mark.parametrize("is_held", [False, True])
def test_a_forked_process_gets_workers_of_its_own(two_threads, is_held):
    """The parent's threads are not in it, and waiting for them would never end."""
    share_work(range(4), lambda take: take(), CPU)
    on_one_thread(lambda: None, CPU)
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    process = context.Process(target=_share_some, args=(out,), daemon=True)
    if is_held:
        with cpu._pools_lock:
            process.start()
    else:
        process.start()
    process.join(60)
    is_done = process.exitcode == 0
    process.kill()
    assert is_done
    assert out.get() == (list(range(7)), 3)
