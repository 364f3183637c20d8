"""Single keys from a terminal, without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from typing import Any


class Keys:
    """The keys that are pressed while the context lasts; none if standard input is no terminal."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._before: list[Any] = []

    def __enter__(self) -> Keys:
        if self._fd >= 0:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._fd >= 0:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """The keys pressed, as soon as there are any; "" if there were none in that time."""
        if self._fd < 0:
            time.sleep(max(0.0, seconds))
            return ""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, seconds))
        if not ready:
            return ""
        pressed = os.read(self._fd, 64).decode(errors="replace")
        if not pressed:  # the terminal has gone
            return "q"
        return "" if pressed.startswith("\x1b") else pressed  # arrows and the like are no letters
