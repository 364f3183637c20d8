"""Files that the guest has mapped shared: what it stores there gets into the file, and what is written comes back.

A mapping is a copy of a part of the file in guest RAM, and the guest's loads and stores go there without anybody's
knowledge. So the two are compared when it matters. Before a file is read, synchronised, mapped once more or saved, what
differs in its mappings is *collected*, and after it was written or cut, its mappings are brought up to date. Collecting
also happens when a mapping goes, and at the guest's end.

Others' changes of a file of the host's reach no mapping.

Two places in guest RAM cannot be the same memory. So a second mapping of what is mapped already gets the place of the
first one, and the rights of both; the memory is freed when it was unmapped as often as it was mapped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from memvm.files.description import Description, HostFile
from memvm.files.nodes import File, OpenFile
from memvm.machine.callresult import CallError
from memvm.machine.shared_file import SharedFile, SharedMapping
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE


class SavedMapping(NamedTuple):
    """A mapping in a checkpoint: guest addresses, offset in the file, and which open file (GuestState.descriptors)."""

    start: int
    end: int
    offset: int
    opened: int


class SharedFiles:
    """All files that a guest has mapped shared."""

    def __init__(self, ram: GuestRam, opened: Callable[[], Iterable[Description]], tell: Callable[[str], None]) -> None:
        """`opened` tells what is open; `tell` hears of what could not be written where nobody waits for it."""
        self._ram, self._opened, self._tell = ram, opened, tell
        self._files: dict[object, SharedFile] = {}

    @property
    def descriptions(self) -> list[Description]:
        """What the mappings keep open."""
        return [mapping.file for mapping in self._mappings()]

    def _mappings(self) -> Iterator[SharedMapping]:
        return (mapping for shared in self._files.values() for mapping in shared.mappings)

    def attach(self, file: Description) -> None:
        """A file was opened, and perhaps emptied by that: it may be one that is mapped."""
        shared = self._files.get(_identity(file)) if self._files else None
        if shared is not None:
            if isinstance(file, HostFile):
                file.mapped = shared
            shared.changed(0, 0)

    def place(self, file: Description, offset: int, size: int, instead: range = range(0)) -> int | None:
        """Where a new mapping has to be because of those that the file has: None if anywhere.

        Those within the addresses `instead` do not count: the new one takes their place.
        Raises CallError(ENODEV) if the file is mapped so that it cannot be shared once more.
        """
        shared = self._files.get(_identity(file))
        if shared is None:
            return None
        end = offset + size
        others = [m for m in shared.mappings if m.start not in instead or m.end - 1 not in instead]
        near = [m for m in others if m.offset < end and offset < m.offset + m.end - m.start]
        around = next((m for m in near if m.offset <= offset and end <= m.offset + m.end - m.start), None)
        if around is not None:
            return around.start + offset - around.offset
        if near and (shared.writable or file.writable):
            raise CallError(errno.ENODEV)
        return None

    def add(self, start: int, end: int, offset: int, file: Description) -> None:
        """A range of guest RAM, whose rights are set, has a part of a file's contents, and is its mapping from now on.

        Raises OSError.
        """
        identity = _identity(file)
        if identity not in self._files:
            self._files[identity] = SharedFile(self._ram, file)
            self._tell_of(identity, self._files[identity])
        file.users += 1
        self._files[identity].add(SharedMapping(start, end, offset, file))
        if any(rights & Prot.WRITE for rights in set(self._ram.protection[slice(*self._pages(start, end))])):
            self.let_store(start, end)

    def _pages(self, start: int, end: int) -> tuple[int, int]:
        return (start - self._ram.base) // PAGE_SIZE, (end - self._ram.base) // PAGE_SIZE

    def let_store(self, start: int, end: int) -> None:
        """The guest may store in a range from now on. Raises OSError."""
        for shared in self._files.values():
            for mapping in shared.mappings:
                if mapping.start < end and start < mapping.end:
                    shared.let_store(mapping)

    def _tell_of(self, identity: object, shared: SharedFile | None) -> None:
        """Have whatever reads and writes a file know of its mappings."""
        if isinstance(identity, File):
            identity.mapped = shared
            return
        for file in self._opened():
            if isinstance(file, HostFile) and _identity(file) == identity:
                file.mapped = shared

    def covering(self, start: int, end: int) -> list[SharedMapping]:
        """The mappings that have a part in a range."""
        return [m for m in self._mappings() if m.start < end and start < m.end] if self._files else []

    def released(self, start: int, end: int) -> list[tuple[int, int]]:
        """A range is unmapped once: the parts of it that nothing maps any more, for the caller to free."""
        covering = self.covering(start, end)
        if len(covering) < 2:
            return [(start, end)]
        borders = sorted({start, end, *(b for m in covering for b in (m.start, m.end) if start < b < end)})
        free: list[tuple[int, int]] = []
        for first, last in pairwise(borders):
            several = self.covering(first, last)
            if len(several) > 1:
                self._cut(several[-1], first, last)
            elif free and free[-1][1] == first:
                free[-1] = (free[-1][0], last)
            else:
                free.append((first, last))
        return free

    def leave(self, start: int, end: int) -> None:
        """A range is about to be freed or mapped anew: whatever was mapped there is so no more."""
        for mapping in self.covering(start, end):
            self._cut(mapping, max(start, mapping.start), min(end, mapping.end))

    def _cut(self, mapping: SharedMapping, start: int, end: int) -> None:
        """Take a part out of a mapping."""
        shared = next(shared for shared in self._files.values() if mapping in shared.mappings)
        offset = mapping.offset + start - mapping.start
        self._collect(shared, mapping, offset, end - start)
        rest = [
            mapping.part(first, last) for first, last in ((mapping.start, start), (end, mapping.end)) if first < last
        ]
        mapping.file.users += len(rest)
        shared.remove(mapping, rest)
        if not shared.mappings:
            self._forget(shared)
        mapping.file.users -= 1
        if not mapping.file.users:
            mapping.file.close()

    def _forget(self, shared: SharedFile) -> None:
        for identity, other in list(self._files.items()):
            if other is shared:
                del self._files[identity]
                self._tell_of(identity, None)

    def _collect(self, shared: SharedFile, mapping: SharedMapping, offset: int, size: int) -> None:
        try:
            shared.collect(offset, size)
        except OSError as error:
            path = os.fsdecode(mapping.file.path)
            self._tell(f"what it stored in its mapping of {path} could not be written: {error.strerror}")

    def collect(self, start: int, end: int, *, sync: bool = False) -> None:
        """Bring what was stored in a range of guest RAM into files; with `sync`, to the host's disk. Raises OSError."""
        for shared in list(self._files.values()):
            for mapping in list(shared.mappings):
                first, last = max(start, mapping.start), min(end, mapping.end)
                if first < last:
                    shared.collect(mapping.offset + first - mapping.start, last - first)
                    if sync:
                        mapping.file.sync()

    def collect_all(self) -> None:
        """The same of all mappings. Raises OSError."""
        self.collect(self._ram.base, self._ram.end)

    def close(self) -> None:
        """The guest has ended: its mappings go."""
        self.leave(self._ram.base, self._ram.end)

    def capture(self, number: Callable[[Description], int]) -> tuple[SavedMapping, ...]:
        """For a checkpoint, when all is collected; `number` tells which open file one is."""
        return tuple(SavedMapping(m.start, m.end, m.offset, number(m.file)) for m in self._mappings())

    def adopt(self, saved: Iterable[SavedMapping], opened: list[Description], changed: Iterable[str]) -> None:
        """The mappings of a checkpoint, whose contents guest RAM has. Where files have `changed`, they count."""
        changed = frozenset(changed)
        for one in saved:
            file = opened[one.opened]
            self.add(one.start, one.end, one.offset, file)
            if os.fsdecode(file.path) in changed:
                self._files[_identity(file)].changed(one.offset, one.end - one.start)


def is_shared(file: Description) -> bool:
    """Whether a shared mapping of this file could ever be told from a copy of it: the guest can change it."""
    return isinstance(file, OpenFile) or (isinstance(file, HostFile) and file.written_through)


def _identity(file: Description) -> object:
    """The same for all descriptions of one file."""
    if isinstance(file, OpenFile):
        return file.node
    facts = os.fstat(file.fd)
    return facts.st_dev, facts.st_ino
