"""The checkpoint file, version 2: what its bytes mean.

All numbers are little endian and unsigned. The file has no gaps: each byte below is under a checksum,
and the last ones commit it.

    0             header, 64 bytes
                     0  8s  magic "memvmCKP"
                     8  u16 version, 2
                    10  u16 header size, 64
                    12  u32 page size, 4096
                    16  u64 RAM base: the guest's address of page 0
                    24  u64 RAM size in bytes
                    32  u32 chunk pages: the most pages that a chunk holds
                    36  u32 block size: bytes of the staging buffer that the writer had
                    40  16s checkpoint id, random
                    56  u32 crc32 of the bytes before
                    60  4s  zero
    64            storage blocks: chunks, back to back. A chunk is one zstd frame with its content size
                  in its header, and holds the pages of its runs one after the other.
    index offset  index: columns (see index.py)
                     0  u64 C, chunks
                     8  u64 R, runs of pages in chunks
                    16  u64 Z, runs of zero pages
                    24  u64 I, runs of inherited pages
                    32  u64 S, superseded runs
                    40  u64[C] offset of the chunk in the file
                        u32[C] its length
                        u32[C] the lower half of the XXH3 hash, 64 bits, of its frame
                        u32[C] run end: chunk i has the runs from run end[i-1] (0 for the first) to run end[i]
                        u32[R] first page of the run, counted from the RAM base
                        u32[Z] first page of the zero run
                        u32[Z] pages in the zero run
                        u32[I] first page of the inherited run
                        u32[I] pages in the inherited run
                        u32[S] numbers of the runs in chunks that are superseded, ascending
                        u16[R] pages in the run
    behind it     parent, if there is one: the file that inherited pages come from (see sections.py)
                     0  16s checkpoint id of the parent
                    16  32s SHA-256 of its commit record, which pins everything in it
                    48  its path, relative to this file's directory, as it was when this file was saved:
                        1 to 4095 bytes, none of them zero
    behind it     active list, if there is one: a zstd frame that holds N entries, in the order of first access
                     0  u32[N] page, minus the page of the entry before, modulo 2^32
                        u8[N]  1 if it was read, 2 if it was written, 3 for both
    state offset  state: one zstd frame; what it holds is not this layer's business
    size - 248    commit record, 248 bytes
                     0  8s  magic "memvmEND"
                     8  u64 index offset
                    16  u64 index length
                    24  32s SHA-256 of the index
                    56  u64 state offset
                    64  u64 state length in the file
                    72  u64 state length as it was
                    80  32s SHA-256 of the state in the file
                   112  32s SHA-256 of the header
                   144  u64 length of the file
                   152  u64 parent length; 0 without a parent
                   160  32s SHA-256 of the parent section
                   192  u64 active list length in the file; 0 without an active list
                   200  32s SHA-256 of the active list in the file
                   232  u64 N, entries of the active list
                   240  u32 zero
                   244  u32 crc32 of the bytes before

A page is in one run that is not superseded, or in none. Pages of zero runs were touched and hold zeros.
Inherited pages hold what they hold in the parent, and are zero if it has nothing. Pages in no run are holes
that were never touched, or given back, whatever the parent has. A superseded run is bytes in a frame that no page
has any more, because its pages were stored again, or said to be something else, later in the save.

In version 1 the counts I and S, their columns, parent and active list are missing: the index has C at 24,
the state follows it, and the commit record has its last 8 bytes at 152. Frames have their crc32 in the index there.

The index is not compressed: it is about a thousandth of the file, and so its length in the file bounds the
memory that reading it takes.

Checksums find accidents. They do not stop somebody who can write the file; the checks of bounds do
keep such a file from doing harm.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple
from zlib import crc32

from memvm.units import KIB, MIB, PAGE_SIZE

VERSION = 2
OLDEST_VERSION = 1
HEADER_MAGIC = b"memvmCKP"
COMMIT_MAGIC = b"memvmEND"
ENCRYPTED_MAGIC = b"memvmENC"
"""Of a file that has a checkpoint in encrypted records: encryption.py draws it."""

MAX_RAM_SIZE = 1 << 44
MAX_ADDRESS = 1 << 47
"""End of a process's addresses on x86-64 with four-level page tables."""
MAX_CHUNK_PAGES = 256
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 4 * KIB, 256 * MIB
MAX_INDEX_SIZE = 256 * MIB
"""Enough for 600 GiB of pages in runs of 16, or 40 GiB of pages each of which is a chunk by itself."""
MAX_STATE_SIZE = 384 * MIB
"""The files that a guest has in memory are a part of its state: 256 MiB of them, in base64."""
MAX_PARENT_SIZE = 48 + 4095
MAX_ACTIVE_PAGES = 1 << 22
"""16 GiB of active pages: more than anybody wants to load before a guest runs."""
ACTIVE_ENTRY_SIZE = 5
_U32 = (1 << 32) - 1

COUNTS = {1: struct.Struct("<QQQ"), 2: struct.Struct("<QQQQQ")}
"""The index's first bytes, by version: how long its columns are."""
_HEADER = struct.Struct("<8sHHIQQII16sI4x")
_COMMIT = {1: struct.Struct("<8sQQ32sQQQ32s32sQ4xI"), 2: struct.Struct("<8sQQ32sQQQ32s32sQQ32sQ32sQ4xI")}
HEADER_SIZE = _HEADER.size
COMMIT_SIZE = {version: layout.size for version, layout in _COMMIT.items()}
"""Bytes of the commit record, by version."""
assert (HEADER_SIZE, COMMIT_SIZE) == (64, {1: 160, 2: 248})

_HEADER_CRC_OFFSET = 56
_CRC_SIZE = 4
_OF_NOTHING = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""SHA-256 of no bytes."""


def chunk_checksum(version: int) -> Callable[[bytes | memoryview], int]:
    """What computes the checksum of a chunk's frame, for a version of the format."""
    if version == 1:
        return crc32
    from xxhash import xxh3_64_intdigest as xxh3  # seven times as fast as crc32: a save and a restore would feel it

    return lambda frame: xxh3(frame) & _U32


class FormatError(ValueError):
    """Bytes that are no checkpoint of this version: what is wrong, without the file's name.

    Whoever knows the file turns it into a CheckpointError.
    """


class NewerVersion(FormatError):
    """The file says that a newer memvm wrote it."""


class Encrypted(FormatError):
    """The file is encrypted, and was to be read as one that is not."""


class Incomplete(FormatError):
    """The file does not end with a commit record for its length."""


class FileHeader(NamedTuple):
    """What holds for the whole file; sizes in bytes."""

    ram_base: int
    ram_size: int
    chunk_pages: int
    block_size: int
    checkpoint_id: bytes
    page_size: int = PAGE_SIZE
    version: int = VERSION

    @property
    def ram_pages(self) -> int:
        return self.ram_size // self.page_size

    @property
    def max_frame_size(self) -> int:
        """No zstd frame of a chunk is longer: ZSTD_compressBound of a chunk's pages, rounded up."""
        chunk_size = self.chunk_pages * self.page_size
        return chunk_size + (chunk_size >> 8) + 128

    def pack(self) -> bytes:
        fields = (
            HEADER_MAGIC,
            self.version,
            HEADER_SIZE,
            self.page_size,
            self.ram_base,
            self.ram_size,
            self.chunk_pages,
            self.block_size,
            self.checkpoint_id,
        )
        return _HEADER.pack(*fields, crc32(_HEADER.pack(*fields, 0)[:_HEADER_CRC_OFFSET]))

    @classmethod
    def unpack(cls, data: bytes) -> FileHeader:
        """The header that the file's first bytes hold. Raises FormatError."""
        if not data:
            raise FormatError("the file is empty")
        if data.startswith(ENCRYPTED_MAGIC):
            raise Encrypted("it is encrypted, of a sealed guest: nobody but an attested platform can look into it")
        if not HEADER_MAGIC.startswith(data[: len(HEADER_MAGIC)]):
            raise FormatError("not a memvm checkpoint")
        if len(data) != HEADER_SIZE:
            raise Incomplete("incomplete: the save did not finish, or the file was cut")
        _, version, _, page_size, ram_base, ram_size, chunk_pages, block_size, checkpoint_id, _ = _HEADER.unpack(data)
        # Before the checksum: a newer version may have it in another place.
        if version > VERSION:
            raise NewerVersion(f"written by a newer memvm: format version {version}, this one reads {VERSION}")
        header = cls(ram_base, ram_size, chunk_pages, block_size, checkpoint_id, page_size, version)
        if header.pack() != data:
            raise FormatError("the header is damaged")
        header.check()
        return header

    def check(self) -> None:
        """Raises FormatError if a number is out of its bounds."""
        if not OLDEST_VERSION <= self.version <= VERSION:
            raise FormatError(f"impossible format version {self.version}")
        if self.page_size != PAGE_SIZE:
            raise FormatError(f"page size {self.page_size}, not {PAGE_SIZE}")
        if not 0 < self.ram_size <= MAX_RAM_SIZE or self.ram_size % PAGE_SIZE:
            raise FormatError(f"impossible RAM size {self.ram_size:#x}")
        if self.ram_base % PAGE_SIZE or not 0 <= self.ram_base <= MAX_ADDRESS - self.ram_size:
            raise FormatError(f"impossible RAM base {self.ram_base:#x}")
        if not 1 <= self.chunk_pages <= MAX_CHUNK_PAGES:
            raise FormatError(f"chunks of {self.chunk_pages} pages, not 1 to {MAX_CHUNK_PAGES}")
        if not MIN_BLOCK_SIZE <= self.block_size <= MAX_BLOCK_SIZE:
            raise FormatError(f"storage blocks of {self.block_size} bytes")
        if len(self.checkpoint_id) != 16:
            raise FormatError(f"a checkpoint id of {len(self.checkpoint_id)} bytes, not 16")


class CommitRecord(NamedTuple):
    """Where the parts of the file are, and their digests; offsets and lengths in bytes."""

    index_offset: int
    index_length: int
    index_sha256: bytes
    state_offset: int
    state_length: int
    state_raw_length: int
    state_sha256: bytes
    header_sha256: bytes
    file_length: int
    parent_length: int = 0
    parent_sha256: bytes = _OF_NOTHING
    active_length: int = 0
    active_sha256: bytes = _OF_NOTHING
    active_pages: int = 0
    version: int = VERSION
    """Of the file: it is in the header, not in the record."""

    @property
    def parent_offset(self) -> int:
        return self.index_offset + self.index_length

    @property
    def active_offset(self) -> int:
        return self.parent_offset + self.parent_length

    def pack(self) -> bytes:
        layout = _COMMIT[self.version]
        fields = self[:9] if self.version == 1 else self[:-1]
        return layout.pack(COMMIT_MAGIC, *fields, crc32(layout.pack(COMMIT_MAGIC, *fields, 0)[:-_CRC_SIZE]))

    @classmethod
    def unpack(cls, data: bytes, file_length: int, version: int) -> CommitRecord:
        """The record that the last bytes of a file of `file_length` hold. Raises FormatError."""
        if not data.startswith(COMMIT_MAGIC) or len(data) != COMMIT_SIZE[version]:
            raise Incomplete("incomplete: the save did not finish, or the file was cut")
        record = cls(*_COMMIT[version].unpack(data)[1:-1])._replace(version=version)
        if record.pack() != data:
            raise FormatError("the commit record is damaged")
        if record.file_length != file_length:
            raise Incomplete(f"incomplete: it has {file_length} bytes of {record.file_length}")
        record.check()
        return record

    def check(self) -> None:
        """Raises FormatError unless storage, sections and record follow one another without a gap."""
        if (
            self.index_offset < HEADER_SIZE
            or self.active_offset + self.active_length != self.state_offset
            or self.state_offset + self.state_length != self.file_length - COMMIT_SIZE[self.version]
        ):
            raise FormatError("the commit record contradicts itself")
        if not COUNTS[self.version].size <= self.index_length <= MAX_INDEX_SIZE:
            raise FormatError(f"an index of {self.index_length} bytes; at most {MAX_INDEX_SIZE} are allowed")
        if self.parent_length > MAX_PARENT_SIZE:
            raise FormatError(f"a parent section of {self.parent_length} bytes; at most {MAX_PARENT_SIZE} are allowed")
        if self.active_pages > MAX_ACTIVE_PAGES or self.active_length > 2 * ACTIVE_ENTRY_SIZE * MAX_ACTIVE_PAGES:
            raise FormatError(f"an active list of {self.active_pages} pages; at most {MAX_ACTIVE_PAGES} are allowed")
        if bool(self.active_pages) != bool(self.active_length):
            raise FormatError("the commit record contradicts itself")
        if self.state_raw_length > MAX_STATE_SIZE or self.state_length > 2 * MAX_STATE_SIZE:
            raise FormatError(f"a state of {self.state_raw_length} bytes; at most {MAX_STATE_SIZE} are allowed")


def sha256(parts: Iterable[bytes | memoryview]) -> bytes:
    """The digest of the parts, one after the other."""
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
