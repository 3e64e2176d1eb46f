"""The checker of annotated shapes that `conftest.py` installs."""

import inspect
from collections.abc import Callable

from beartype import beartype

_checked: dict[tuple[str, str, str], Callable] = {}


def check_once(function: Callable) -> Callable:
    """`beartype`, which compiles one checker per signature.

    jaxtyping asks for a checker wherever a `def` is executed, so for each inner function at every
    call of the outer one. What it hands over bears the signature and no code of the function, so
    that a checker of the same name and signature does for all.
    """
    key = (function.__module__, function.__qualname__, str(inspect.signature(function)))
    if key not in _checked:
        _checked[key] = beartype(function)
    return _checked[key]
