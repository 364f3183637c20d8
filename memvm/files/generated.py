"""A view of what is made when it is looked at: /dev and /proc.

A tree of names is given once; texts and links have functions that tell what is in them at the moment. A text is made
when it is opened, and stays as it is while it is open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from memvm.files.description import O_ACCMODE, Description, OpenDirectory
from memvm.files.facts import Entry, Facts
from memvm.files.nodes import Budget, File, OpenFile
from memvm.files.view import View

_NAMES = 64
_FIRST_INODE = 0x10000


class Text(NamedTuple):
    """A file: what is in it."""

    tell: Callable[[], bytes]
    mode: int = 0o444


class LinkTo(NamedTuple):
    """A symbolic link: where it leads, as text."""

    tell: Callable[[], bytes]
    open: Callable[[], Description] | None = None
    """What it stands for, if that is something open and not what is where it leads."""


class DeviceFile(NamedTuple):
    """A character device: its number, and what opening it with flags gives."""

    number: tuple[int, int]
    open: Callable[[int], Description]


class Names(NamedTuple):
    """A directory whose names come and go: what is there now."""

    tell: Callable[[], dict[bytes, Item]]


Item = Text | LinkTo | DeviceFile | Names | dict[bytes, "Item"]


class GeneratedView(View):
    """The view of a tree of items."""

    def __init__(self, device: int, items: dict[bytes, Item], budget: Budget) -> None:
        self._device = device
        self._items = items
        self._budget = budget
        self._inodes: dict[bytes, int] = {}

    def _find(self, path: bytes) -> Item:
        item: Item = self._items
        if not path:
            return item
        for name in path.split(b"/"):
            if isinstance(item, LinkTo):
                raise OSError(errno.ELOOP, "a link on the way")
            if isinstance(item, Names):
                item = item.tell()
            if not isinstance(item, dict):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            if name not in item:
                raise FileNotFoundError(errno.ENOENT, "not there")
            item = item[name]
        return item

    def _inode(self, path: bytes) -> int:
        if len(self._inodes) > 1 << 16:
            self._inodes.clear()
        return self._inodes.setdefault(path, _FIRST_INODE + len(self._inodes))

    def facts(self, path: bytes) -> Facts:
        item = self._find(path)
        mode, special, size = _mode(item), 0, 0
        if isinstance(item, DeviceFile):
            special = os.makedev(*item.number)
        elif isinstance(item, LinkTo):
            size = _NAMES
        links = 2 if stat.S_ISDIR(mode) else 1
        return Facts(self._device, self._inode(path), mode, links, 0, 0, special, size, 0, 0, 0, 0)

    def target(self, path: bytes) -> bytes:
        item = self._find(path)
        if not isinstance(item, LinkTo):
            raise OSError(errno.EINVAL, "not a link")
        return item.tell()

    def behind(self, path: bytes) -> Description | None:
        item = self._find(path)
        return item.open() if isinstance(item, LinkTo) and item.open is not None else None

    def names(self, path: bytes) -> list[Entry]:
        item = self._find(path)
        if isinstance(item, Names):
            item = item.tell()
        if not isinstance(item, dict):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        prefix = path + b"/" if path else b""
        return [Entry(name, self._inode(prefix + name), stat.S_IFMT(_mode(one))) for name, one in item.items()]

    def may(self, path: bytes, wanted: int) -> None:
        bits = _mode(self._find(path)) & 7
        if wanted & ~bits:
            raise PermissionError(errno.EACCES, "not allowed")

    def open(self, path: bytes, flags: int, mode: int, place: bytes) -> Description:
        try:
            item = self._find(path)
        except FileNotFoundError:
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "nothing is made here") from None
            raise
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "is there")
        if isinstance(item, LinkTo):
            if item.open is not None and not flags & os.O_NOFOLLOW:
                return item.open()
            raise OSError(errno.ELOOP, "a link")
        if isinstance(item, dict | Names):
            if flags & O_ACCMODE:
                raise IsADirectoryError(errno.EISDIR, "a directory")
            return OpenDirectory(place, flags, self.facts(path))
        if flags & os.O_DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        if isinstance(item, DeviceFile):
            opened = item.open(flags)
            opened.path = place
            return opened
        if flags & O_ACCMODE:
            raise PermissionError(errno.EACCES, "not to be written")
        node = File(self._budget, item.mode)
        node.write(0, [memoryview(item.tell())])
        node.names = 0  # it goes when it is closed
        node.device, node.inode = self._device, self._inode(path)
        node.owner = node.group = 0
        return OpenFile(node, place, flags)


def _mode(item: Item) -> int:
    if isinstance(item, Text):
        return stat.S_IFREG | item.mode
    if isinstance(item, LinkTo):
        return stat.S_IFLNK | 0o777
    if isinstance(item, DeviceFile):
        return stat.S_IFCHR | 0o666
    return stat.S_IFDIR | 0o555
