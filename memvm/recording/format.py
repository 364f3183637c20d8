"""The recording file, version 1: what its bytes mean.

All numbers are little endian and unsigned. A recording is written while the guest runs, a block at a time, and
only ever appended to; so one that was cut short is good up to its last whole block.

    0             header, 128 bytes
                     0  8s  magic "memvmREC"
                     8  u16 version, 1
                    10  u16 header size, 128
                    12  u32 page size, 4096
                    16  u64 RAM base: the guest's address of page 0
                    24  u64 RAM size in bytes
                    32  u64 start: ns of the host's CLOCK_MONOTONIC
                    40  u64 start: ns since the epoch, for people
                    48  64s name of the guest, UTF-8, zeros behind it
                   112  12s zero
                   124  u32 crc32 of the bytes before
    128           blocks, back to back
                     0  4s  kind: "EVTS", "RGNS" or "ENDS"
                     4  u32 payload length in bytes
                     8  u32 events in the block; in ENDS: zero
                    12  u32 crc32 of the payload
                    16  u64 dropped: events that were lost since the block before
                    24  u32 zero
                    28  u32 crc32 of the bytes before
                    32      payload

    EVTS    up to 65,536 events: one zstd frame with its content size in its header. It holds 25 bytes an event, in
            columns: page, time, instruction, vCPU, access. Each column but the last has differences to the event
            before (0 before the first), zigzag coded (0, -1, 1, -2 ... are 0, 1, 2, 3 ...), their lowest bytes
            first, then the second lowest of all, and so on. Small differences so become long rows of zero bytes.
                     u32[n] page          4 planes of n bytes
                     u64[n] time          8 planes
                     u64[n] instruction   8 planes
                     u32[n] vCPU          4 planes
                     u8[n]  access        as it is: 1 read, 2 write, 3 both
    RGNS    one zstd frame of JSON: [[start address, end address, name], ...], what parts of RAM are for. The last
            such block counts.
    ENDS    nothing. The recording was ended in good order; nothing follows.

Blocks do not build on one another, and each length is bounded. Checksums find accidents, not attackers; the bounds keep
a hostile file from doing harm.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import sub
from typing import NamedTuple
from zlib import crc32

from memvm.memory.events import TraceEvent
from memvm.units import MIB, PAGE_SIZE

VERSION = 1
MAGIC = b"memvmREC"
MAX_RAM_SIZE = 1 << 43
"""So that a difference of page numbers fits its column."""
MAX_ADDRESS = 1 << 47
MAX_BLOCK_EVENTS = 1 << 16
MAX_REGIONS = 4096
MAX_REGION_NAME = 100
MAX_NAME_SIZE = 64
_MAX_REGIONS_SIZE = 8 * MIB
_EVENT_SIZE = 25
_U63 = (1 << 63) - 1

_HEADER = struct.Struct("<8sHHIQQQQ64s12xI")
_BLOCK = struct.Struct("<4sIIIQ4xI")
HEADER_SIZE, BLOCK_HEADER_SIZE = _HEADER.size, _BLOCK.size
assert (HEADER_SIZE, BLOCK_HEADER_SIZE) == (128, 32)

EVENTS, REGIONS, END = b"EVTS", b"RGNS", b"ENDS"


class FormatError(ValueError):
    """Bytes that are no recording of this version: what is wrong, without the file's name."""


@dataclass(frozen=True)
class NamedRegion:
    """What the guest addresses [start, end) are for."""

    start: int
    end: int
    name: str


class RecordingHeader(NamedTuple):
    """What holds for the whole recording; sizes in bytes, times in nanoseconds."""

    name: str
    """The guest's."""
    ram_base: int
    ram_size: int
    started: int
    """CLOCK_MONOTONIC of the host, as in the events."""
    started_at: int
    """Since the epoch."""

    @property
    def ram_pages(self) -> int:
        """How many pages RAM has."""
        return self.ram_size // PAGE_SIZE

    def pack(self) -> bytes:
        """The header's bytes."""
        fields = (*(MAGIC, VERSION, HEADER_SIZE, PAGE_SIZE), *self[1:], self.name.encode())
        return _HEADER.pack(*fields, crc32(_HEADER.pack(*fields, 0)[:-4]))

    @classmethod
    def unpack(cls, data: bytes) -> RecordingHeader:
        """The header that a file's first bytes hold. Raises FormatError."""
        if not data:
            raise FormatError("the file is empty")
        if not MAGIC.startswith(data[: len(MAGIC)]):
            raise FormatError("not a recording of memvm")
        if len(data) != HEADER_SIZE:
            raise FormatError("it was cut short before anything was recorded")
        _, version, _, page_size, base, size, started, started_at, name, _ = _HEADER.unpack(data)
        if version > VERSION:  # before the checksum: a newer version may have it in another place
            raise FormatError(f"written by a newer memvm: format version {version}, this one reads {VERSION}")
        header = cls(name.rstrip(b"\0").decode(errors="replace"), base, size, started, started_at)
        if page_size != PAGE_SIZE or _HEADER.unpack(data)[-1] != crc32(data[:-4]) or header.pack() != data:
            raise FormatError("the header is damaged")
        header.check()
        return header

    def check(self) -> None:
        """Raises FormatError if something is out of its bounds."""
        if not 0 < self.ram_size <= MAX_RAM_SIZE or self.ram_size % PAGE_SIZE:
            raise FormatError(f"impossible RAM size {self.ram_size:#x}")
        if self.ram_base % PAGE_SIZE or not 0 <= self.ram_base <= MAX_ADDRESS - self.ram_size:
            raise FormatError(f"impossible RAM base {self.ram_base:#x}")
        if not (0 <= self.started <= _U63 and 0 <= self.started_at <= _U63):
            raise FormatError("impossible time of the start")
        if len(self.name.encode(errors="surrogatepass")) > MAX_NAME_SIZE or "\0" in self.name:
            raise FormatError("impossible name of the guest")


@dataclass(frozen=True)
class EventBlock:
    """Some events in the order in which they were seen, in columns; `dropped` were lost right before them."""

    pages: Sequence[int]
    accesses: Sequence[int]
    vcpus: Sequence[int]
    times: Sequence[int]
    instructions: Sequence[int]
    dropped: int = 0

    @classmethod
    def of(cls, events: Sequence[TraceEvent], dropped: int = 0) -> EventBlock:
        """The block of some events."""
        if not events:
            return cls((), (), (), (), (), dropped)
        pages, accesses, vcpus, times, instructions = zip(*events, strict=True)
        return cls(pages, accesses, vcpus, times, instructions, dropped)

    def __iter__(self) -> Iterator[TraceEvent]:
        return map(TraceEvent, self.pages, self.accesses, self.vcpus, self.times, self.instructions)

    def check(self, ram_pages: int) -> None:
        """Raises FormatError if a number is out of its bounds."""
        if not self.pages:
            return
        if not 0 <= min(self.pages) <= max(self.pages) < ram_pages:
            raise FormatError(f"page {max(self.pages)} is not in guest RAM")
        if not 1 <= min(self.accesses) <= max(self.accesses) <= 3:
            raise FormatError("an access that is neither read nor write")
        if not 0 <= min(self.vcpus) <= max(self.vcpus) < 1 << 31:
            raise FormatError("an impossible vCPU")
        if not 0 <= min(self.times) <= max(self.times) <= _U63:
            raise FormatError("an impossible time")
        if not 0 <= min(self.instructions) <= max(self.instructions) <= _U63:
            raise FormatError("an impossible instruction")


class BlockHeader(NamedTuple):
    """What stands before a block's payload."""

    kind: bytes
    length: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of it
    crc: int
    dropped: int

    def pack(self) -> bytes:
        """The header's bytes."""
        return _BLOCK.pack(*self, crc32(_BLOCK.pack(*self, 0)[:-4]))

    @classmethod
    def unpack(cls, data: bytes) -> BlockHeader:
        """The header in these bytes. Raises FormatError."""
        header = cls(*_BLOCK.unpack(data)[:-1])
        if header.pack() != data:
            raise FormatError("the head of a block is damaged")
        limit = {EVENTS: frame_limit(header.count * _EVENT_SIZE), REGIONS: frame_limit(_MAX_REGIONS_SIZE), END: 0}
        if header.kind not in limit or header.length > limit[header.kind]:
            raise FormatError("a block of an impossible kind or length")
        if header.count > MAX_BLOCK_EVENTS or (header.kind != EVENTS and header.count):
            raise FormatError(f"a block of {header.count} events")
        return header


def pack_block(kind: bytes, payload: bytes = b"", count: int = 0, dropped: int = 0) -> bytes:
    """A whole block."""
    return BlockHeader(kind, len(payload), count, crc32(payload), dropped).pack() + payload


def pack_events(block: EventBlock, ram_pages: int) -> bytes:
    """A block of at most MAX_BLOCK_EVENTS events. Raises FormatError if one is impossible."""
    block.check(ram_pages)
    raw = b"".join(
        (
            *_planes("I", block.pages),
            *_planes("Q", block.times),
            *_planes("Q", block.instructions),
            *_planes("I", block.vcpus),
            bytes(block.accesses),
        )
    )
    return pack_block(EVENTS, _compress(raw), len(block.pages), block.dropped)


def unpack_events(header: BlockHeader, payload: bytes, ram_pages: int) -> EventBlock:
    """The events in a block's payload. Raises FormatError."""
    n = header.count
    raw = memoryview(_decompress(payload, n * _EVENT_SIZE))
    pages = _from_planes("I", raw[: 4 * n])
    times = _from_planes("Q", raw[4 * n : 12 * n])
    instructions = _from_planes("Q", raw[12 * n : 20 * n])
    vcpus = _from_planes("I", raw[20 * n : 24 * n])
    block = EventBlock(pages, bytes(raw[24 * n :]), vcpus, times, instructions, header.dropped)
    block.check(ram_pages)
    return block


def pack_regions(regions: Sequence[NamedRegion]) -> bytes:
    """A block that says what parts of RAM are for; what is more than a file may have is left out."""
    return pack_block(REGIONS, _compress(json.dumps(region_rows(regions), separators=(",", ":")).encode()))


def region_rows(regions: Sequence[NamedRegion]) -> list[list[int | str]]:
    """Regions as JSON has them; what is more than a file may have is left out."""
    return [[region.start, region.end, region.name[:MAX_REGION_NAME]] for region in regions[:MAX_REGIONS]]


def unpack_regions(payload: bytes) -> list[NamedRegion]:
    """The regions in a block's payload. Raises FormatError."""
    try:
        rows = json.loads(_decompress(payload, None))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a list of regions that cannot be read: {error}") from None
    return regions_from(rows)


def regions_from(rows: object) -> list[NamedRegion]:
    """Regions from what JSON has of them. Raises FormatError."""
    if not isinstance(rows, list) or len(rows) > MAX_REGIONS:
        raise FormatError("a list of regions that makes no sense")
    regions = []
    for row in rows:
        if not isinstance(row, list) or [type(item) for item in row] != [int, int, str]:
            raise FormatError("a region that makes no sense")
        if not 0 <= row[0] < row[1] <= MAX_ADDRESS or len(row[2]) > MAX_REGION_NAME:
            raise FormatError("an impossible region")
        regions.append(NamedRegion(*row))
    return regions


def frame_limit(size: int) -> int:
    """No zstd frame of so many bytes is longer: ZSTD_compressBound, rounded up."""
    return size + (size >> 8) + 128


def _planes(kind: str, values: Sequence[int]) -> Iterator[bytes]:
    """A column as differences, zigzag coded, in planes of bytes."""
    differences = map(sub, values, chain((0,), values))
    data = array(kind, [difference << 1 if difference >= 0 else ~(difference << 1) for difference in differences])
    width = data.itemsize
    raw = data.tobytes()  # x86-64 only, so little endian
    return (raw[plane::width] for plane in range(width))


def _from_planes(kind: str, raw: memoryview) -> array[int]:
    """The column that _planes was given. Raises FormatError."""
    coded = array(kind)
    width = coded.itemsize
    count = len(raw) // width
    data = bytearray(len(raw))
    for plane in range(width):
        data[plane::width] = raw[plane * count : (plane + 1) * count]
    coded.frombytes(data)
    try:
        return array(kind, accumulate([code >> 1 if not code & 1 else ~(code >> 1) for code in coded]))
    except OverflowError:
        raise FormatError("differences that lead out of all bounds") from None


def _decompress(frame: bytes, size: int | None) -> bytes:
    """What a zstd frame holds: `size` bytes, or not more than regions may have. Raises FormatError.

    The frame's own word on its size is compared first: python-zstandard believes it, and would allocate what it says.
    """
    import zstandard

    try:
        said = zstandard.get_frame_parameters(frame).content_size
        if said != size and (size is not None or not 0 <= said <= _MAX_REGIONS_SIZE):
            raise FormatError("a frame of another size than it may have")
        data = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompress(
            frame, max_output_size=said, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise FormatError(f"a frame that cannot be decompressed: {error}") from None
    if len(data) != said:
        raise FormatError(f"a frame that holds {len(data)} bytes instead of {said}")
    return data


def _compress(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(data)
