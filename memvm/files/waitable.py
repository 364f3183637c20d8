"""What guests wait for and the manager keeps by itself: it tells calls and epoll instances when it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from memvm.files.description import Description, Watch
from memvm.files.facts import USER, Facts

DEVICE = 0x6D79
"""st_dev of all that has neither a name nor a node."""


class Waitable(Description):
    """One of those. While it is ready, `events` says so; each change is told once."""

    is_late = False
    """Whether it may not have noticed yet what has happened to it: `collect` makes it."""

    def __init__(self, wake: Callable[[Waitable], bool], flags: int = os.O_RDWR) -> None:
        """`wake` has the calls tried again that wait for it, and says whether there were any."""
        super().__init__(flags)
        self._wake = wake

    @property
    def can_be_watched(self) -> bool:
        return True

    def host_waits(self, events: int) -> Mapping[int, int]:
        return {}

    def changed(self, events: int) -> bool:
        """These events may hold now, or any if 0: tell who waits. Whether a call was woken."""
        woken = self.awaited and self._wake(self)
        for watch in tuple(self.watches):
            if watch.notice(events) and watch.exclusive:
                break
        return woken

    def seek(self, offset: int, whence: int) -> int:
        return 0

    def facts(self) -> Facts:
        return Facts(DEVICE, 1, 0o600, 1, USER, USER, 0, 0, 0, 0, 0, 0)


def watch(description: Description, one: Watch) -> None:
    """Have a watch be told of changes: the latest first, but exclusive ones after all others, in their order."""
    if one.exclusive:
        description.watches.append(one)
    else:
        description.watches.insert(0, one)


def fill(views: Iterable[memoryview], data: bytes | memoryview) -> int:
    """Spread bytes over buffers; how many found room."""
    done = 0
    for view in views:
        part = data[done : done + len(view)]
        view[: len(part)] = part
        done += len(part)
    return done


def joined(views: Iterable[memoryview], most: int) -> bytes:
    """The first bytes of buffers."""
    parts: list[memoryview] = []
    for view in views:
        parts.append(view[:most])
        most -= len(parts[-1])
        if not most:
            break
    return b"".join(parts)
