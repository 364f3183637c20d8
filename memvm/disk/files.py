"""The files of a disk, open: FILE has header and sectors, FILE.journal what is being flushed, FILE.tags the tags.

Who has their names opens and locks them, and whoever uses the disk from then on needs no names: he may be another
process, of a user who may open none of them, and is handed the descriptors. So the journal is there as long as a disk
is open to be written, mostly empty, and who made it takes it away.

The lock belongs to the open file, in all processes that have it: it goes when the last of them closes it (flock(2)).
While somebody writes a disk, nobody else has it in use.

When a disk is encrypted anew (transfer.py), its tags wait in FILE.tags.UUID until FILE is the disk with this UUID.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from memvm.disk.header import read_header
from memvm.errors import DiskError
from memvm.linux.files import sync_directory


class DiskFiles:
    """Those of one disk."""

    def __init__(self, name: str, sectors: int, journal: int = -1, tags: int = -1, made: Path | None = None) -> None:
        """Takes the descriptors over; -1 is for what there is not. `name` is for messages.

        `made` is the journal's name, for who takes it away at the end. Raises DiskError if these cannot be the files
        of a disk; they are closed then.
        """
        self.name, self.sectors, self.journal, self.tags, self._made = name, sectors, journal, tags, made
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        given = [fd for fd in (self.sectors, self.journal, self.tags) if fd >= 0]
        if not all(stat.S_ISREG(os.fstat(fd).st_mode) for fd in given):
            raise DiskError(f"{self.name}: a disk of memvm's is an ordinary file")
        ways = {fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in given}
        self.is_writable = ways == {os.O_RDWR}
        """Whether the disk may be written."""
        if not self.is_writable and ways != {os.O_RDONLY}:
            raise DiskError(f"{self.name}: of the disk's files, some are open to be written and some are not")
        if self.is_writable and self.journal < 0:
            raise DiskError(f"{self.name}: the disk is to be written, and has no journal")

    def close(self) -> None:
        """Close them, and take an empty journal away if it was made here; idempotent."""
        if self._made is not None and self.journal >= 0 and not os.fstat(self.journal).st_size:
            with suppress(OSError):  # an empty journal says nothing to who finds it
                self._made.unlink()
        for fd in (self.tags, self.journal, self.sectors):  # the last one has the lock
            if fd >= 0:
                os.close(fd)
        self.sectors = self.journal = self.tags = -1

    def __enter__(self) -> DiskFiles:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def open_files(path: Path, *, writable: bool) -> DiskFiles:
    """The files of the disk at a path, locked. Raises DiskError, also if it is in use."""
    sectors = _locked(path, writable)
    journal = tags = -1
    try:
        uuid = read_header(sectors, str(path)).uuid
        if writable:
            finish_renewal(path, uuid)
        journal = _open_journal(path, writable)
        tags = _open_tags(path, uuid, writable)
    except OSError as error:
        _close(sectors, journal)
        raise DiskError(f"{path}: the disk cannot be read: {error.strerror}") from None
    except BaseException:
        _close(sectors, journal)
        raise
    return DiskFiles(str(path), sectors, journal, tags, journal_path(path).absolute() if writable else None)


def look_at(path: Path) -> DiskFiles:
    """The disk at a path, only to be looked at, while others may use it. Raises DiskError."""
    return DiskFiles(str(path), _open(path, os.O_RDONLY))


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DiskError(f"{path}: the disk cannot be opened: {error.strerror}") from None


def _locked(path: Path, writable: bool) -> int:
    """A descriptor of what has this name, which it cannot lose to another disk while it is locked."""
    while True:
        fd = _open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise DiskError(f"{path}: the disk is in use", hint="end the guest that has it") from None
        except OSError as error:
            os.close(fd)
            raise DiskError(f"{path}: the disk cannot be locked: {error.strerror}") from None
        os.close(fd)  # it was encrypted anew before it could be locked


def _open_journal(path: Path, writable: bool) -> int:
    name = journal_path(path)
    try:
        if not writable:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise DiskError(f"{name}: the disk's journal cannot be opened: {error.strerror}") from None
    try:
        sync_directory(name.parent)
    except OSError as error:
        os.close(fd)
        raise DiskError(f"{name}: the disk's journal cannot be kept: {error.strerror}") from None
    return fd


def _open_tags(path: Path, uuid: str, writable: bool) -> int:
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    for name in (waiting_tags_path(path, uuid), tags_path(path)):
        try:
            return os.open(name, flags)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DiskError(f"{name}: the disk's tags cannot be read: {error.strerror}") from None
    return -1


def finish_renewal(path: Path, uuid: str) -> None:
    """Give tags that waited for the disk with this UUID, which is at the path, their name. Raises OSError."""
    waiting = waiting_tags_path(path, uuid)
    if waiting.exists():
        waiting.rename(tags_path(path))
        sync_directory(path.parent)


def _close(*descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)


def journal_path(path: Path) -> Path:
    """The journal of the disk at a path."""
    return path.with_name(path.name + ".journal")


def tags_path(path: Path) -> Path:
    """Where the tags of the disk at a path are."""
    return path.with_name(path.name + ".tags")


def waiting_tags_path(path: Path, uuid: str) -> Path:
    """Where tags wait until the disk with this UUID is at the path."""
    return path.with_name(f"{path.name}.tags.{uuid}")
