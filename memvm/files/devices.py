"""The few devices that every guest has in /dev."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial

from memvm.files.description import Description
from memvm.files.facts import Facts
from memvm.files.generated import DeviceFile, Item, LinkTo

DEVICE_OF_DEV = 0x6D77
NUMBERS = {b"null": (1, 3), b"zero": (1, 5), b"full": (1, 7), b"random": (1, 8), b"urandom": (1, 9)}
"""Names with the numbers that Linux gives them: Documentation/admin-guide/devices.txt."""


class Device(Description):
    """An open device, by its name in /dev."""

    def __init__(self, name: bytes, flags: int) -> None:
        super().__init__(flags)
        self.name = name
        self.path = b"/dev/" + name

    @property
    def can_be_watched(self) -> bool:
        return self.name in (b"random", b"urandom")

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        self.check_access(os.O_RDONLY)
        if self.name == b"null":
            return 0
        for view in views:
            view[:] = os.urandom(len(view)) if self.name in (b"random", b"urandom") else bytes(len(view))
        return sum(map(len, views))

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        self.check_access(os.O_WRONLY)
        if self.name == b"full":
            raise OSError(errno.ENOSPC, "always full")
        return sum(map(len, views))

    def seek(self, offset: int, whence: int) -> int:
        return 0

    def facts(self) -> Facts:
        number = NUMBERS[self.name]
        return Facts(DEVICE_OF_DEV, number[1], 0o020666, 1, 0, 0, os.makedev(*number), 0, 0, 0, 0, 0)

    def contents(self, offset: int, size: int) -> bytes:
        if self.name != b"zero":
            return super().contents(offset, size)
        return b""


def device_items(stream: Callable[[int], LinkTo]) -> dict[bytes, Item]:
    """What is in /dev; `stream` gives the links for standard streams by their descriptor."""
    items: dict[bytes, Item] = {name: DeviceFile(number, partial(Device, name)) for name, number in NUMBERS.items()}
    items[b"fd"] = LinkTo(lambda: b"/proc/self/fd")
    for descriptor, name in enumerate((b"stdin", b"stdout", b"stderr")):
        items[name] = stream(descriptor)
    items[b"shm"] = {}
    return items
