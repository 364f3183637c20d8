"""Looks for recordings that do harm: changes valid ones, and reads them as `memvm heatmap` would.

    python3 -m tools.fuzz_recording [--seconds 60] [--files N] [--seed 1]

Half of the changed binary files have their checksums made right again, so that the checks behind those are reached.
Nothing but RecordingError may come out, each event that comes out has to be possible, and no file may take more than a
second of CPU time. A file that does not keep to that is named by the seed that makes it again, and the exit status
is 1.
"""

from __future__ import annotations

import io
import random
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from memvm.errors import RecordingError
from memvm.memory.events import TraceEvent
from memvm.recording.format import BLOCK_HEADER_SIZE, HEADER_SIZE, NamedRegion, RecordingHeader
from memvm.recording.jsonlines import JsonLines
from memvm.recording.reader import Recording
from memvm.recording.writer import RecordingWriter
from tools.fuzzing import Fuzzed, fuzz, in_time, options

WHAT = Fuzzed("files", "taken for recordings", "tools.fuzz_recording")
TIME_LIMIT = 1.0
HEADER = RecordingHeader("fuzzed", 0x200000, 1 << 24, 1 << 40, 1 << 60)
EDGES = (0, 1, 2, 3, 255, 256, 4095, 4096, 65535, 65536, 65537, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)
TOKENS = (
    b"null",
    b"-1",
    b"1e400",
    b"[[]]",
    b"{}",
    b'"rw"',
    b'"\\ud800"',
    b"true",
    b"99999999999999999999",
    b"\n",
    b"}",
)


def samples() -> list[bytes]:
    """Valid recordings of both formats."""
    rng = random.Random(1)
    found = []
    for encoding in (None, JsonLines()):
        file = io.BytesIO()
        file.name = "sample"  # as files have one
        writer = RecordingWriter(file, HEADER, encoding)
        writer.regions([NamedRegion(0x200000, 0x300000, "image")])
        for _ in range(4):
            writer.add(TraceEvent(rng.randrange(4096), rng.randint(1, 3), 7, 1 << 40, 5) for _ in range(50))
            writer.drop(1)
        writer.flush()
        found.append(file.getvalue())
    return found


def check(data: bytes) -> bool:
    """Read a recording; True if it is taken for one. Raises AssertionError if a promise is broken."""
    try:
        recording = Recording(io.BytesIO(data), "fuzzed")
    except RecordingError as error:
        assert error.message.startswith("fuzzed: ") and "\n" not in error.message
        return False
    for block in recording.blocks():
        assert block.dropped >= 0
        for event in block:
            assert 0 <= event.page < recording.header.ram_pages
            assert 1 <= event.access <= 3
            assert min(event.vcpu, event.time, event.instruction) >= 0
    assert recording.ending is not None
    assert all(0 <= region.start < region.end for region in recording.regions)
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few changes."""
    changed = bytearray(data)
    binary = data[:1] != b"{"
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(5):
            case 0 if changed:
                changed[place] ^= 1 << rng.randrange(8)
            case 1 if binary:
                width = rng.choice((1, 2, 4, 8))
                value = rng.choice((*EDGES, rng.getrandbits(64))) % (1 << 8 * width)
                changed[place : place + width] = value.to_bytes(width, "little")
            case 1 | 2:
                length = rng.choice((0, 1, 5, 40))
                changed[place : place + length] = rng.choice(TOKENS)
            case 3:
                other = rng.randrange(len(changed) + 1)
                changed[place:place] = changed[other : other + rng.choice((32, 100, 500))]
            case _:
                if rng.random() < 0.3:
                    del changed[place:]
    if binary and rng.random() < 0.5:
        _mend(changed)
    return bytes(changed)


def _mend(data: bytearray) -> None:
    """Make the checksums right again, as far as the blocks can be followed."""
    if len(data) < HEADER_SIZE:
        return
    struct.pack_into("<I", data, HEADER_SIZE - 4, crc32(data[: HEADER_SIZE - 4]))
    at = HEADER_SIZE
    while at + BLOCK_HEADER_SIZE <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        body = at + BLOCK_HEADER_SIZE
        struct.pack_into("<I", data, at + 12, crc32(data[body : body + length]))
        struct.pack_into("<I", data, at + 28, crc32(data[at : at + 28]))
        at = body + length


def try_one(recordings: Sequence[bytes], seed: int) -> bool:
    """Make the file of this seed and check it; True if it is taken for a recording."""
    rng = random.Random(seed)
    data = mutate(rng.choice(recordings), rng)
    return in_time(TIME_LIMIT, lambda: check(data))


def main(argv: Sequence[str] | None = None) -> int:
    parser = options(WHAT, "Look for recordings that do harm.")
    parser.add_argument("recordings", nargs="*", type=Path, help="recordings to change (default: two small ones)")
    arguments = parser.parse_args(argv)
    recordings = [path.read_bytes() for path in arguments.recordings] or samples()
    return fuzz(WHAT, arguments, lambda seed: try_one(recordings, seed), arguments.recordings)


if __name__ == "__main__":
    sys.exit(main())
