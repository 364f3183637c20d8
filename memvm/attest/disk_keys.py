"""How a disk's key comes to a guest: what is bound together, how it is sealed, and who says that it is the right one.

    binding     SHA-384 of the domain, the broker's identity and nonce, the disk's UUID and header digest, and the
                guest's public key, each with its length in front. The guest has it put into its evidence (`bound`), so
                that a token is good for this exchange and no other.
    sealed      the volume key, by HPKE (RFC 9180: X25519, HKDF-SHA-256, AES-256-GCM, base mode, single-shot) for the
                guest's public key, with domain and binding as `info`; the encapsulated key comes first
    signature   Ed25519 by the broker, of domain, binding and what is sealed

HPKE's base mode says nothing of the sender. So the broker signs, and the guest, into which the broker's public key was
measured, checks: otherwise the manager could hand it another disk with a key that the manager knows.
"""

from __future__ import annotations

from hashlib import sha384
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from memvm.attest.evidence import GuestKey
from memvm.errors import AttestationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

DOMAIN = b"memvm disk key 1"
NONCE_SIZE = 32
SEALED_SIZE, SIGNATURE_SIZE = 32 + 64 + 16, 64
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
LONGEST_IDENTITY = 127
"""Bytes of a broker's identity."""


class SealedKey(NamedTuple):
    """What a broker answers with."""

    sealed: bytes
    signature: bytes


def binding(identity: str, nonce: bytes, disk: str, header_digest: bytes, guest_key: bytes) -> bytes:
    """By which everything of one exchange is bound together: 48 bytes."""
    digest = sha384()
    for field in (DOMAIN, identity.encode(), nonce, disk.encode(), header_digest, guest_key):
        digest.update(len(field).to_bytes(2, "big") + field)
    return digest.digest()


def seal(volume_key: bytes, guest_key: GuestKey, bound: bytes, broker: Ed25519PrivateKey) -> SealedKey:
    """The volume key, for the guest alone. Raises AttestationError for a guest's key that cannot be encrypted to."""
    if guest_key.kind != "x25519":
        raise AttestationError("the guest's key is none that a disk's key can be encrypted for: it has to be of X25519")
    try:
        sealed = _SUITE.encrypt(volume_key, X25519PublicKey.from_public_bytes(guest_key.public), info=DOMAIN + bound)
    except ValueError as error:
        raise AttestationError(f"the guest's key is none that a disk's key can be encrypted for: {error}") from None
    return SealedKey(sealed, broker.sign(DOMAIN + bound + sealed))


def unseal(answer: SealedKey, guest_key: X25519PrivateKey, bound: bytes, broker: Ed25519PublicKey) -> bytes:
    """What a guest does in C (guests/include/memvm_broker.h), in Python. Raises AttestationError."""
    try:
        broker.verify(answer.signature, DOMAIN + bound + answer.sealed)
        return _SUITE.decrypt(answer.sealed, guest_key, info=DOMAIN + bound)
    except InvalidSignature:
        raise AttestationError("the disk's key is not from the broker, or of another exchange") from None
    except Exception as error:  # noqa: BLE001  # whatever it is, there is no key
        raise AttestationError(f"the disk's key cannot be decrypted: {type(error).__name__}") from None
