"""The hint file: what earlier restores of a checkpoint used, in a small file beside it (FILE.hints).

    0      header, 64 bytes; all numbers are little endian and unsigned
              0  8s  magic "memvmHNT"
              8  u16 version, 1
             10  u16 header size, 64
             12  u32 N, pages
             16  16s id of the checkpoint that this is of
             32  u64 RAM size in bytes
             40  u32 restores that were merged into it, up to 2^32 - 1
             44  u32 length of what follows
             48  u32 crc32 of what follows
             52  8s  zero
             60  u32 crc32 of the bytes before
    64     one zstd frame that holds N entries, in the order in which they are likely to be needed
              0  u32[N] page, minus the page of the entry before, modulo 2^32
                 u8[N]  hits: how many restores used it, up to 255
                 u8[N]  age: how many restores ago the last of them was

A hint may be lost and never do harm: one that is damaged, of another checkpoint or of a newer memvm is not used, and
says why. It is replaced as a whole, by renaming; of two restores that end at once, one is forgotten.
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import sub
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from memvm.checkpoint.format import FormatError
from memvm.checkpoint.frames import decompress_exactly
from memvm.checkpoint.sections import summed_up
from memvm.recording.hints import MAX_AGE, MOST_HINTS, PageHint
from memvm.units import PAGE_SIZE

VERSION = 1
MAGIC = b"memvmHNT"
MAX_RESTORES = (1 << 32) - 1
_HEADER = struct.Struct("<8sHHI16sQIII8xI")
HEADER_SIZE = _HEADER.size
assert HEADER_SIZE == 64
_ENTRY_SIZE = 6
_LEVEL = 3
_U32 = (1 << 32) - 1


class Hints(NamedTuple):
    """What earlier restores of one checkpoint used, in columns: a restore waits for this, and needs the pages only."""

    checkpoint_id: bytes
    ram_size: int
    """Bytes."""
    restores: int = 0
    """How many were merged."""
    pages: array[int] = array("I")
    """In the order in which they are likely to be needed."""
    hits: bytes = b""
    ages: bytes = b""

    @property
    def entries(self) -> list[PageHint]:
        """The same, page by page."""
        return list(map(PageHint, self.pages, self.hits, self.ages))

    def with_entries(self, entries: Sequence[PageHint], restores: int) -> Hints:
        """Hints of the same checkpoint: other ones."""
        numbers, hits, ages = ([hint[column] for hint in entries] for column in range(3))
        return Hints(self.checkpoint_id, self.ram_size, restores, array("I", numbers), bytes(hits), bytes(ages))

    def pack(self) -> bytes:
        """The file's bytes."""
        import zstandard

        steps = array("I", (step & _U32 for step in map(sub, self.pages, chain((0,), self.pages))))
        frame = zstandard.ZstdCompressor(level=_LEVEL).compress(steps.tobytes() + self.hits + self.ages)
        fields = (MAGIC, VERSION, HEADER_SIZE, len(self.pages), *self[:3], len(frame), crc32(frame))
        return _HEADER.pack(*fields, crc32(_HEADER.pack(*fields, 0)[:-4])) + frame

    @classmethod
    def unpack(cls, data: bytes) -> Hints:
        """What a file's bytes say. Raises FormatError."""
        if len(data) < HEADER_SIZE or not data.startswith(MAGIC):
            raise FormatError("it is no hint file of memvm")
        _, version, size, count, identity, ram_size, restores, length, checksum, own = _HEADER.unpack_from(data)
        if version > VERSION:  # before the checksum: a newer version may have it in another place
            raise FormatError(f"it was written by a newer memvm: version {version}, this one reads {VERSION}")
        frame = data[HEADER_SIZE:]
        fields = (MAGIC, VERSION, HEADER_SIZE, *(count, identity, ram_size, restores, length, checksum))
        if data[:HEADER_SIZE] != _HEADER.pack(*fields, own) or own != crc32(data[: HEADER_SIZE - 4]):
            raise FormatError("its header is damaged")
        if size != HEADER_SIZE or length != len(frame) or checksum != crc32(frame):
            raise FormatError("it is damaged")
        if count > min(MOST_HINTS, ram_size // PAGE_SIZE):
            raise FormatError("it has more pages than there may be")
        columns = decompress_exactly(frame, count * _ENTRY_SIZE)
        pages = summed_up(columns[: 4 * count])
        hits, ages = columns[4 * count : 5 * count], columns[5 * count :]
        if count and (max(pages) >= ram_size // PAGE_SIZE or len(set(pages)) != count):
            raise FormatError("it has a page that is not in RAM, or one twice")
        if count and (min(hits) == 0 or max(ages) >= MAX_AGE):
            raise FormatError("it has a page that no restore used")
        return cls(identity, ram_size, restores, pages, hits, ages)


def hint_path(checkpoint: Path) -> Path:
    """Where the hints of a checkpoint are."""
    return checkpoint.with_name(checkpoint.name + ".hints")


def read_hints(checkpoint: Path, fresh: Hints) -> tuple[Hints, str]:
    """The hints of a checkpoint and nothing, or `fresh` ones, without pages, and why what is there cannot be used.

    If nothing is there, that is no reason.
    """
    path = hint_path(checkpoint)
    try:
        hints = Hints.unpack(_contents(path))
        if hints[:2] != fresh[:2]:
            raise FormatError("it is of another checkpoint")
    except FileNotFoundError:
        return fresh, ""
    except OSError as error:
        return fresh, f"{path} cannot be read: {error.strerror}"
    except FormatError as error:
        return fresh, f"{path} is not used: {error}"
    return hints, ""


def write_hints(checkpoint: Path, hints: Hints) -> None:
    """Replace the hints of a checkpoint. Raises SaveError and OSError; the old ones are whole then."""
    from memvm.checkpoint.pending_file import PendingFile  # most restores write nothing

    file = PendingFile(hint_path(checkpoint))
    try:
        with open(file.fd, "wb", closefd=False) as stream:
            stream.write(hints.pack())
        file.publish()
    finally:
        file.discard()


def merged(hints: Hints, touched: Iterable[int], most: int) -> Hints:
    """The hints after one more restore, which used these pages in this order; at most so many pages are kept."""
    from memvm.recording.hints import merge

    entries = merge(hints.entries, touched, min(most, MOST_HINTS))
    return hints.with_entries(entries, min(MAX_RESTORES, hints.restores + 1))


def _contents(path: Path) -> bytes:
    most = HEADER_SIZE + 2 * _ENTRY_SIZE * MOST_HINTS
    # Not blocking: somebody may have put a named pipe there.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise FormatError("it is no hint file of memvm")
        return file.read(most)
