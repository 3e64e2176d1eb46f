"""Temporary folders that go with their process, also where that is killed."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_IN_MEMORY = "/dev/shm"
_PREFIX = f"svg2-run-{os.getuid()}-"
_LOCK = "in-use"
_YOUNG_SECONDS = 60.0  # a folder this new may have no lock yet


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or a quota of one, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_scratch(work: Callable[[Path], Result]) -> Result:
    """Call `work` with a temporary folder, which is removed; in memory where the disk is full.

    Raises:
        OSError: neither can be written; or what else `work` raises.
    """
    try:
        with scratch_folder() as folder:
            return work(folder)
    except OSError as error:
        if not is_full(error) or not os.path.isdir(_IN_MEMORY):
            raise
    with scratch_folder(_IN_MEMORY) as folder:
        return work(folder)


@contextmanager
def scratch_folder(place: str | None = None) -> Iterator[Path]:
    """A temporary folder, removed at the end of the block.

    Args:
        place: the folder to make it in; None takes the one of the environment.
    """
    with tempfile.TemporaryDirectory(dir=root(place), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def root(place: str | None = None) -> Path:
    """The folder of this process in a place, removed when it ends.

    What killed processes of this user have left there is removed with the first call.

    Raises:
        OSError: the place can't be written.
    """
    where = (place or tempfile.gettempdir(), os.getpid())
    if not _root(*where).is_dir():  # whoever tidies temporary folders took it
        _root.cache_clear()
    return _root(*where)


@functools.cache
def _root(place: str, process: int) -> Path:
    _remove_left(place)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    atexit.register(_remove_own, folder, process)
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    return folder


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not a fork of it
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(place: str) -> None:
    for folder in Path(place).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether no process holds a folder any more."""
    lock = folder / _LOCK
    if not lock.exists():
        return time.time() - folder.stat().st_mtime > _YOUNG_SECONDS
    return is_unlocked(lock)


def is_unlocked(path: Path) -> bool:
    """Whether no process holds the lock of a file.

    Raises:
        OSError: the file is gone, or its file system knows no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
