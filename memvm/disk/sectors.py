"""Sectors encrypted with AES-XTS (IEEE 1619), tweaked by their numbers: aes-xts-plain64 as dm-crypt has it.

The tweak is the number of a sector in units of 512 bytes, whatever the sector's size, as 64 bits in little-endian
order. XTS keeps contents secret and has no integrity: a changed sector decrypts to something else, and an old one to
what it was (integrity.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from memvm.disk.vector_xts import UNIT, VectorXts, vector_code
from memvm.errors import DiskError
from memvm.linux.secret_memory import Buffer, SecretMemory

_TWEAK, _64_BITS = Struct("<Q8x"), (1 << 64) - 1


class SectorCipher:
    """Encrypts and decrypts runs of whole sectors, until it is closed. For any number of threads at once."""

    def __init__(self, key: Buffer, sector_size: int, first_tweak: int = 0) -> None:
        """`key`: two AES keys, 32 or 64 bytes together, of which it makes a copy that nobody else sees.

        Raises DiskError if they are the same, which XTS forbids.
        """
        if key[: len(key) // 2] == key[len(key) // 2 :]:
            raise DiskError("the two halves of the disk's key are the same, which AES-XTS does not allow")
        self.sector_size = sector_size
        self._first = first_tweak
        self._step = sector_size // UNIT
        code, _ = vector_code()
        self._xts = VectorXts(code, key, sector_size) if code is not None else LibraryXts(key, sector_size)

    def close(self) -> None:
        """Wipe the key; idempotent. Nothing is encrypted or decrypted from then on: ValueError."""
        self._xts.close()

    def __enter__(self) -> SectorCipher:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def encrypt(self, sector: int, data: Buffer) -> bytes:
        """Sectors from number `sector` on, as they lie on the disk."""
        return self._xts.encrypt(self._first_tweak(sector, data), data)

    def decrypt(self, sector: int, data: Buffer) -> bytes:
        """What `encrypt` was given."""
        return self._xts.decrypt(self._first_tweak(sector, data), data)

    def _first_tweak(self, sector: int, data: Buffer) -> int:
        if len(data) % self.sector_size:
            raise ValueError(f"{len(data)} bytes are not whole sectors of {self.sector_size}")
        return self._first + sector * self._step


class LibraryXts:
    """What VectorXts does, by `cryptography`, one sector after the other."""

    def __init__(self, key: Buffer, sector_size: int) -> None:
        self._key = SecretMemory.copy_of(key)
        self._aes, self._sector_size = AES(self._key.view), sector_size

    def close(self) -> None:
        """Wipe the key; idempotent."""
        self._key.wipe()

    def encrypt(self, tweak: int, data: Buffer) -> bytes:
        """Whole sectors, the first of them with this tweak."""
        return b"".join(cipher.encryptor().update(sector) for cipher, sector in self._sectors(tweak, data))

    def decrypt(self, tweak: int, data: Buffer) -> bytes:
        """What `encrypt` was given."""
        return b"".join(cipher.decryptor().update(sector) for cipher, sector in self._sectors(tweak, data))

    def _sectors(self, tweak: int, data: Buffer) -> Iterator[tuple[Cipher[XTS], memoryview]]:
        view, size = memoryview(data), self._sector_size
        for at in range(0, len(view), size):
            yield Cipher(self._aes, XTS(_TWEAK.pack(tweak + at // UNIT & _64_BITS))), view[at : at + size]
