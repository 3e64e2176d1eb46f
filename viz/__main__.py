"""`python -m viz export TRACE --out FILE.zip`: a trace as clips, pictures, numbers and a page."""

from __future__ import annotations

import argparse
import sys

from svg2.errors import MediaError, TraceError
from svg2.trace.file import load_trace
from viz.export import export_zip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 bad arguments or input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m viz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="one zip for slides and lessons")
    export.add_argument("trace", metavar="TRACE", help="a trace.npz")
    export.add_argument("--out", required=True, metavar="FILE.zip", help="where to write it")
    given = parser.parse_args(arguments)
    try:
        export_zip(load_trace(given.trace), given.out)
    except (TraceError, MediaError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{given.out} can't be written: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)
        return 130
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
