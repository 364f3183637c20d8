"""COSE_Sign1 (RFC 9052, 4.2) with Ed25519, and no other algorithm: what signs evidence, checkpoints and CWTs.

Everything in the header is protected. A header that has anything unknown is refused, so `crit` is, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.attest import cbor
from memvm.errors import AttestationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_TAG = b"\xd2"
"""Tag 18: COSE_Sign1."""
EDDSA = -8
ALGORITHM, KEY_ID, CHAIN = 1, 4, 33
"""Header parameters: alg, kid, x5chain (RFC 9360)."""
_KNOWN = {ALGORITHM, KEY_ID, CHAIN}


class Signed(NamedTuple):
    """A message that was taken apart, and not verified yet."""

    header: Mapping[int, Any]
    payload: bytes
    protected: bytes
    signature: bytes

    def verify(self, key: Ed25519PublicKey) -> None:
        """Raises AttestationError unless this key signed it."""
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(self.signature, _to_be_signed(self.protected, self.payload))
        except InvalidSignature:
            raise AttestationError("the signature is wrong") from None


def sign(payload: bytes, key: Ed25519PrivateKey, header: Mapping[int, Any]) -> bytes:
    """A message with this header, `alg` added."""
    protected = cbor.encode({ALGORITHM: EDDSA, **header})
    signature = key.sign(_to_be_signed(protected, payload))
    return _TAG + cbor.encode([protected, {}, payload, signature])


def read(message: bytes) -> Signed:
    """Take a message apart. Raises AttestationError if it is none, or has a header that is not known here."""
    if message[:1] != _TAG:
        raise AttestationError("not a COSE_Sign1 message")
    parts = cbor.decode(message[1:])
    if not isinstance(parts, list) or len(parts) != 4 or parts[1] != {}:
        raise AttestationError("a COSE_Sign1 message that is not complete, or has a header that nobody signed")
    protected, _, payload, signature = parts
    if not all(isinstance(part, bytes) for part in (protected, payload, signature)):
        raise AttestationError("a COSE_Sign1 message of parts that are no bytes")
    header = cbor.decode(protected)
    if not isinstance(header, dict) or header.get(ALGORITHM) != EDDSA or set(header) - _KNOWN:
        raise AttestationError("a COSE header with another algorithm than EdDSA, or with what is not known here")
    return Signed(header, payload, protected, signature)


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return cbor.encode(["Signature1", protected, b"", payload])
