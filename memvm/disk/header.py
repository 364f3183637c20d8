"""The binary header of a LUKS2 file, and its two copies (LUKS2 On-Disk Format 1.1, section 2).

    0          4096                hdr_size                       2 × hdr_size            first segment
    ┌──────────┬───────────────────┬──────────┬──────────────────┬──────────────────────┬─────────────┐
    │ binary   │ JSON, zero-padded │ binary   │ JSON             │ keyslots area        │ data        │
    └──────────┴───────────────────┴──────────┴──────────────────┴──────────────────────┴─────────────┘
      primary copy: "LUKS\\xba\\xbe"   secondary: "SKUL\\xba\\xbe"

Both copies say the same; they differ in magic, salt, offset and checksum. A change writes one copy after the other,
each with a higher sequence number, so that at any moment one of them is whole. The checksum is no protection against
people: whoever writes the file computes it anew. That the header is the one that is meant, only a digest that is kept
elsewhere tells (volume.py).
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import NamedTuple

from memvm.errors import DiskError
from memvm.units import KIB, MIB

BINARY_SIZE = 4096
HEADER_SIZES = tuple(size * KIB for size in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096))
"""The sizes that a copy may have, JSON included."""
PRIMARY, SECONDARY = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
_VERSION = 2
_LAYOUT = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_CHECKSUM_OFFSET = _LAYOUT.size - 64
_CHECKSUM = "sha256"
SEARCHED = 4 * MIB
"""Where a secondary copy can begin, at the most."""
_MOST_SEQUENCE = 1 << 62


class Header(NamedTuple):
    """What both copies say."""

    size: int
    """Bytes of one copy."""
    sequence: int
    label: str
    uuid: str
    subsystem: str
    json: bytes
    """The metadata, without the padding."""

    def copies(self) -> tuple[bytes, bytes]:
        """Both copies, each with a salt of its own."""
        return self._copy(PRIMARY, 0), self._copy(SECONDARY, self.size)

    def _copy(self, magic: bytes, offset: int) -> bytes:
        if len(self.json) >= self.size - BINARY_SIZE:
            raise DiskError(f"the disk's metadata of {len(self.json)} bytes do not fit into its header")
        binary = _LAYOUT.pack(
            magic,
            _VERSION,
            self.size,
            self.sequence,
            self.label.encode(),
            _CHECKSUM.encode(),
            os.urandom(64),
            self.uuid.encode(),
            self.subsystem.encode(),
            offset,
            b"",
            b"",
        )
        copy = bytearray(self.size)
        copy[: len(binary)] = binary
        copy[BINARY_SIZE : BINARY_SIZE + len(self.json)] = self.json
        digest = hashlib.new(_CHECKSUM, copy).digest()
        copy[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + len(digest)] = digest
        return bytes(copy)


def read_header(fd: int, where: str) -> Header:
    """The newest copy that is whole. Raises DiskError, naming `where` it is, if none is; OSError."""
    problems = []
    found: list[Header] = []
    for magic, offset in _places(os.pread(fd, BINARY_SIZE, 0)):
        try:
            found.append(_read_copy(fd, magic, offset))
        except DiskError as error:
            problems.append(f"{'primary' if magic == PRIMARY else 'secondary'} header: {error.message}")
        if magic == SECONDARY and found and found[-1].size == offset:
            break  # of several secondary copies, those behind the first whole one are somebody's data
    if not found:
        raise DiskError(f"{where}: this is no LUKS2 disk: {problems[0]}", hint="memvm disk create makes one")
    return max(found, key=lambda header: header.sequence)


def _places(beginning: bytes) -> list[tuple[bytes, int]]:
    """Where copies may be: the primary says where the secondary is, if it can be believed that far."""
    if len(beginning) >= _LAYOUT.size and beginning.startswith(PRIMARY):
        size = _LAYOUT.unpack_from(beginning)[2]
        if size in HEADER_SIZES:
            others = [size, *(other for other in HEADER_SIZES if other != size)]
            return [(PRIMARY, 0), *((SECONDARY, offset) for offset in others)]
    return [(PRIMARY, 0), *((SECONDARY, offset) for offset in HEADER_SIZES)]


def _read_copy(fd: int, magic: bytes, offset: int) -> Header:
    binary = os.pread(fd, BINARY_SIZE, offset)
    if len(binary) < BINARY_SIZE:
        raise DiskError("the file ends before it")
    (found, version, size, sequence, label, algorithm, _salt, uuid, subsystem, place, padding, checksum) = (
        _LAYOUT.unpack_from(binary)
    )
    if found != magic or version != _VERSION:
        raise DiskError("it has another magic number, or another version")
    if size not in HEADER_SIZES or place != offset or (magic == SECONDARY and size != offset):
        raise DiskError("its size or its place is none that a header has")
    if _text(algorithm) != _CHECKSUM:
        raise DiskError(f"its checksum is {_text(algorithm)!r:.40}, and only {_CHECKSUM} is known here")
    if any(padding) or any(binary[_LAYOUT.size :]) or sequence > _MOST_SEQUENCE:
        raise DiskError("it has something where nothing may be")
    whole = bytearray(os.pread(fd, size, offset))
    if len(whole) < size:
        raise DiskError("the file ends within it")
    whole[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 64] = bytes(64)
    digest = hashlib.new(_CHECKSUM, whole).digest()
    if checksum != digest.ljust(64, b"\0"):
        raise DiskError("its checksum is wrong")
    json, _, rest = bytes(whole[BINARY_SIZE:]).partition(b"\0")
    if rest.strip(b"\0"):
        raise DiskError("something follows its metadata")
    return Header(size, sequence, _text(label), _text(uuid), _text(subsystem), json)


def _text(raw: bytes) -> str:
    text, _, rest = raw.partition(b"\0")
    if rest.strip(b"\0"):
        raise DiskError("a text in it goes on behind its end")
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise DiskError("a text in it is not UTF-8") from None
