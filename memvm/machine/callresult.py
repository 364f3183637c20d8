"""How a hypercall ends: with a number, with an errno, or not yet."""

from __future__ import annotations

from enum import Enum
from typing import Final


class CallError(Exception):
    """The call fails, and the guest sees this errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class NotYet(Enum):
    """The call cannot be answered yet; it is tried again when what it waits for has come."""

    BLOCKED = "blocked"


BLOCKED: Final = NotYet.BLOCKED
CallResult = int | NotYet
