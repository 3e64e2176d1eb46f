"""`python -m svg2`: see `svg2.cli`."""

import os
import sys

# Read when torch is loaded. OpenMP threads that spin while idle would hold the cores that the
# workers of sparse attention need. A program sets it and a library does not.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from svg2.cli import main

if __name__ == "__main__":
    sys.exit(main())
