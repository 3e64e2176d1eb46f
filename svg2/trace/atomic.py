"""Files written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

_UMASK = os.umask(0o077)  # it can only be read by setting it, which threads must not do
os.umask(_UMASK)


def json_bytes(content: Any) -> bytes:
    """JSON as the result files hold it, one line to a field."""
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Write a file whole or not at all: a temporary neighbour, then a rename.

    Raises:
        OSError: the folder can't be written.
    """
    path = Path(path)
    # The neighbour's name is shorter, because the file's own may be as long as names can be.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_UMASK)  # mkstemp makes private files; ours are ordinary ones
        os.replace(name, path)
    except BaseException:  # Ctrl-C included: no half file stays behind
        Path(name).unlink(missing_ok=True)
        raise
