"""What a manager tells the program that started it: a pipe with one JSON line at the start, one at the end.

    {"ok": {"name": "sort-1", "pid": 4711}}         the guest runs
    {"ended": {"code": 0, "signal": null, ...}}     it has ended, and so
    {"error": {"kind": ..., "message": ..., ...}}   ... or, instead of both, why nothing was started

A program that starts managers learns a guest's end from here even if that comes before it could connect.
"""

from __future__ import annotations

import os

from memvm.errors import MemvmError, UsageError
from memvm.machine.config import ExitStatus
from memvm.manager.protocol import Json, encode, error_to_json, record_to_json


class ReadyPipe:
    """The writing end, or nothing if nobody asked (fd None); a reader that has gone is no error."""

    def __init__(self, fd: int | None) -> None:
        """Take the descriptor over. Raises UsageError if it is none."""
        self._fd = fd
        if fd is not None:
            try:
                os.set_inheritable(fd, False)  # neither the guest nor anything else keeps it open
            except OSError as error:
                raise UsageError(f"descriptor {fd} is not open") from error

    @property
    def is_read(self) -> bool:
        """Whether a program asked for the messages."""
        return self._fd is not None

    def started(self, name: str) -> None:
        """The guest runs, under this name."""
        self._send({"ok": {"name": name, "pid": os.getpid()}})

    def ended(self, ending: ExitStatus) -> None:
        """The guest has ended."""
        self._send({"ended": record_to_json(ending)})

    def failed(self, error: MemvmError) -> bool:
        """Something went wrong. Returns whether there was somebody to tell."""
        return self._send({"error": error_to_json(error)})

    def _send(self, message: Json) -> bool:
        if self._fd is None:
            return False
        line = encode(message)
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except BrokenPipeError:
            return False
        return True
