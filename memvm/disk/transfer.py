"""Whole disks to and from plain files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from memvm.disk.anchor import Anchor, forget
from memvm.disk.device import Disk, disk_in, open_disk
from memvm.disk.files import finish_renewal, journal_path, open_files, tags_path, waiting_tags_path
from memvm.disk.integrity import protect
from memvm.disk.volume import create, open_volume
from memvm.errors import DiskError
from memvm.faultpoints import FaultPoint, fire
from memvm.linux.files import sync_directory
from memvm.units import MIB, format_size

_PIECE = MIB


def export_disk(disk: Disk, target: BinaryIO) -> int:
    """Write all that is on the disk, in the clear, to a file; how many bytes. Raises BadSector, OSError."""
    size = disk.facts.size
    for offset in range(0, size, _PIECE):
        target.write(disk.read(offset, _PIECE))
    return size


def import_disk(disk: Disk, source: BinaryIO) -> int:
    """Put all of a file onto the disk, and zeros behind it; how many bytes.

    Raises DiskError, BadSector, HostError, OSError.
    """
    size, offset, length = disk.facts.size, 0, 0
    if stat.S_ISREG((found := os.fstat(source.fileno())).st_mode) and found.st_size - source.tell() > size:
        raise _too_much(size)  # before the disk is touched; of a pipe, nobody knows
    while offset < size:
        piece = _read(source, min(_PIECE, size - offset))
        length += len(piece)
        disk.write(offset, piece.ljust(min(_PIECE, size - offset), b"\0"))
        offset += min(_PIECE, size - offset)
    if source.read(1):
        raise _too_much(size)
    disk.flush()
    return length


def _too_much(size: int) -> DiskError:
    return DiskError(
        f"there is more than the disk's {format_size(size)} in what shall be put onto it",
        hint="make a larger disk: memvm disk create --size",
    )


def _read(source: BinaryIO, size: int) -> bytes:
    """So many bytes, fewer only at the end; a pipe gives them in pieces."""
    parts = []
    while size and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def renew(path: Path, old: bytes, new: bytes, platform: Path, kind: str, *, iterations: int = 0) -> None:
    """Encrypt all of a disk with another volume key, in a new file that then takes its name; `platform` as for a disk.

    What was known of the old volume key is worth nothing afterwards, but for copies of the old file. With an integrity
    tree, the new disk has tags and an anchor of its own before it takes the name, and what is left of the old one goes
    afterwards: at any moment the name is that of a whole disk, and who opens it next ends what was broken off. Raises
    DiskError, BadSector, HostError.
    """
    beside = path.with_name(f".{path.name}.renewed")
    with open_disk(path, passphrase=old, platform=platform) as source:
        facts = source.facts
        try:
            _remove_broken_off(path, beside, facts.uuid, platform)
            create(
                beside,
                facts.size,
                new,
                kind=kind,
                iterations=iterations,
                sector_size=facts.sector_size,
                label=facts.label,
            )
            try:
                target = _copied(source, beside, new, platform)
                try:
                    _exchange(path, beside, target)
                    source.close()  # before somebody else can have the disk: a journal is taken away by its name
                finally:
                    target.close()
            finally:
                _remove_broken_off(path, beside, facts.uuid, platform)
        except OSError as error:
            raise DiskError(f"{path}: the disk cannot be made anew: {error.strerror}") from None


def _copied(source: Disk, beside: Path, new: bytes, platform: Path) -> Disk:
    """A new disk with all that is on another, flushed."""
    facts = source.facts
    if facts.is_protected:
        with open_volume(beside) as volume:
            protect(beside, volume.header.uuid, facts.size // facts.sector_size, platform, replaces=facts.uuid)
    files = open_files(beside, writable=True)
    target = disk_in(files, passphrase=new, platform=platform, in_place=False)
    try:
        for offset in range(0, facts.size, _PIECE):
            target.write(offset, source.read(offset, _PIECE))
        target.flush()
    except BaseException:
        target.abandon()
        raise
    return target


def _exchange(path: Path, beside: Path, target: Disk) -> None:
    """Give a disk the name of the one that it replaces. Raises OSError, HostError."""
    facts = target.facts
    if facts.is_protected:
        tags_path(beside).rename(waiting_tags_path(path, facts.uuid))
        sync_directory(path.parent)
    journal_path(beside).unlink()  # it is empty, and nothing is written to the disk any more
    fire(FaultPoint.DISK_BEFORE_RENAME)
    beside.rename(path)
    sync_directory(path.parent)
    fire(FaultPoint.DISK_AFTER_RENAME)
    finish_renewal(path, facts.uuid)
    target.settle()


def _remove_broken_off(path: Path, beside: Path, uuid: str, platform: Path) -> None:
    """Take away a new disk that was to have the name of the disk with this UUID, and has not. Raises OSError."""
    if not beside.exists():
        return
    with open_volume(beside) as volume:
        new = volume.header.uuid
    anchor = Anchor.open(platform, new)
    if anchor is not None:
        anchor.close()
        if anchor.load().replaces == uuid:  # and not one that only has this name
            forget(platform, new)
    for name in (tags_path(beside), waiting_tags_path(path, new), journal_path(beside), beside):
        name.unlink(missing_ok=True)
