"""Looks for checkpoint files that do harm: changes valid files, and reads them as a restore would.

    python3 -m tools.fuzz_checkpoint [--seconds 60] [--files N] [--seed 1]

Half of the files are damaged as disks and copies damage them: then every page that can be read has to
hold what was saved. The other half are hostile: fields, columns, frames and lengths are changed and all
checksums are made right again, so that the checks behind them are reached. Nothing but CheckpointError may
come out, within one second of CPU time and 256 MiB for each file. A file that fails is kept and named.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zstandard

from memvm.checkpoint.format import COMMIT_SIZE, sha256
from memvm.checkpoint.sections import ParentLink
from memvm.errors import CheckpointError
from memvm.units import MIB
from tests.checkpoint.parts import (
    INHERITED_COUNT,
    INHERITED_FIRST,
    ZERO_COUNT,
    ZERO_FIRST,
    Parts,
    read_everything,
    take_apart,
)
from tests.checkpoint.random_files import write_random_file
from tools.fuzzing import Fuzzed, fuzz, in_time, memory_limit, options

WHAT = Fuzzed("files", "read to the end", "tools.fuzz_checkpoint")
TIME_LIMIT = 1.0
MEMORY_LIMIT = 256 * MIB
_ARENAS = 128 * MIB
"""Addresses that the C library may set aside for short-lived threads, 64 MiB each, without using them."""
INTERESTING = (
    0,
    1,
    2,
    7,
    63,
    64,
    255,
    256,
    4095,
    4096,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
VERY_LARGE = (1 << 32, 1 << 40, 1 << 44, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def damage(data: bytes, rng: random.Random) -> bytes:
    """The file as an accident leaves it: bits flipped, bytes lost, added, moved or overwritten."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, other = rng.randrange(len(changed)), rng.randrange(len(changed))
        length = min(rng.choice((1, 4, 64, 4096)), len(changed) - max(place, other))
        match rng.randrange(6):
            case 0 | 1:
                changed[place] ^= 1 << rng.randrange(8)
            case 2:
                changed[place : place + length] = rng.randbytes(length)
            case 3:
                changed[place : place + length] = changed[other : other + length]
            case 4:
                changed = changed[: place + 1]
            case 5:
                changed[place:place] = rng.randbytes(length)
    return bytes(changed)


def number(rng: random.Random, bits: int, near: int = 0) -> int:
    """A number that fits in `bits` bits, and that code may not have thought of."""
    value = rng.choice((*INTERESTING, *VERY_LARGE, near - 1, near + 1, near * 2, rng.getrandbits(bits)))
    return value % (1 << bits)


def change_header(parts: Parts, rng: random.Random) -> None:
    name, bits = rng.choice(
        (("ram_base", 64), ("ram_size", 64), ("chunk_pages", 32), ("block_size", 32), ("page_size", 32))
    )
    changes: dict[str, Any] = {name: number(rng, bits, getattr(parts.header, name))}
    parts.header = parts.header._replace(**changes)


def change_item(parts: Parts, rng: random.Random) -> None:
    if columns := [column for column in parts.columns if column]:
        column = rng.choice(columns)
        place = rng.randrange(len(column))
        near = column[rng.randrange(len(column))]
        column[place] = number(rng, column.itemsize * 8, near)


def swap_items(parts: Parts, rng: random.Random) -> None:
    if columns := [column for column in parts.columns if len(column) > 1]:
        column = rng.choice(columns)
        a, b = rng.randrange(len(column)), rng.randrange(len(column))
        column[a], column[b] = column[b], column[a]


def change_column_length(parts: Parts, rng: random.Random) -> None:
    column = rng.choice(parts.columns)
    if column and rng.random() < 0.5:
        column.pop()
    else:
        column.extend(column[:8] or [1])


def add_runs(parts: Parts, rng: random.Random) -> None:
    count = rng.choice((1, 3, 1000))
    firsts, counts = rng.choice(((ZERO_FIRST, ZERO_COUNT), (INHERITED_FIRST, INHERITED_COUNT)))
    parts.columns[firsts].extend(number(rng, 32) for _ in range(count))
    parts.columns[counts].extend(rng.choice((1, 2, number(rng, 32))) for _ in range(count))


def lie_about_counts(parts: Parts, rng: random.Random) -> None:
    lengths = parts.true_counts()
    place = rng.randrange(len(lengths))
    lengths[place] = number(rng, 64, lengths[place])
    parts.counts = lengths


def change_frame(parts: Parts, rng: random.Random) -> None:
    if parts.frames:
        chunk = rng.randrange(len(parts.frames))
        parts.frames[chunk] = hostile_frame(parts.frames[chunk], rng)
        if rng.random() < 0.9:
            parts.fit_chunks()


def change_state(parts: Parts, rng: random.Random) -> None:
    if rng.random() < 0.5:
        parts.state_length = number(rng, 64, parts.state_length)
    else:
        parts.state_frame = hostile_frame(parts.state_frame, rng)


def change_active(parts: Parts, rng: random.Random) -> None:
    if parts.active_frame and rng.random() < 0.3:
        parts.active_frame = hostile_frame(parts.active_frame, rng)
        return
    count = rng.choice((1, 2, 30))
    steps = array("I", (rng.choice((0, 1, 2, 7, number(rng, 32))) for _ in range(count)))
    kinds = bytes(rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 255)) for _ in range(count))
    parts.active_frame = zstandard.compress(steps.tobytes() + kinds)
    parts.active_pages = count


def change_parent(parts: Parts, rng: random.Random) -> None:
    if parts.parent and rng.random() < 0.7:
        parts.parent = damage(parts.parent, rng)
    else:
        own = ParentLink(parts.header.checkpoint_id, rng.randbytes(32), b"changed").pack()
        parts.parent = rng.choice((b"", own, rng.randbytes(rng.choice((1, 48, 60, 5000)))))


def change_record(parts: Parts, rng: random.Random) -> None:
    name = rng.choice(
        (
            *("index_offset", "index_length", "state_offset", "state_length", "file_length"),
            *("parent_length", "active_length", "active_pages"),
        )
    )
    parts.record[name] = number(rng, 64, rng.choice((64, 160, 1000)))


OTHER_SIZES = [zstandard.ZstdCompressor().compress(bytes(size)) for size in (0, 1, 4095, 4097, 70 * MIB)]
"""Frames of what is no whole number of pages, or far too much; made before memory is limited."""


def hostile_frame(frame: bytes, rng: random.Random) -> bytes:
    """A frame that is damaged, promises too much, or holds too much."""
    match rng.randrange(6):
        case 0:
            return frame[: rng.randrange(len(frame) + 1)]
        case 1:
            return damage(frame, rng) if frame else b""
        case 2:
            return frame + rng.choice((b"\0", frame, rng.randbytes(20)))
        case 3:  # single segment, content size of 8 bytes, then one RLE block that says little
            return struct.pack("<IBQ", 0xFD2FB528, 0xE0, number(rng, 64)) + b"\x03\x00\x00\x00"
        case 4:  # no content size, a window as large as the frame header can say, and blocks that repeat
            block = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"x"
            return struct.pack("<IBB", 0xFD2FB528, 0x00, rng.choice((0xFF, 0x88))) + block * rng.choice((1, 2000))
        case _:
            return rng.choice(OTHER_SIZES)


HOSTILITIES: tuple[Callable[[Parts, random.Random], None], ...] = (
    change_header,
    change_item,
    swap_items,
    change_column_length,
    add_runs,
    lie_about_counts,
    change_frame,
    change_state,
    change_active,
    change_parent,
    change_record,
)


def try_one(directory: Path, seed: int) -> bool:
    """Make the file of this seed, perhaps with a parent, change one of them and read both; whether they can be read.

    Raises what should not come out.
    """
    rng = random.Random(seed)
    valid, changed, parent = (directory / name for name in ("valid", "changed", "parent"))
    has_parent = rng.random() < 0.4
    if has_parent:
        write_random_file(parent, rng)
    write_random_file(valid, rng, parent if has_parent else None)
    original = read_everything(valid)
    assert not original[-1]
    target = parent if has_parent and rng.random() < 0.3 else valid
    accident = rng.random() < 0.5
    if accident:
        harmed = damage(target.read_bytes(), rng)
    else:
        parts = take_apart(target)
        assert parts.assemble() == target.read_bytes()
        for _ in range(rng.choice((1, 1, 2, 4))):
            rng.choice(HOSTILITIES)(parts, rng)
        harmed = parts.assemble()
    changed.write_bytes(harmed if target is valid else valid.read_bytes())
    if target is parent:
        parent.write_bytes(harmed)
        if not accident:
            _adopt(changed, parts)
    try:
        found = in_time(TIME_LIMIT, lambda: read_everything(changed))
    except CheckpointError:
        return False
    if accident:
        assert found[:2] == original[:2], "the header or the state changed"
        assert found[2] == original[2], "the zero runs changed"
        assert found[3].items() <= original[3].items(), "a page changed"
    return True


def _adopt(child: Path, parent: Parts) -> None:
    """Makes the child's link true of its changed parent, so that the checks behind that are reached."""
    record = parent.assemble()[-COMMIT_SIZE[parent.header.version] :]
    parts = take_apart(child)
    parts.parent = ParentLink(parent.header.checkpoint_id, sha256([record]), b"parent").pack()
    child.write_bytes(parts.assemble())


def try_and_keep(directory: Path, seed: int) -> bool:
    """`try_one`; a file that fails is kept."""
    try:
        return try_one(directory, seed)
    except Exception:
        fd, kept = tempfile.mkstemp(prefix=f"memvm-fuzz-{seed}-", suffix=".ckpt")
        with open(fd, "wb") as copy:
            copy.write((directory / "changed").read_bytes())
        print(f"the file is kept as {kept}", file=sys.stderr)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options(WHAT, "Look for checkpoint files that do harm.").parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="memvm-fuzz-") as name:
        directory = Path(name)
        try_one(directory, 0)  # imports are made before memory is limited
        with memory_limit(MEMORY_LIMIT + _ARENAS):
            return fuzz(WHAT, arguments, lambda seed: try_and_keep(directory, seed))


if __name__ == "__main__":
    sys.exit(main())
