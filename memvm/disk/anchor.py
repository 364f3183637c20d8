"""What the platform keeps of a disk: a key for its tags, a counter that only rises, the root of its integrity tree.

It lies with the platform (its directory), and not with the disk: whoever can bring back an old disk cannot bring back
an old anchor with it. A platform that is a directory of files stops nobody who can write there: an old disk, with its
old tags and the old anchor, is an old disk that nobody notices. A counter of a TPM would have to count each flush, for
what happened since it last counted could be taken back; that is slow there, and wears the TPM out.

    disks/UUID.anchor   two slots of 4096 bytes, which are written in turn

    0     magic "MVANCHOR", version, zero (u32 each, big-endian, as all numbers)
    16    sequence (u64): odd in the second slot, even in the first; the slot with the higher one counts
    24    counter (u64)
    32    36 bytes: the disk's UUID
    68    36 bytes: the UUID of the disk in whose place it came (transfer.py), or zeros
    104   32 bytes: the key
    136   32 bytes: the root
    168   SHA-256 of all that is before

A slot that was not written whole does not count, and then the other one has what was there before. So the file is
opened once, and needs no name and no right to its directory afterwards.
"""

from __future__ import annotations

import json
import operator
import os
import re
import struct
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from memvm.errors import DiskError, HostError
from memvm.faultpoints import FaultPoint, fire
from memvm.linux.files import sync_directory

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KEY_SIZE = ROOT_SIZE = 32
SLOT_SIZE = 4096
_MAGIC, _VERSION = b"MVANCHOR", 1
_SLOT = struct.Struct(">8sIIQQ36s36s32s32s")
_CHECKSUM_SIZE = 32
_MOST = 1 << 62


class Anchored(NamedTuple):
    """What is kept of one disk."""

    key: bytes
    counter: int
    root: bytes
    replaces: str = ""
    """The UUID of the disk in whose place it came, as long as the platform knows that one."""

    def __repr__(self) -> str:
        """Shows nothing of the key."""
        return f"Anchored(flush {self.counter}, root {self.root.hex()[:16]}, replaces {self.replaces!r})"

    def to_slot(self, uuid: str, sequence: int) -> bytes:
        """As in the file, but for the zeros behind it."""
        names = uuid.encode(), self.replaces.encode()
        body = _SLOT.pack(_MAGIC, _VERSION, 0, sequence, self.counter, *names, self.key, self.root)
        return body + sha256(body).digest()

    @classmethod
    def from_slot(cls, raw: bytes, uuid: str) -> tuple[int, Anchored] | None:
        """Sequence and contents; None if it was not written whole. Raises DiskError if it is not of this disk."""
        body, checksum = raw[: _SLOT.size], raw[_SLOT.size : _SLOT.size + _CHECKSUM_SIZE]
        if sha256(body).digest() != checksum:
            return None
        magic, version, _, sequence, counter, name, replaces, key, root = _SLOT.unpack(body)
        if (magic, version) != (_MAGIC, _VERSION):
            raise DiskError(f"it was written by another version of memvm ({version})", hint="use that one")
        if name != uuid.encode():
            raise DiskError("it is of another disk")
        if max(sequence, counter) >= _MOST:
            raise DiskError("its numbers are too large to have been counted")
        return sequence, cls(key, counter, root, replaces.rstrip(b"\0").decode("ascii", "replace"))


class Anchor:
    """That of one disk, in an open file."""

    def __init__(self, path: Path, uuid: str, fd: int) -> None:
        """Takes over `fd`; `path` is for messages. Raises DiskError if there is nothing in it that can be believed."""
        self._path, self._uuid, self._fd = path, uuid, fd
        try:
            found = list(filter(None, map(self._read, (0, 1))))
            if not found:
                raise DiskError("neither of its slots is whole")
            self._sequence, self._kept = max(found)
        except OSError as error:
            self.close()
            raise DiskError(f"{path}: what the platform knows of the disk: {error.strerror}") from None
        except DiskError as error:
            self.close()
            raise DiskError(
                f"{path}: what the platform knows of the disk makes no sense: {error.message}", hint=error.hint
            ) from None

    def _read(self, slot: int) -> tuple[int, Anchored] | None:
        found = Anchored.from_slot(os.pread(self._fd, SLOT_SIZE, slot * SLOT_SIZE), self._uuid)
        return found if found is not None and found[0] % 2 == slot else None

    @classmethod
    def open(cls, directory: Path, uuid: str, *, writable: bool = False) -> Anchor | None:
        """That of a disk, in the platform's directory; None if the platform does not know it. Raises DiskError."""
        path = _path(directory, uuid)
        _convert(path, uuid)
        try:
            fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskError(f"{path}: what the platform knows of the disk: {error.strerror}") from None
        return cls(path, uuid, fd)

    @classmethod
    def create(cls, directory: Path, uuid: str, kept: Anchored) -> None:
        """Have the platform know a disk. Raises DiskError for a UUID that could be a path, HostError."""
        path = _path(directory, uuid)
        temporary = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(kept.to_slot(uuid, 0).ljust(2 * SLOT_SIZE, b"\0"))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            sync_directory(path.parent)
        except OSError as error:
            raise _cannot_keep(path, error) from None

    def load(self) -> Anchored:
        """What is kept."""
        return self._kept

    def store(self, kept: Anchored) -> None:
        """Keep this from now on, whatever happens. Raises HostError: then it is kept, or what was kept before is."""
        sequence = self._sequence + 1
        raw = kept.to_slot(self._uuid, sequence)
        try:
            if os.pwrite(self._fd, raw, sequence % 2 * SLOT_SIZE) != len(raw):
                raise OSError(0, "it was written in part")
            fire(FaultPoint.DISK_ANCHOR_WRITTEN)
            os.fdatasync(self._fd)
        except OSError as error:
            raise _cannot_keep(self._path, error) from None
        self._sequence, self._kept = sequence, kept

    def settle(self) -> None:
        """Have the platform forget the disk that this one has replaced, if there is one. Raises HostError."""
        if self._kept.replaces:
            forget(self._path.parent.parent, self._kept.replaces)
            self.store(self._kept._replace(replaces=""))

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def forget(directory: Path, uuid: str) -> None:
    """Have the platform not know a disk any more. Raises DiskError, HostError."""
    path = _path(directory, uuid)
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise _cannot_keep(path, error) from None


def _path(directory: Path, uuid: str) -> Path:
    if not _UUID.fullmatch(uuid):
        raise DiskError(f"{uuid!r:.60} is no UUID of a disk")
    return directory / "disks" / f"{uuid}.anchor"


def _cannot_keep(path: Path, error: OSError) -> HostError:
    return HostError(f"{path}: the platform cannot keep what it knows of the disk: {error.strerror}")


def _convert(path: Path, uuid: str) -> None:
    """Take over what an earlier memvm kept, as a JSON object in UUID.json. Raises DiskError, HostError."""
    old = path.with_suffix(".json")
    if path.exists() or not old.exists():
        return
    try:
        fields = json.loads(old.read_bytes())
        kept = Anchored(bytes.fromhex(fields["key"]), fields["counter"], bytes.fromhex(fields["root"]))
        if len(kept.key) != KEY_SIZE or len(kept.root) != ROOT_SIZE or not 0 <= operator.index(kept.counter) < _MOST:
            raise ValueError("sizes are wrong")
    except OSError as error:
        raise DiskError(f"{old}: what the platform knows of the disk: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DiskError(f"{old}: what the platform knows of the disk makes no sense: {error}") from None
    Anchor.create(path.parent.parent, uuid, kept)
    with suppress(OSError):  # it is not looked at any more
        old.unlink()
