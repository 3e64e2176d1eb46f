"""`python -m svg2`: see `svg2.cli`."""

import sys

from svg2.process import prepare_process

prepare_process()

from svg2.cli import main

if __name__ == "__main__":
    sys.exit(main())
