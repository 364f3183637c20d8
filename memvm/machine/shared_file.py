"""One file that a guest has mapped shared, and its mappings: what was stored there, and what was written.

A store is told by comparing with the file itself, if that is in memory, where nobody else changes it; of a file of the
host's that is written through, with a copy of what it had when the guest could first store there. So only pages that
the guest has changed are written, and what others do to the rest of the file stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from memvm.files.description import Description
from memvm.files.nodes import OpenFile
from memvm.memory.pages import BAD, DEFERRED
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

_STEP = 64
"""Pages that are compared at once."""
_THERE = bytes(value for value in range(256) if not value & (DEFERRED | BAD))
"""The metadata bytes of pages that the guest may have changed since they were last collected."""


class SharedMapping:
    """Guest addresses [start, end) of a file, from `offset` in it on."""

    def __init__(self, start: int, end: int, offset: int, file: Description) -> None:
        """`file` is an open one, which stays open as long as the mapping."""
        self.start, self.end, self.offset, self.file = start, end, offset, file
        self.stores = False
        """Whether the guest may store there, or could once."""
        self.before = bytearray()
        """What the file had there when that was last compared, if the guest stores there and others may change it."""

    def part(self, start: int, end: int) -> SharedMapping:
        """A part of it, by guest addresses."""
        part = SharedMapping(start, end, self.offset + start - self.start, self.file)
        part.stores, part.before = self.stores, self.before[start - self.start : end - self.start]
        return part


class _Contents:
    """The contents of one file, wherever they are: of a node in memory, or of the host."""

    def __init__(self, file: Description) -> None:
        self._node = file.node if isinstance(file, OpenFile) else None
        self._fd = file.fd

    @property
    def others_write(self) -> bool:
        """Whether somebody else may change it."""
        return self._node is None

    def size(self) -> int:
        return os.fstat(self._fd).st_size if self._node is None else self._node.size

    def read(self, offset: int, size: int) -> bytes:
        if self._node is not None:
            return bytes(self._node.data[offset : offset + size])
        return os.pread(self._fd, size, offset)

    def store(self, offset: int, data: memoryview) -> None:
        """Change what is there; the size stays. Raises OSError."""
        if self._node is not None:
            self._node.data[offset : offset + len(data)] = data
            self._node.touch_modified()
            return
        while data:
            done = os.pwrite(self._fd, data, offset)
            offset, data = offset + done, data[done:]


class SharedFile:
    """One file and its mappings. Addresses, offsets and sizes of mappings are of whole pages."""

    def __init__(self, ram: GuestRam, file: Description) -> None:
        self._ram = ram
        self.mappings: list[SharedMapping] = []
        self._contents = _Contents(file)
        self._size = self._contents.size()

    def add(self, mapping: SharedMapping) -> None:
        """Take a mapping whose memory has the file's contents already."""
        self.mappings.append(mapping)
        self._choose()

    def let_store(self, mapping: SharedMapping) -> None:
        """The guest may store in a mapping from now on; it has what the file has."""
        if not mapping.stores and self._contents.others_write:
            mapping.before = bytearray(self._contents.read(mapping.offset, mapping.end - mapping.start))
            mapping.before.extend(bytes(mapping.end - mapping.start - len(mapping.before)))
        mapping.stores = True

    def remove(self, mapping: SharedMapping, rest: Iterable[SharedMapping]) -> None:
        """Take parts of a mapping in its place."""
        self.mappings.remove(mapping)
        self.mappings += rest
        self._choose()

    def _choose(self) -> None:
        """Use an open file that stays open, and may write if one of them may."""
        files = sorted((mapping.file for mapping in self.mappings), key=lambda file: file.writable)
        if files:
            self._contents = _Contents(files[-1])

    @property
    def writable(self) -> bool:
        """Whether the guest may store through one of the mappings, now or once it asks for that."""
        return any(mapping.file.writable for mapping in self.mappings)

    def collect(self, offset: int, size: int) -> None:
        """Bring what the guest has stored in a part of the file into it. Raises OSError."""
        end = min(offset + size, self._size)
        for mapping in self.mappings:
            first = max(offset, mapping.offset) // PAGE_SIZE * PAGE_SIZE
            last = min(end, mapping.offset + mapping.end - mapping.start)
            if first < last and mapping.stores:
                self._collect(mapping, first, last)

    def _collect(self, mapping: SharedMapping, offset: int, end: int) -> None:
        """`offset` is at a page border, `end` may be the end of the file."""
        for first in range(offset, end, _STEP * PAGE_SIZE):
            last = min(first + _STEP * PAGE_SIZE, end)
            page = (mapping.start + first - mapping.offset - self._ram.base) // PAGE_SIZE
            count = -(-(last - first) // PAGE_SIZE)
            now = bytearray(count * PAGE_SIZE)
            flags = self._ram.flags[page : page + count]  # first: a page may be loaded at any moment
            self._ram.copy_out(page, memoryview(now))
            del now[last - first :]
            place = first - mapping.offset
            if mapping.before:
                before = bytes(mapping.before[place : place + len(now)])
            else:
                before = self._contents.read(first, len(now))
            if before == now:
                continue
            for low, flag in zip(range(0, len(now), PAGE_SIZE), flags, strict=True):
                data = now[low : low + PAGE_SIZE]
                if flag in _THERE and data != before[low : low + PAGE_SIZE]:
                    self._contents.store(first + low, memoryview(data))
                    if mapping.before:
                        mapping.before[place + low : place + low + len(data)] = data

    def changed(self, offset: int, size: int) -> None:
        """A part of the file was written, or its size is another: bring the mappings up to date. Raises OSError."""
        before, self._size = self._size, self._contents.size()
        for mapping in self.mappings:
            self._fill(mapping, self._size, before, lambda first, last: bytes(last - first))
            self._fill(mapping, before, self._size, self._between)
            self._fill(mapping, offset, min(offset + size, self._size), self._between)

    def _between(self, first: int, last: int) -> bytes:
        return self._contents.read(first, last - first)

    def _fill(self, mapping: SharedMapping, offset: int, end: int, contents: Callable[[int, int], bytes]) -> None:
        first = max(offset, mapping.offset)
        last = min(end, mapping.offset + mapping.end - mapping.start)
        if first < last:
            data, place = contents(first, last), first - mapping.offset
            self._ram.write(mapping.start + place, data)
            if mapping.before:
                mapping.before[place : place + len(data)] = data
