"""Copies the lines that several processes write to one descriptor, each with the name of its writer in front."""

from __future__ import annotations

import os

_READ_SIZE = 1 << 15
LONGEST_LINE = 1 << 15
"""Bytes; a longer line is broken, so that a guest which never ends one needs no more memory than this."""


class LineRelay:
    """Many pipes into one descriptor. Lines are never mixed; what a writer leaves unfinished is finished for it.

    A target that nobody reads any more is told on: the pipes are closed, and their writers find out as they would have
    without a relay.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._pending: dict[int, bytes] = {}
        self._prefixes: dict[int, bytes] = {}

    def add(self, pipe: int, name: str) -> None:
        """Take over the reading end of a pipe, and copy what `name` writes there."""
        self._pending[pipe] = b""
        self._prefixes[pipe] = f"[{name}] ".encode()

    @property
    def pipes(self) -> list[int]:
        """What to poll for reading: those that have not come to their end."""
        return list(self._pending)

    def ready(self, pipe: int) -> None:
        """There is something to read, or the end. Waits for room in the target. Raises OSError."""
        data = os.read(pipe, _READ_SIZE)
        lines = (self._pending[pipe] + data).split(b"\n")
        self._pending[pipe] = lines.pop()
        if len(self._pending[pipe]) >= LONGEST_LINE or (not data and self._pending[pipe]):
            lines.append(self._pending[pipe])
            self._pending[pipe] = b""
        if lines:
            prefix = self._prefixes[pipe]
            self._write(b"".join(b"%b%b\n" % (prefix, line) for line in lines))
        if not data:
            self._close(pipe)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except BrokenPipeError:
            self.close()

    def _close(self, pipe: int) -> None:
        if pipe in self._pending:
            os.close(pipe)
            del self._pending[pipe], self._prefixes[pipe]

    def close(self) -> None:
        """Close all pipes; who writes there gets EPIPE."""
        for pipe in self.pipes:
            self._close(pipe)
