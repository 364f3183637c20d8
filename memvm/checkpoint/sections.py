"""The two small sections of a checkpoint file, bytes and what they mean: its parent, and its active pages.

The drawing is in format.py. What is read here has had its digest compared; what it says is checked all the same.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from itertools import accumulate, chain
from operator import sub
from pathlib import Path
from typing import NamedTuple

from memvm.checkpoint.format import (
    ACTIVE_ENTRY_SIZE,
    MAX_ACTIVE_PAGES,
    MAX_PARENT_SIZE,
    FormatError,
)
from memvm.checkpoint.frames import decompress_exactly
from memvm.memory.pages import PageRun

_PARENT = struct.Struct("<16s32s")
_U32 = (1 << 32) - 1
_LEVEL = 3
READ, WRITTEN = 1, 2


class ParentLink(NamedTuple):
    """Which file inherited pages come from, and where it was when this one was saved."""

    checkpoint_id: bytes
    digest: bytes
    """Of the parent's commit record, which pins its header, index and all else; the index pins the chunks. In the
    header of an encrypted file (encryption.py), of the parent's header."""
    name: bytes
    """Its path, relative to the directory of the file that has this link. A hint: digests decide."""

    @property
    def hint(self) -> Path:
        return Path(os.fsdecode(self.name))

    def pack(self) -> bytes:
        """The section. Raises FormatError for a name that no reader would take."""
        self._check()
        return _PARENT.pack(self.checkpoint_id, self.digest) + self.name

    @classmethod
    def unpack(cls, data: bytes) -> ParentLink:
        """What the section says. Raises FormatError."""
        if len(data) <= _PARENT.size:
            raise FormatError("its parent has no name")
        checkpoint_id, digest = _PARENT.unpack_from(data)
        link = cls(checkpoint_id, digest, data[_PARENT.size :])
        link._check()
        return link

    def _check(self) -> None:
        if not 0 < len(self.name) <= MAX_PARENT_SIZE - _PARENT.size or b"\0" in self.name or self.name[:1] == b"/":
            raise FormatError("the name of its parent is no relative path")


def relative_name(parent: Path, child: Path) -> bytes:
    """The name that a link in a file at `child` has for a parent at `parent`."""
    # With links resolved: the kernel takes ".." for the directory that it is in.
    return os.fsencode(os.path.relpath(parent.resolve(), child.parent.resolve()))


class ActivePages(NamedTuple):
    """The pages that were seen accessed during the save, in the order of first access."""

    pages: array[int] = array("I")
    kinds: bytes = b""
    """An item a page: READ, WRITTEN, or both of them."""

    def pack(self) -> bytes:
        """The section; nothing if there are no pages."""
        import zstandard

        if not self.pages:
            return b""
        steps = map(sub, self.pages, chain((0,), self.pages))
        column = array("I", (step & _U32 for step in steps))
        return zstandard.ZstdCompressor(level=_LEVEL).compress(column.tobytes() + self.kinds)

    @classmethod
    def unpack(cls, frame: bytes, count: int, ram_pages: int) -> ActivePages:
        """What a section with `count` entries says. Raises FormatError."""
        if not count:
            return cls()
        if count > ram_pages:
            raise FormatError("more active pages than RAM has pages")
        data = decompress_exactly(frame, count * ACTIVE_ENTRY_SIZE)
        active = cls(summed_up(data[: 4 * count]), data[4 * count :])
        active.check(ram_pages)
        return active

    def check(self, ram_pages: int) -> None:
        """Raises FormatError for pages that are not in RAM or come twice, and for kinds that there are not."""
        if len(self.pages) != len(self.kinds) or len(self.pages) > MAX_ACTIVE_PAGES:
            raise FormatError("an active list of an impossible length")
        if self.pages and max(self.pages) >= ram_pages:
            raise FormatError("an active page is not in RAM")
        if len(set(self.pages)) != len(self.pages):
            raise FormatError("a page is active twice")
        if self.kinds and not READ <= min(self.kinds) <= max(self.kinds) <= READ | WRITTEN:
            raise FormatError("an active page was accessed in no known way")


def summed_up(steps: bytes) -> array[int]:
    """Page numbers from the steps between them, u32 modulo 2^32; the first is from zero."""
    try:
        return array("I", accumulate(array("i", steps)))
    except OverflowError:  # there are pages beyond 2^31, or nonsense
        return array("I", (page & _U32 for page in accumulate(array("I", steps))))


class ActiveNotes:
    """The active pages while they are being seen. One thread at a time.

    Holds the first MAX_ACTIVE_PAGES pages; what comes later is not noted, as nobody would load it ahead.
    """

    def __init__(self) -> None:
        self._kinds: dict[int, int] = {}

    def note(self, page: int, kind: int) -> bool:
        """A page was accessed: READ, WRITTEN or both. Its place in the order is that of its first access.

        Returns whether this was the first, and is noted.
        """
        kinds = self._kinds
        if page in kinds:
            kinds[page] |= kind
            return False
        if len(kinds) >= MAX_ACTIVE_PAGES:
            return False
        kinds[page] = kind
        return True

    def note_runs(self, runs: Iterable[PageRun], kind: int) -> None:
        """Whole runs of pages were accessed, in this order."""
        for run in runs:
            for page in range(run.first, run.end):
                self.note(page, kind)

    def pages(self) -> ActivePages:
        """What was noted so far."""
        return ActivePages(array("I", self._kinds), bytes(self._kinds.values()))
