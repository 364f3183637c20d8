"""Looks for disks that do harm: changes the headers of valid ones, and opens them as `memvm disk` would.

    python3 -m tools.fuzz_disk [--seconds 60] [--files N] [--seed 1]

Three of four changed headers have their checksums made right again, so that the checks behind those are reached.
Nothing but DiskError may come out, what is accepted has to keep to what the reader promises, and no file may take
more than a second of CPU time. A file that does not keep to that is named by the seed that makes it again, and the
exit status is 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memvm.disk.header import BINARY_SIZE
from memvm.disk.metadata import STRIPES
from memvm.disk.volume import DATA_OFFSET, HEADER_SIZE, create, open_volume
from memvm.errors import DiskError
from memvm.units import KIB
from tools.fuzzing import Fuzzed, fuzz, in_time, options

WHAT = Fuzzed("files", "taken for disks", "tools.fuzz_disk")
TIME_LIMIT = 1.0
DISK_SIZE = 64 * KIB
VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 8, 31, 32, 63, 4000, 1 << 31, 1 << 63, 1 << 70, 1.5, True, None, "", "0", "-1", "32768", "32767"),
    *("16777216", "9" * 19, "9" * 30, "dynamic", "aes-xts-plain64", "cipher_null-ecb", "sha256", "argon2id", "\ud800"),
    *("AAAA", "====", [], ["0"], [0], {}, {"0": {}}, [[]], {"mandatory": ["online-reencrypt"]}),
)
FIELDS = (0, 6, 8, 16, 24, 72, 104, 168, 208, 256, 264, 448)
"""Where something begins in the binary header."""


def sample(path: Path) -> bytes:
    """The headers of a valid disk, which is made at the path."""
    create(path, DISK_SIZE, b"fuzz", kind="pbkdf2", iterations=1000)
    return path.read_bytes()[: 2 * HEADER_SIZE]


def mutate(header: bytes, rng: random.Random) -> bytes:
    """A copy with a few changes, in both of its copies or in one."""
    changed = bytearray(header)
    begins = rng.choice(((0,), (HEADER_SIZE,), (0, HEADER_SIZE), (0, HEADER_SIZE)))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.65:
            text = _changed_metadata(header, rng)
            for begin in begins:
                changed[begin + BINARY_SIZE : begin + HEADER_SIZE] = text
        else:
            place = rng.choice(FIELDS) + rng.randrange(8) if rng.random() < 0.8 else rng.randrange(HEADER_SIZE)
            width = rng.choice((1, 2, 8))
            value = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1), rng.getrandbits(8 * width)))
            for begin in begins:
                changed[begin + place : begin + place + width] = value.to_bytes(width, "big")
    if rng.random() < 0.75:
        for begin in begins:
            mend(changed, begin)
    return bytes(changed[: 2 * HEADER_SIZE])


def _changed_metadata(header: bytes, rng: random.Random) -> bytes:
    text = header[BINARY_SIZE:HEADER_SIZE].rstrip(b"\0")
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice((b"", b"\0", b'"', b"}", b"1e999", b"NaN", text[:200]))
            + text[at + rng.randrange(9) :]
        )
    else:
        fields = json.loads(text)
        container: Any = fields
        while True:
            name = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
            inner = container[name]
            if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.1:
                break
            container = inner
        match rng.randrange(3):
            case 0 if isinstance(container, dict):
                del container[name]
            case 1 if isinstance(container, dict):
                container[rng.choice(("1", "31", "32", "x", "flags", "requirements"))] = container[name]
            case _:
                container[name] = rng.choice(VALUES)
        text = json.dumps(fields, separators=(",", ":")).encode()
    return text[: HEADER_SIZE - BINARY_SIZE].ljust(HEADER_SIZE - BINARY_SIZE, b"\0")


def mend(header: bytearray, begin: int) -> None:
    """Make the checksum of a copy right again."""
    header[begin + 448 : begin + 512] = bytes(64)
    digest = hashlib.sha256(header[begin : begin + HEADER_SIZE]).digest()
    header[begin + 448 : begin + 448 + len(digest)] = digest


def check(path: Path) -> bool:
    """Open a disk; True if it is taken for one. Raises AssertionError if a promise is broken."""
    try:
        volume = open_volume(path)
    except DiskError as error:
        assert error.message.startswith(str(path))
        assert "\n" not in error.message
        return False
    with volume:
        file_size = path.stat().st_size
        assert 0 <= volume.size <= file_size - volume.data_offset
        assert volume.size % volume.sector_size == 0
        assert volume.data_offset >= 2 * volume.header.size
        for slot in volume.metadata.keyslots.values():
            assert 2 * volume.header.size <= slot.offset <= volume.data_offset - slot.key_size * STRIPES
    return True


def try_one(path: Path, header: bytes, seed: int) -> bool:
    """Make the file of this seed and check it; True if it is taken for a disk."""
    with path.open("r+b") as file:
        file.write(mutate(header, random.Random(seed)))
    return in_time(TIME_LIMIT, lambda: check(path))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options(WHAT, "Look for disks that do harm.").parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk.img"
        header = sample(path)
        os.truncate(path, DATA_OFFSET + DISK_SIZE)
        return fuzz(WHAT, arguments, lambda seed: try_one(path, header, seed))


if __name__ == "__main__":
    sys.exit(main())
