"""A manager that writes down what it and its platform say to each other: the attacker who plays the manager, listening.

python recorded_manager.py RECORD ROOT WORDS        `memvm WORDS`, with memvm from ROOT
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def recorded_command(record: Path, words: Sequence[str]) -> list[str]:
    """How to run `memvm WORDS`, recorded in a file."""
    from memvm.manager.launch import manager_command

    python, isolated, _, _, root, *rest = manager_command(words)
    return [python, isolated, __file__, str(record), root, *rest]


class Recorded:
    """The manager's end of the connection, and a file with all that passes there, in both directions."""

    def __init__(self, connection: Any, record: str) -> None:
        self._connection = connection
        self._file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def sendmsg(self, buffers: Sequence[bytes], *rest: Any) -> Any:
        """As socket.socket has it."""
        os.write(self._file, b"\n> " + b"".join(buffers))
        return self._connection.sendmsg(buffers, *rest)

    def recvmsg(self, *arguments: Any) -> Any:
        """As socket.socket has it."""
        received = self._connection.recvmsg(*arguments)
        os.write(self._file, b"\n< " + received[0])
        return received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def main() -> int:
    """As memvm's own."""
    from memvm.__main__ import main as memvm
    from memvm.sealed.channel import Channel

    record, manager = sys.argv.pop(1), os.getpid()
    sys.argv.pop(1)
    begin: Any = Channel.__init__

    def begin_recorded(self: Any, connection: Any, *rest: Any) -> None:
        begin(self, Recorded(connection, record) if os.getpid() == manager else connection, *rest)

    setattr(Channel, "__init__", begin_recorded)  # noqa: B010 - which is what mypy would have to ignore
    return memvm()


if __name__ == "__main__":
    sys.path.append(sys.argv[2])
    sys.exit(main())
