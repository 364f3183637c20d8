"""`python -m memvm`, and the command `memvm`."""

from __future__ import annotations

import gc
import sys

_GC_THRESHOLD = 100_000
"""Objects made between two looks of the collector for cycles among them; while memvm's modules are being imported, the
default of 700 costs a tenth of the time, and finds nothing."""


def main() -> int:
    """Run the command line; the exit status. Ctrl-C ends it quietly from the first import on."""
    gc.set_threshold(_GC_THRESHOLD)
    try:
        from memvm.cli.main import main as command_line

        return command_line(sys.argv[1:])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
