"""Integrity of a disk's sectors: a keyed tag for each, and a tree of hashes whose root the platform keeps.

    FILE.tags   for each sector a tag of 32 bytes: HMAC-SHA-256 of the disk's UUID, its number and its ciphertext;
                zeros for a sector that was never written, which has to be zeros itself
    tree        pages of 128 tags are hashed, pages of 128 of those hashes are hashed, and so on to one hash
    root        SHA-256 of the UUID, the number of sectors and that hash

A sector from another disk or another place has the wrong tag; an old sector with its old tag makes another root. The
tree is computed from the tags when a disk is opened, and its tags are kept in memory: 8 MiB for each GiB of sectors
of 4096 bytes. AES-XTS has nothing of this, and LUKS2 with dm-integrity nothing against old sectors.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from memvm.disk.anchor import ROOT_SIZE, Anchor, Anchored
from memvm.disk.files import tags_path
from memvm.disk.journal import write_all
from memvm.errors import DiskError

TAG_SIZE = 32
_FANOUT = 128
_PAGE = TAG_SIZE * _FANOUT
_NEVER_WRITTEN = bytes(TAG_SIZE)
_DOMAIN = b"memvm disk 1"
_SECTOR = struct.Struct(">12s36sQ")


class Change(NamedTuple):
    """New tags for some sectors, and the root that comes of them."""

    tags: Mapping[int, bytes]
    root: bytes


class Integrity:
    """The tags of one disk, all of them in memory."""

    def __init__(self, fd: int, name: str, uuid: str, sectors: int, key: bytes) -> None:
        """`fd` is the file with the tags, `name` is its own, for messages.

        Raises DiskError if it has not as many as there are sectors; OSError.
        """
        self._fd, self._uuid, self._key, self._sectors = fd, uuid.encode(), key, sectors
        tags = bytearray(os.pread(fd, os.fstat(fd).st_size, 0))
        if len(tags) != sectors * TAG_SIZE:
            raise DiskError(
                f"{name}: there are {len(tags) // TAG_SIZE} tags for the disk's {sectors} sectors",
                hint="was one of the two files cut, or exchanged, without the other?",
            )
        tags.extend(bytes(-len(tags) % _PAGE))
        self._levels = [tags]
        while len(self._levels[-1]) > _PAGE:
            below = self._levels[-1]
            hashes = bytearray().join(_hashed(below, page) for page in range(len(below) // _PAGE))
            hashes.extend(bytes(-len(hashes) % _PAGE))
            self._levels.append(hashes)

    @property
    def root(self) -> bytes:
        """Of the tree as it is in memory."""
        top = _hashed(self._levels[-1], 0)
        return sha256(_SECTOR.pack(_DOMAIN, self._uuid, self._sectors) + top).digest()

    def is_right(self, sector: int, ciphertext: bytes | memoryview) -> bool:
        """Whether this is what was last written there."""
        tag = bytes(self._levels[0][sector * TAG_SIZE : (sector + 1) * TAG_SIZE])
        if tag == _NEVER_WRITTEN:
            return ciphertext == bytes(len(ciphertext))
        return hmac.compare_digest(tag, self._tag(sector, ciphertext))

    def is_untouched(self, sector: int) -> bool:
        """Whether nothing was ever written there."""
        return self._levels[0][sector * TAG_SIZE : (sector + 1) * TAG_SIZE] == _NEVER_WRITTEN

    def _tag(self, sector: int, ciphertext: bytes | memoryview) -> bytes:
        return hmac.digest(self._key, _SECTOR.pack(_DOMAIN, self._uuid, sector) + ciphertext, "sha256")

    def change(self, sectors: Mapping[int, bytes]) -> Change:
        """Put new tags into the tree, in memory."""
        tags = {sector: self._tag(sector, data) for sector, data in sectors.items()}
        self._put(tags)
        return Change(tags, self.root)

    def _put(self, tags: Mapping[int, bytes]) -> None:
        changed: Iterable[int] = tags
        for sector, tag in tags.items():
            self._levels[0][sector * TAG_SIZE : (sector + 1) * TAG_SIZE] = tag
        for below, level in zip(self._levels, self._levels[1:], strict=False):
            pages = sorted({number // _FANOUT for number in changed})
            for page in pages:
                level[page * TAG_SIZE : (page + 1) * TAG_SIZE] = _hashed(below, page)
            changed = pages

    def undo(self, change: Change, before: Mapping[int, bytes]) -> None:
        """Take a change back that could not be kept; `before` has the tags that were there."""
        self._put({sector: before[sector] for sector in change.tags})

    def tags_of(self, sectors: Iterable[int]) -> dict[int, bytes]:
        """The tags of some sectors as they are."""
        return {sector: bytes(self._levels[0][sector * TAG_SIZE : (sector + 1) * TAG_SIZE]) for sector in sectors}

    def write(self, change: Change) -> None:
        """Put a change into the file, and sync it. Raises OSError."""
        for sector, tag in change.tags.items():
            write_all(self._fd, tag, sector * TAG_SIZE)
        os.fsync(self._fd)


def _hashed(level: bytearray, page: int) -> bytes:
    return sha256(memoryview(level)[page * _PAGE : (page + 1) * _PAGE]).digest()


def protect(path: Path, uuid: str, sectors: int, platform: Path, *, replaces: str = "") -> None:
    """Begin to protect a new disk, in which nothing was written; `platform` is the platform's directory.

    `replaces` is the UUID of the disk in whose place it shall come. Raises DiskError, HostError.
    """
    name = str(tags_path(path))
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DiskError(f"{name}: the disk's tags cannot be kept: {error.strerror}") from None
    try:
        os.ftruncate(fd, sectors * TAG_SIZE)
        os.fsync(fd)
        key = os.urandom(ROOT_SIZE)
        Anchor.create(platform, uuid, Anchored(key, 0, Integrity(fd, name, uuid, sectors, key).root, replaces))
    finally:
        os.close(fd)
