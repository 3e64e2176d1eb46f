"""SVG2 sparse attention for diffusers video pipelines: `with svg2.enable(pipe): pipe(...)`.

Importing this package loads neither torch nor diffusers; `enable` does when it is called.
"""

import os

# Read when torch is loaded. OpenMP threads that spin while idle would hold the cores that the
# workers of sparse attention need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from svg2.config import METHODS, ConfigError, SVG2Config, method_config
from svg2.enable import Handle, enable, measure_dense

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "ConfigError",
    "Handle",
    "SVG2Config",
    "__version__",
    "enable",
    "measure_dense",
    "method_config",
]
