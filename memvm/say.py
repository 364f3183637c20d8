"""What memvm says on standard error: people read it, and a guest does not depend on whether they can.

Standard error may be a terminal that was closed, a pipe that nobody reads any more, a file on a full disk. There is
nobody left then to tell that of, and neither guest nor exit status changes because of it.
"""

from __future__ import annotations

import sys
from contextlib import suppress


def say(text: str) -> None:
    """Write a line, at once, if that is possible."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)  # noqa: T201


def end_saying() -> None:
    """Give up what could not be written: Python, at its exit, would try again and make it the exit status."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except OSError:
        sys.stderr = None
