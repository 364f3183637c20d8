"""What is told of a disk without opening it: its header, and what the platform knows of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from memvm.disk.anchor import Anchor
from memvm.disk.metadata import CIPHER
from memvm.disk.volume import open_volume
from memvm.units import KIB


class KeyslotTold(NamedTuple):
    """A line for each keyslot."""

    keyslot: str
    key_derivation: str
    passes: int
    memory_size: int
    """Bytes."""
    threads: int


class DiskTold(NamedTuple):
    """All of it. Sizes in bytes."""

    file: str
    uuid: str
    label: str
    size: int
    sector_size: int
    cipher: str
    header_version: int
    """How often the header was written."""
    header_digest: bytes
    """SHA-384 of everything before the data: what is pinned."""
    integrity_tree: bool
    flushes: int | None
    """How many flushes the platform counted; None without a tree."""
    other_keyslots: dict[str, str]
    """Those that memvm cannot open, and why."""
    keyslots: tuple[KeyslotTold, ...]


def tell(path: Path, platform: Path) -> DiskTold:
    """Look at a disk; `platform` is the platform's directory. Raises DiskError."""
    with open_volume(path) as volume:
        header, metadata = volume.header, volume.metadata
        flushes = _flushes(platform, header.uuid)
        keyslots = tuple(
            KeyslotTold(
                number, slot.kdf.type, slot.kdf.iterations or slot.kdf.time, slot.kdf.memory * KIB, slot.kdf.cpus
            )
            for number, slot in metadata.keyslots.items()
        )
        return DiskTold(
            file=str(path),
            uuid=header.uuid,
            label=header.label,
            size=volume.size,
            sector_size=volume.sector_size,
            cipher=CIPHER,
            header_version=header.sequence,
            header_digest=volume.header_digest(),
            integrity_tree=flushes is not None,
            flushes=flushes,
            other_keyslots=dict(metadata.unknown),
            keyslots=keyslots,
        )


def _flushes(platform: Path, uuid: str) -> int | None:
    anchor = Anchor.open(platform, uuid)
    if anchor is None:
        return None
    anchor.close()
    return anchor.load().counter
