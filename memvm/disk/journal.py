"""The journal beside a disk: FILE.journal, by which a flush happens wholly or not at all.

    header     magic "MVJOURNL", version, sector size, number of sectors, counter (big-endian)
    uuid       36 bytes: of which disk it is
    root       32 bytes: the integrity tree's root after it, or zeros
    numbers    8 bytes for each sector
    sectors    as they will lie on the disk
    checksum   SHA-256 of all that is before

It is written and synced before anything in the disk is changed. Found whole after a crash, it is carried out again,
which changes nothing if it had been. It has ciphertext only; who can change it can change the disk as well.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from memvm.errors import DiskError
from memvm.units import MIB

_MAGIC, _VERSION = b"MVJOURNL", 1
_HEADER = struct.Struct(">8sIIQQ36s32s")
_CHECKSUM_SIZE = 32
MOST_BYTES = 16 * MIB
"""Of sectors in one journal."""
NO_ROOT = bytes(32)


class Batch(NamedTuple):
    """Sectors that are to be changed together."""

    uuid: str
    counter: int
    root: bytes
    """NO_ROOT for a disk without an integrity tree."""
    sectors: Mapping[int, bytes]
    """Ciphertext by sector number."""

    def to_bytes(self, sector_size: int) -> bytes:
        """As in the file."""
        header = _HEADER.pack(
            _MAGIC, _VERSION, sector_size, len(self.sectors), self.counter, self.uuid.encode(), self.root
        )
        numbers = struct.pack(f">{len(self.sectors)}Q", *self.sectors)
        body = b"".join((header, numbers, *self.sectors.values()))
        return body + sha256(body).digest()


def read_batch(fd: int, where: str, uuid: str, sector_size: int, sectors: int) -> Batch | None:
    """What is in a journal; None if it is empty, or not whole: then it was never carried out.

    Raises DiskError, naming `where` it is, for one that is whole and of another disk; OSError.
    """
    raw = os.pread(fd, MOST_BYTES * 2, 0)
    if len(raw) < _HEADER.size + _CHECKSUM_SIZE or sha256(raw[:-_CHECKSUM_SIZE]).digest() != raw[-_CHECKSUM_SIZE:]:
        return None
    magic, version, size, count, counter, name, root = _HEADER.unpack_from(raw)
    begin = _HEADER.size + 8 * count
    if (magic, version, size) != (_MAGIC, _VERSION, sector_size) or name != uuid.encode():
        raise DiskError(f"{where}: this is not the journal of this disk", hint="if it is not needed, move it away")
    if len(raw) != begin + count * size + _CHECKSUM_SIZE:
        raise DiskError(f"{where}: the disk's journal has another length than it says")
    numbers = struct.unpack_from(f">{count}Q", raw, _HEADER.size)
    if any(number >= sectors for number in numbers):
        raise DiskError(f"{where}: the disk's journal has sectors beyond the disk's end")
    found = {number: raw[begin + at * size : begin + (at + 1) * size] for at, number in enumerate(numbers)}
    return Batch(uuid, counter, root, found)


def write_batch(fd: int, batch: Batch, sector_size: int) -> None:
    """Write it over whatever is there, and sync it. Raises OSError."""
    raw = batch.to_bytes(sector_size)
    os.ftruncate(fd, 0)
    write_all(fd, raw, 0)
    os.fsync(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite(2) until all is written. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
