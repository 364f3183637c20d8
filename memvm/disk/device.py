"""The block device: sectors of a volume to read and to write, in the clear or as they lie on the disk.

What is written waits in memory until it is flushed, or until there is much of it, and then comes onto the disk wholly
or not at all (journal.py). What is read one after the other is read ahead. With an integrity tree each sector is
checked before anybody sees it; one that is wrong is a BadSector error, for whoever reads that one.

The disk belongs to one thread at a time: its owner orders the calls.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from memvm.disk.anchor import Anchor
from memvm.disk.files import DiskFiles, open_files
from memvm.disk.integrity import Integrity
from memvm.disk.journal import MOST_BYTES, NO_ROOT, Batch, read_batch, write_all, write_batch
from memvm.disk.sectors import SectorCipher
from memvm.disk.volume import Volume
from memvm.errors import BadSector, DiskError
from memvm.faultpoints import FaultPoint, fire
from memvm.linux.secret_memory import overwrite
from memvm.units import KIB, MIB

MOST_PENDING = 4 * MIB
"""Bytes that are written and not flushed, at which they are flushed."""
_AHEAD = 128 * KIB
_ZEROS = bytes(4096)
assert MOST_PENDING + MIB <= MOST_BYTES


class DiskFacts(NamedTuple):
    """What a disk is. Sizes in bytes."""

    uuid: str
    label: str
    size: int
    sector_size: int
    first_tweak: int
    is_raw: bool
    """Whether what is read and written is ciphertext."""
    is_writable: bool
    is_protected: bool
    """Whether there is an integrity tree."""
    header_digest: bytes
    counter: int
    """How often it was flushed since it has a tree."""


class Disk:
    """One of them. Offsets and sizes in bytes, of whole sectors."""

    def __init__(self, volume: Volume, cipher: SectorCipher | None, anchor: Anchor | None) -> None:
        """Takes over volume and anchor. Without a cipher, sectors are as they lie on the disk.

        `anchor` is the platform's word for a disk with an integrity tree. Raises DiskError if the tree is another one
        than the platform knows: something was spliced, lost, or brought back.
        """
        self._volume, self._cipher, self._anchor = volume, cipher, anchor
        self._files, self._name, self._sector_size = volume.files, volume.name, volume.sector_size
        self._sectors = volume.size // volume.sector_size
        self._pending: dict[int, bytes] = {}
        self._window = (0, b"")
        """Offset and contents of what was read ahead."""
        self._expected = -1
        """Where reading goes on if it goes on."""
        self._integrity: Integrity | None = None
        self._is_broken = False
        self.header_digest = volume.header_digest()
        self._counter = 0
        self._recover()

    def close(self) -> None:
        """Flush, and close the files; idempotent. Raises BadSector, HostError."""
        try:
            self.flush()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the files without what was not flushed; idempotent."""
        self._pending.clear()
        if self._anchor is not None:
            self._anchor.close()
        if self._cipher is not None:
            self._cipher.close()
        self._volume.close()

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def settle(self) -> None:
        """The disk has the place of the one that it came to replace, which the platform forgets. Raises HostError."""
        if self._anchor is not None:
            self._anchor.settle()

    @property
    def facts(self) -> DiskFacts:
        """What it is."""
        volume = self._volume
        return DiskFacts(
            volume.header.uuid,
            volume.header.label,
            volume.size,
            self._sector_size,
            volume.metadata.segment.tweak,
            self._cipher is None,
            self._files.is_writable,
            self._anchor is not None,
            self.header_digest,
            self._counter,
        )

    def read(self, offset: int, size: int) -> bytes:
        """What is there, up to the disk's end. Raises BadSector."""
        size = min(size, self._volume.size - offset)
        begin, window = self._window
        if begin <= offset and offset + size <= begin + len(window):
            self._expected = offset + size
            return window[offset - begin : offset - begin + size]
        ahead = min(_AHEAD, self._volume.size - offset)
        if offset == self._expected and size < ahead:
            with suppress(BadSector):  # whoever reads that very sector shall hear of it
                self._window = (offset, self._load(offset, ahead))
                self._expected = offset + size
                return self._window[1][:size]
        found = self._load(offset, size)
        self._expected = offset + size
        return found

    def _load(self, offset: int, size: int) -> bytes:
        """Read, check and decrypt."""
        sector_size, pending, integrity = self._sector_size, self._pending, self._integrity
        first = offset // sector_size
        try:
            fire(FaultPoint.DISK_READ)
            raw = bytearray(os.pread(self._volume.fd, size, self._volume.data_offset + offset))
        except OSError as error:
            raise BadSector(f"{self._name}: sectors from {first} on cannot be read: {error.strerror}") from error
        if len(raw) < size:
            raise BadSector(f"{self._name}: the disk's file ends before sector {first + len(raw) // sector_size}")
        untouched = []
        for at in range(0, size, sector_size):
            sector = first + at // sector_size
            if sector in pending:
                raw[at : at + sector_size] = pending[sector]
            elif integrity is not None:
                if not integrity.is_right(sector, memoryview(raw)[at : at + sector_size]):
                    raise BadSector(f"{self._name}: sector {sector} is not what was last written there")
                if integrity.is_untouched(sector):
                    untouched.append(at)
        if self._cipher is None:
            return bytes(raw)
        clear = self._cipher.decrypt(first, raw)
        if untouched:
            parts = bytearray(clear)
            for at in untouched:
                parts[at : at + sector_size] = _ZEROS[:sector_size]
            clear = bytes(parts)
        return clear

    def write(self, offset: int, data: bytes) -> None:
        """Have this be there; on the disk it is after a flush. Raises BadSector, HostError."""
        sector_size = self._sector_size
        first = offset // sector_size
        raw = data if self._cipher is None else self._cipher.encrypt(first, data)
        for at in range(0, len(raw), sector_size):
            self._pending[first + at // sector_size] = raw[at : at + sector_size]
        begin, window = self._window
        if begin < offset + len(data) and offset < begin + len(window):
            self._window = (0, b"")
        if len(self._pending) * sector_size >= MOST_PENDING:
            self.flush()

    def flush(self) -> None:
        """Have all that was written outlive a crash. Raises BadSector, HostError: then it still waits."""
        if not self._pending:
            return
        if self._is_broken:
            raise BadSector(
                f"{self._name}: the disk's files could not be written before, and its journal may have what they lack",
                hint="see to the disk that the files are on; what is missing is written when they are opened again",
            )
        sectors = dict(sorted(self._pending.items()))
        integrity = self._integrity
        before = integrity.tags_of(sectors) if integrity is not None else {}
        change = integrity.change(sectors) if integrity is not None else None
        counter = self._counter + (change is not None)
        root = NO_ROOT if change is None else change.root
        batch = Batch(self._volume.header.uuid, counter, root, sectors)
        try:
            write_batch(self._files.journal, batch, self._sector_size)
            fire(FaultPoint.DISK_JOURNAL_WRITTEN)
            if change is not None and self._anchor is not None:
                self._keep(self._anchor, counter, root)
        except BaseException as error:
            if integrity is not None and change is not None:
                integrity.undo(change, before)
            if isinstance(error, OSError):
                raise BadSector(f"{self._journal_name}: the disk's journal: {error.strerror}") from error
            raise
        try:
            fire(FaultPoint.DISK_COMMITTED)
            self._carry_out(sectors)
            if integrity is not None and change is not None:
                integrity.write(change)
            os.ftruncate(self._files.journal, 0)
        except OSError as error:
            self._is_broken = True
            raise BadSector(f"{self._name}: sectors cannot be written: {error.strerror}") from error
        self._pending.clear()

    def _keep(self, anchor: Anchor, counter: int, root: bytes) -> None:
        """Have the platform keep the new root: from then on the flush counts. Raises HostError."""
        self._is_broken = True  # if it fails, nobody knows which root is kept, and the journal has to stay for either
        anchor.store(anchor.load()._replace(counter=counter, root=root))
        self._is_broken = False
        self._counter = counter

    @property
    def _journal_name(self) -> str:
        return f"{self._name}.journal"

    def _carry_out(self, sectors: dict[int, bytes]) -> None:
        """Put sectors where they belong, neighbours with one write, and sync them. Raises OSError."""
        run: list[bytes] = []
        begin = 0
        for sector, data in sectors.items():
            if run and sector != begin + len(run):
                self._write_run(begin, run)
                run = []
            if not run:
                begin = sector
            run.append(data)
        if run:
            self._write_run(begin, run)
        os.fsync(self._volume.fd)

    def _write_run(self, first: int, run: list[bytes]) -> None:
        write_all(self._volume.fd, b"".join(run), self._volume.data_offset + first * self._sector_size)

    def _recover(self) -> None:
        """Open the integrity tree, after carrying out a journal that a crash left behind and that counts."""
        files, uuid = self._files, self._volume.header.uuid
        batch = None
        if files.journal >= 0:
            batch = read_batch(files.journal, self._journal_name, uuid, self._sector_size, self._sectors)
        kept = self._anchor.load() if self._anchor is not None else None
        counts = batch is not None and (kept is None or (batch.counter, batch.root) == (kept.counter, kept.root))
        if batch is not None and counts and not files.is_writable:
            raise DiskError(
                f"{self._name}: a crash left the disk with a journal to carry out, and it may not be written",
                hint="open it once to write",
            )
        try:
            if batch is not None and counts:
                self._carry_out(dict(batch.sectors))
            if kept is not None:
                self._integrity = Integrity(files.tags, f"{self._name}.tags", uuid, self._sectors, kept.key)
                if batch is not None and counts:
                    self._integrity.write(self._integrity.change(batch.sectors))
                if self._integrity.root != kept.root:
                    raise DiskError(
                        f"{self._name}: the disk is not the one that the platform saw last (flush {kept.counter}): it "
                        "was brought back from an earlier time, or sectors were changed or exchanged",
                        hint="a backup has to be made, and brought back, by memvm disk export and import",
                    )
                self._counter = kept.counter
            if files.is_writable:
                os.ftruncate(files.journal, 0)
        except OSError as error:
            raise DiskError(f"{self._name}: the disk cannot be recovered: {error.strerror}") from None


def open_disk(
    path: Path,
    *,
    passphrase: bytes | None = None,
    volume_key: bytes | None = None,
    writable: bool = True,
    pinned: bytes | None = None,
    platform: Path | None = None,
) -> Disk:
    """The disk at a path, as `disk_in` has it. Raises DiskError, HostError."""
    files = open_files(path, writable=writable)
    return disk_in(files, passphrase=passphrase, volume_key=volume_key, pinned=pinned, platform=platform)


def disk_in(
    files: DiskFiles,
    *,
    passphrase: bytes | None = None,
    volume_key: bytes | None = None,
    pinned: bytes | None = None,
    platform: Path | None = None,
    in_place: bool = True,
) -> Disk:
    """The disk in files that it takes over: in the clear with a passphrase or the volume key, and else as ciphertext.

    `platform` is the platform's directory; a disk that it knows is checked against what it knows. `in_place` says that
    the disk has the name that it shall have. Once this has returned, nothing is opened by its name any more. Raises
    DiskError, HostError.
    """
    volume = Volume(files, pinned=pinned)
    with ExitStack() as opened:
        opened.callback(volume.close)
        cipher = None
        if passphrase is not None:
            cipher = _unlocked(volume, passphrase)
        elif volume_key is not None:
            cipher = volume.cipher(volume_key)
        if cipher is not None:
            opened.callback(cipher.close)
        anchor = _anchor_of(volume, platform)
        if anchor is not None:
            opened.callback(anchor.close)
        disk = Disk(volume, cipher, anchor)
        if in_place and files.is_writable:
            disk.settle()
        opened.pop_all()
    return disk


def _unlocked(volume: Volume, passphrase: bytes) -> SectorCipher:
    key = volume.unlock(passphrase)
    try:
        return volume.cipher(key)
    finally:
        overwrite(key)


def _anchor_of(volume: Volume, platform: Path | None) -> Anchor | None:
    files, uuid = volume.files, volume.header.uuid
    anchor = Anchor.open(platform, uuid, writable=files.is_writable) if platform is not None else None
    if anchor is None and files.tags >= 0:
        raise DiskError(
            f"{files.name}: there are tags beside the disk, and no platform here knows the disk",
            hint=f"if it need not be checked, move {files.name}.tags away",
        )
    if anchor is not None and files.tags < 0:
        anchor.close()
        raise DiskError(f"{files.name}.tags: the disk's tags cannot be read: there is no such file")
    return anchor
