"""What an encrypted disk costs the manager: AES-XTS beside one call of the library, and a guest's reads and writes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from memvm.disk.device import Disk, open_disk
from memvm.disk.sectors import LibraryXts, SectorCipher
from memvm.disk.vector_xts import UNIT
from memvm.disk.volume import create, open_volume
from memvm.units import MIB
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.setting import Setting, in_turn

BUFFER = MIB
REPEATS = 60
SECTOR = 4096
SECTORS = (SECTOR, 512)
DISK_SIZE = 64 * MIB
_XTS_AT_LEAST = 0.8
_KEY = bytes(range(64))


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs, each of them a median over repeats."""
    data = os.urandom(BUFFER)
    room = bytearray(BUFFER + 16)  # for a block more than is written, as update_into wants it
    by_sector_size = {size: SectorCipher(_KEY, size) for size in SECTORS}
    ways: dict[str, Callable[[], object]] = {
        **{f"{size}": partial(cipher.decrypt, 1, data) for size, cipher in by_sector_size.items()},
        "library": lambda: Cipher(AES(_KEY), XTS(bytes(16))).decryptor().update(data),
        "into": lambda: Cipher(AES(_KEY), XTS(bytes(16))).decryptor().update_into(data, room),
        "each": lambda: LibraryXts(_KEY, SECTOR).decrypt(SECTOR // UNIT, data),
    }
    assert ways[f"{SECTOR}"]() == ways["each"]()
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    reads, writes = [], []
    for run in range(setting.runs):
        for name in in_turn(run, *ways):
            speeds[name].append(_speed(ways[name]))
        path = setting.directory / f"disk-{run}.img"
        with _disk(path) as disk:
            writes.append(_writing(disk, data))
            reads.append(_reading(disk))
        path.unlink()
    library = Reference(median(speeds["library"]), "one call of cryptography for a MiB, as if it were one sector")
    return [
        *(
            Figure(
                f"disk.xts.{size}",
                f"AES-256-XTS of 1 MiB in sectors of {size} bytes, by one thread",
                median(speeds[f"{size}"]),
                "MB/s",
                library,
                Limit(ratio_at_least=_XTS_AT_LEAST),
                tuple(speeds[f"{size}"]),
            )
            for size in SECTORS
        ),
        Figure(
            "disk.xts.into",
            "the same by cryptography, into a buffer that is there already (update_into)",
            median(speeds["into"]),
            "MB/s",
            library,
            samples=tuple(speeds["into"]),
        ),
        Figure(
            "disk.xts.each",
            f"by cryptography, a call for each sector of {SECTOR} bytes: where a processor lacks AES instructions",
            median(speeds["each"]),
            "MB/s",
            library,
            samples=tuple(speeds["each"]),
        ),
        Figure("disk.read", "sectors read one after the other", median(reads), "MB/s", samples=tuple(reads)),
        Figure("disk.write", "a MiB at a time, and a flush in the end", median(writes), "MB/s", samples=tuple(writes)),
    ]


def _speed(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return BUFFER / median(times) / 1e6


def _disk(path: Path) -> Disk:
    create(path, DISK_SIZE, b"bench", kind="pbkdf2", iterations=1000)
    with open_volume(path) as volume:
        key = volume.unlock(b"bench")
    return open_disk(path, volume_key=key)


def _writing(disk: Disk, data: bytes) -> float:
    began = time.perf_counter()
    for offset in range(0, DISK_SIZE, BUFFER):
        disk.write(offset, data)
    disk.flush()
    return DISK_SIZE / (time.perf_counter() - began) / 1e6


def _reading(disk: Disk) -> float:
    began = time.perf_counter()
    for offset in range(0, DISK_SIZE, SECTOR):
        disk.read(offset, SECTOR)
    return DISK_SIZE / (time.perf_counter() - began) / 1e6
