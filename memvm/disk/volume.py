"""A LUKS2 file as a whole: made, opened, unlocked, and given another passphrase.

Nothing in the file is believed because it is there. The cipher has to be the one that memvm uses (metadata_reader.py).
Who keeps a digest of the header (`header_digest`: everything before the data, keyslots included) has it compared when
the disk is opened: a foreign keyslot, another cipher, an older header are another digest.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from memvm.disk.files import DiskFiles, look_at, open_files
from memvm.disk.header import Header, read_header
from memvm.disk.kdf import new_kdf
from memvm.disk.keyslots import is_key_of, new_digest, new_keyslot, unwrap, wrap
from memvm.disk.metadata import KEY_SIZE, SECTOR_SIZES, Metadata, Segment
from memvm.disk.metadata_reader import read_metadata
from memvm.disk.sectors import SectorCipher
from memvm.errors import DiskError, UsageError
from memvm.faultpoints import FaultPoint, fire
from memvm.linux.files import sync_directory
from memvm.linux.secret_memory import overwrite
from memvm.units import KIB, MIB

DATA_OFFSET = 16 * MIB
"""Where the data begins in disks that are made here; as cryptsetup has it."""
HEADER_SIZE = 16 * KIB
DEFAULT_SECTOR_SIZE = 4096
DIGEST_SIZE = 48
_MOST_HEADER = 256 * MIB
_PIECE = MIB


class Volume:
    """An open LUKS2 file."""

    def __init__(self, files: DiskFiles, *, pinned: bytes | None = None) -> None:
        """Takes the files over. `pinned` is the header's digest, as it has to be. Raises DiskError."""
        self.files, self.name, self.fd = files, files.name, files.sectors
        try:
            self._read()
            if pinned is not None and not hmac.compare_digest(self.header_digest(), pinned):
                raise DiskError(
                    f"{self.name}: the disk's header is another one than it has to be: its digest is "
                    f"{self.header_digest().hex()}",
                    hint="was it given another keyslot? memvm disk info shows the header",
                )
        except OSError as error:
            files.close()
            raise DiskError(f"{self.name}: the disk cannot be read: {error.strerror}") from None
        except BaseException:
            files.close()
            raise

    def _read(self) -> None:
        self.header = read_header(self.fd, self.name)
        self.metadata = read_metadata(self.header.json, self.header.size, self.name)
        segment = self.metadata.segment
        if segment.offset > _MOST_HEADER:
            raise DiskError(f"{self.name}: the disk's data begins further in than a header can be long")
        room = os.fstat(self.fd).st_size - segment.offset
        self.size = (room if segment.size is None else segment.size) // segment.sector_size * segment.sector_size
        """Bytes of data."""
        if not 0 <= self.size <= room:
            raise DiskError(f"{self.name}: the file ends before the disk's data does")

    def close(self) -> None:
        """Close the files; idempotent."""
        self.files.close()

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def data_offset(self) -> int:
        """Where the data begins in the file."""
        return self.metadata.segment.offset

    @property
    def sector_size(self) -> int:
        """Bytes."""
        return self.metadata.segment.sector_size

    def header_digest(self) -> bytes:
        """SHA-384 of everything before the data."""
        digest = hashlib.sha384()
        for at in range(0, self.data_offset, _PIECE):
            digest.update(os.pread(self.fd, min(_PIECE, self.data_offset - at), at))
        return digest.digest()

    def unlock(self, passphrase: bytes) -> bytes:
        """The volume key. Raises DiskError if no keyslot opens, HostError if there is not the memory to try."""
        return self._find(passphrase)[1]

    def _find(self, passphrase: bytes) -> tuple[str, bytes]:
        for number, slot in self.metadata.keyslots.items():
            if number not in self.metadata.digest.keyslots:
                continue  # of another key than the data's
            key = unwrap(slot, passphrase, os.pread(self.fd, slot.size, slot.offset))
            if is_key_of(key, self.metadata.digest):
                return number, self._checked(key)
        unknown = "".join(
            f"; keyslot {number} is not known here: {why}" for number, why in self.metadata.unknown.items()
        )
        raise DiskError(f"{self.name}: the passphrase opens no keyslot of the disk{unknown}")

    def _checked(self, key: bytes) -> bytes:
        if len(key) != KEY_SIZE:
            raise DiskError(f"{self.name}: the disk's key has {8 * len(key)} bits, and has to have {8 * KEY_SIZE}")
        return key

    def cipher(self, volume_key: bytes) -> SectorCipher:
        """For the data. Raises DiskError for a key that is not the disk's."""
        if not is_key_of(self._checked(volume_key), self.metadata.digest):
            raise DiskError(f"{self.name}: this is not the disk's key")
        return SectorCipher(volume_key, self.sector_size, self.metadata.segment.tweak)

    def replace_passphrase(self, old: bytes, new: bytes, kind: str, *, iterations: int = 0) -> None:
        """Have another passphrase open the disk in place of this one. Raises DiskError, HostError.

        The new keyslot is whole before the header knows it, and the old one is overwritten after the header has
        forgotten it: at any moment one of them opens the disk.
        """
        number, key = self._find(old)
        metadata = self.metadata
        new_slot = new_keyslot(self._free_place(), new_kdf(kind, iterations=iterations))
        fresh = next(str(n) for n in range(32) if str(n) not in metadata.keyslots)
        os.pwrite(self.fd, wrap(new_slot, new, key), new_slot.offset)
        overwrite(key)
        os.fsync(self.fd)
        fire(FaultPoint.DISK_KEYSLOT_WRITTEN)
        gone = metadata.keyslots[number]
        slots = {name: slot for name, slot in metadata.keyslots.items() if name != number} | {fresh: new_slot}
        named = metadata.digest.keyslots - {number} | {fresh}
        self._write(metadata._replace(keyslots=slots, digest=metadata.digest._replace(keyslots=named)))
        os.pwrite(self.fd, os.urandom(gone.size), gone.offset)
        os.fsync(self.fd)

    def _free_place(self) -> int:
        """Where the keyslots area has room for one more."""
        start = 2 * self.header.size
        size = new_keyslot(0, new_kdf("pbkdf2", iterations=1)).size
        for slot in sorted(self.metadata.keyslots.values(), key=lambda slot: slot.offset):
            if slot.offset - start >= size:
                break
            start = slot.offset + slot.size
        if start + size > 2 * self.header.size + self.metadata.keyslots_size or len(self.metadata.keyslots) == 32:
            raise DiskError(f"{self.name}: the disk has no room for another keyslot", hint="cryptsetup luksKillSlot")
        return start

    def _write(self, metadata: Metadata) -> None:
        """Write the header anew, one copy after the other."""
        sequence = self.header.sequence + 1
        header = self.header._replace(json=metadata.to_json(self.header.size), sequence=sequence)
        primary, secondary = header.copies()
        for copy, offset in ((secondary, header.size), (primary, 0)):
            os.pwrite(self.fd, copy, offset)
            os.fsync(self.fd)
            fire(FaultPoint.DISK_HEADER_COPY)
        self.header, self.metadata = header, metadata


def open_volume(path: Path, *, writable: bool = False, pinned: bytes | None = None) -> Volume:
    """The disk at a path: to be written, while nobody else has it in use, or only to be looked at. Raises DiskError."""
    return Volume(open_files(path, writable=True) if writable else look_at(path), pinned=pinned)


def create(
    path: Path,
    size: int,
    passphrase: bytes,
    *,
    kind: str = "argon2id",
    iterations: int = 0,
    sector_size: int = DEFAULT_SECTOR_SIZE,
    label: str = "",
) -> None:
    """Make a disk of `size` bytes at a path where nothing is. Raises UsageError, DiskError, HostError.

    The file has holes where nothing was written; what is read there is noise, as on every new encrypted disk.
    """
    if sector_size not in SECTOR_SIZES or size <= 0 or size % sector_size:
        raise UsageError(
            f"a disk of {size} bytes in sectors of {sector_size}: it has to have whole sectors of "
            f"{', '.join(map(str, SECTOR_SIZES))} bytes"
        )
    if len(label.encode()) > 47:
        raise UsageError("a disk's label has at most 47 bytes")
    volume_key = os.urandom(KEY_SIZE)
    slot = new_keyslot(2 * HEADER_SIZE, new_kdf(kind, iterations=iterations))
    metadata = Metadata(
        keyslots={"0": slot},
        segment=Segment(DATA_OFFSET, None, 0, sector_size),
        digest=new_digest(volume_key, frozenset("0")),
        keyslots_size=DATA_OFFSET - 2 * HEADER_SIZE,
    )
    header = Header(HEADER_SIZE, 1, label, str(uuid.uuid4()), "", metadata.to_json(HEADER_SIZE))
    parts = [(0, b"".join(header.copies())), (slot.offset, wrap(slot, passphrase, volume_key))]
    overwrite(volume_key)
    _write_new(path, parts, DATA_OFFSET + size)


def _write_new(path: Path, parts: Sequence[tuple[int, bytes]], size: int) -> None:
    """A file that has its name when it is whole, and takes nobody else's."""
    temporary = path.with_name(f".{path.name}.memvm-{os.urandom(4).hex()}")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, size)
            for offset, data in parts:
                os.pwrite(fd, data, offset)
            os.fsync(fd)
            os.link(temporary, path)
        finally:
            os.close(fd)
            temporary.unlink()
    except FileExistsError:
        raise DiskError(f"{path} is there already") from None
    except OSError as error:
        raise DiskError(f"{path}: the disk cannot be made: {error.strerror}") from None
    sync_directory(path.parent)
