"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from svg2.trace.scratch import is_unlocked

_UMASK = os.umask(0o077)  # it can only be read by setting it, which threads must not do
os.umask(_UMASK)
_PART = ".part"


class KeptElsewhere(OSError):
    """Files that could not be written where they belong. The message says where they are."""


def json_bytes(content: Any) -> bytes:
    """JSON as the result files hold it, one line to a field."""
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Write a file whole or not at all: a temporary neighbour, then a rename.

    Raises:
        OSError: the folder can't be written.
    """
    path = Path(path)
    write_all(path.parent, {path.name: data})


def write_all(
    folder: str | os.PathLike, contents: Mapping[str, bytes], instead_of: Iterable[str] = ()
) -> None:
    """Write files of one folder, all of them or none; earlier ones of these names are replaced.

    Until all are on the disk, the earlier ones stay. The last file is the sign that all belong
    together: it goes first and comes last, so that a process which is killed in between leaves
    none.

    Args:
        contents: by file name.
        instead_of: names of other files that do not belong to these, and go.

    Raises:
        OSError: the folder can't be written.
    """
    folder = Path(folder)
    _remove_left(folder)
    for name in contents:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder: move it, or name another.")
    with contextlib.ExitStack() as undo:
        staged = {name: _stage(folder, name, data, undo) for name, data in contents.items()}
        *others, last = contents
        for name in (*([last] if others else []), *(set(instead_of) - set(contents))):
            (folder / name).unlink(missing_ok=True)
        for name, part in staged.items():
            os.replace(part, folder / name)


def write_or_keep(
    folder: str | os.PathLike, contents: Mapping[str, bytes], instead_of: Iterable[str] = ()
) -> None:
    """As `write_all`; what can't be written there is kept in another folder.

    Raises:
        KeptElsewhere: it is, and the message says where.
        OSError: nothing could be written anywhere.
    """
    try:
        write_all(folder, contents, instead_of)
    except OSError as error:
        kept = _keep(contents)
        if kept is None:
            raise
        reason = error.strerror or error
        raise KeptElsewhere(
            f"The folder {str(folder)!r} can't be written ({reason}): what was made is kept in "
            f"{kept}."
        ) from error


def _keep(contents: Mapping[str, bytes]) -> Path | None:
    """A new folder with the files; None where there is no room for them."""
    for place in (tempfile.gettempdir(), str(Path.home()), "/dev/shm"):
        kept = None
        try:
            kept = Path(tempfile.mkdtemp(prefix="svg2-kept-", dir=place))
            write_all(kept, contents)
        except OSError:
            if kept is not None:
                shutil.rmtree(kept, ignore_errors=True)
        else:
            return kept
    return None


def _stage(folder: Path, name: str, data: bytes, undo: contextlib.ExitStack) -> str:
    """Write a temporary neighbour of a file, which goes when `undo` is closed.

    It stays locked until then, so that no other process takes it for one that was left.
    """
    # The neighbour's name is shorter, because the file's own may be as long as names can be.
    handle, part = tempfile.mkstemp(dir=folder, prefix=f".{name[:40]}.", suffix=_PART)
    undo.callback(Path(part).unlink, missing_ok=True)
    file: IO[bytes] = undo.enter_context(os.fdopen(handle, "wb"))
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write(data)
    file.flush()
    os.fsync(handle)
    os.chmod(part, 0o666 & ~_UMASK)  # mkstemp makes private files; ours are ordinary ones
    return part


def _remove_left(folder: Path) -> None:
    """Remove what killed processes were writing into a folder."""
    for part in folder.glob(f".*{_PART}"):
        with contextlib.suppress(OSError):
            if is_unlocked(part):
                part.unlink()
