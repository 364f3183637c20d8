"""Keyslots: the volume key, encrypted for who knows a passphrase; and the digest by which a key is known."""

from __future__ import annotations

import hashlib
import hmac
import os

from memvm.disk.antiforensic import merge, split
from memvm.disk.kdf import SALT_SIZE, derive_key
from memvm.disk.metadata import ALIGNMENT, KEY_SIZE, STRIPES, Digest, Kdf, Keyslot
from memvm.disk.sectors import SectorCipher
from memvm.disk.vector_xts import UNIT
from memvm.linux.secret_memory import overwrite

_HASH = "sha256"
_DIGEST_ITERATIONS = 1000
"""The volume key is random, so nobody guesses it, and no more are needed than cryptsetup takes at the least."""


def new_keyslot(offset: int, kdf: Kdf) -> Keyslot:
    """A keyslot that begins at `offset`."""
    size = -(-KEY_SIZE * STRIPES // ALIGNMENT) * ALIGNMENT
    return Keyslot(KEY_SIZE, _HASH, offset, size, KEY_SIZE, kdf)


def wrap(slot: Keyslot, passphrase: bytes, volume_key: bytes) -> bytes:
    """What belongs into the keyslot's area: `slot.size` bytes. Raises HostError."""
    material = split(volume_key, STRIPES, slot.af_hash)
    padding = os.urandom(slot.size - len(material))
    with _area_cipher(slot, passphrase) as cipher:
        return cipher.encrypt(0, material + padding)


def unwrap(slot: Keyslot, passphrase: bytes, area: bytes) -> bytes:
    """The volume key, if the passphrase is right, and otherwise another one. Raises HostError."""
    whole = -(-slot.material_size // UNIT) * UNIT
    with _area_cipher(slot, passphrase) as cipher:
        material = cipher.decrypt(0, area[:whole])
    return merge(material[: slot.material_size], STRIPES, slot.af_hash)


def _area_cipher(slot: Keyslot, passphrase: bytes) -> SectorCipher:
    """For the keyslot's area."""
    area_key = derive_key(slot.kdf, passphrase, slot.area_key_size)
    try:
        return SectorCipher(area_key, UNIT)
    finally:
        overwrite(area_key)


def new_digest(volume_key: bytes, keyslots: frozenset[str]) -> Digest:
    """By which the key will be known."""
    salt = os.urandom(SALT_SIZE)
    value = hashlib.pbkdf2_hmac(_HASH, volume_key, salt, _DIGEST_ITERATIONS)
    return Digest(keyslots, frozenset("0"), _HASH, _DIGEST_ITERATIONS, salt, value)


def is_key_of(volume_key: bytes, digest: Digest) -> bool:
    """Whether it is the key that the digest was made of."""
    value = hashlib.pbkdf2_hmac(digest.hash, volume_key, digest.salt, digest.iterations, len(digest.value))
    return hmac.compare_digest(value, digest.value)
