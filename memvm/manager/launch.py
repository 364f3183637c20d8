"""What a Python program needs to start managers: the command line, and the reading end of what they tell."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from memvm.errors import ControlError, HostError
from memvm.manager.protocol import Json, decode, error_from_json

_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from memvm.__main__ import main; sys.exit(main())"
"""Starts memvm from where it is, installed or not, and from nowhere else: -P keeps the working
directory, where anything may lie, out of the module search path."""


def manager_command(words: Sequence[str]) -> list[str]:
    """How to run `memvm WORDS` with this Python. Raises HostError."""
    if not sys.executable:
        raise HostError("this program does not know which Python runs it, so it can start no manager")
    return [sys.executable, "-P", "-c", _BOOT, str(Path(__file__).parent.parent.parent), *words]


class News:
    """The reading end of a manager's ready pipe (memvm.manager.ready): a JSON object a line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = b""

    def read(self, timeout: float | None) -> Json | None:
        """The next message; None at the end. Raises TimeoutError after `timeout` seconds, ControlError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while b"\n" not in self._pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not poll.poll(None if left is None else left * 1000):
                raise TimeoutError(f"the guest has not ended within {timeout} s")
            received = os.read(self._fd, 1 << 16)
            if not received:
                return None
            self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        return decode(line)

    def read_start(self) -> tuple[str, int]:
        """Wait until the guest runs; its name, and the manager's process.

        Raises the error that kept it from running, EOFError if the manager ended without a word, and ControlError.
        """
        news = self.read(None)
        if news is None:
            raise EOFError
        if "error" in news:
            raise error_from_json(news["error"])
        started = news.get("ok")
        if isinstance(started, dict):
            name, pid = started.get("name"), started.get("pid")
            if isinstance(name, str) and type(pid) is int:
                return name, pid
        raise ControlError("the manager's first words make no sense")

    def close(self) -> None:
        """Close the pipe; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
