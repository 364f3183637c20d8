"""What memvm says on standard error: why something failed, and how a guest ended."""

from __future__ import annotations

import signal

from memvm.errors import MemvmError
from memvm.machine.config import ExitStatus


def error_text(error: MemvmError) -> str:
    """What failed and, where something is known that may help, what to try."""
    lines = [f"memvm: {error.message}"]
    if error.hint:
        lines.append(f"  try: {error.hint}")
    return "\n".join(lines)


def ending_text(ending: ExitStatus) -> str:
    """How a guest ended; empty if it ended as programs do.

    SIGPIPE counts as that: the end of a pipeline's reader ends its writers, and no shell remarks on it.
    """
    return f"memvm: {ending.reason}" if ending.reason and ending.signal != signal.SIGPIPE else ""
