"""Pointers of Git LFS, which a clone without LFS has in place of large files."""

from __future__ import annotations

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024  # of the specification

ADVICE = "is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned"
"""What to say of a pointer, after its name."""


def is_pointer(data: bytes) -> bool:
    """Whether the content of a file is a pointer."""
    return len(data) <= _MAX_POINTER_BYTES and data.startswith(_START)


def is_pointer_file(path: Path) -> bool:
    """Whether a file holds a pointer; one that can't be read does not."""
    try:
        if path.stat().st_size > _MAX_POINTER_BYTES:
            return False
        return is_pointer(path.read_bytes())
    except OSError:
        return False


def first_pointer(folder: Path) -> Path | None:
    """The first pointer in a folder and those below it; None where there is none."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return next((path for path in files if is_pointer_file(path)), None)
