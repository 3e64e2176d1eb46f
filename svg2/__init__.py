"""SVG2 sparse attention for diffusers video pipelines: `with svg2.enable(pipe): pipe(...)`.

Importing this package loads neither torch nor diffusers; they are loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from svg2.config import SVG2Config
from svg2.errors import ConfigError
from svg2.hooks.enable import Handle, enable, measure_dense
from svg2.method.selection import METHODS

if TYPE_CHECKING:
    from svg2.method.attention import SparseResult, sparse_attention
    from svg2.method.clustering import Centroids

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Centroids",
    "ConfigError",
    "Handle",
    "SVG2Config",
    "SparseResult",
    "__version__",
    "enable",
    "measure_dense",
    "sparse_attention",
]

_NEEDS_TORCH = {
    "Centroids": "svg2.method.clustering",
    "SparseResult": "svg2.method.attention",
    "sparse_attention": "svg2.method.attention",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_NEEDS_TORCH[name]), name)
