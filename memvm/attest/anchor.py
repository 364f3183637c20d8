"""The part of evidence that a TPM signs: a quote of the PCR in which guests' registers are anchored, and the PCR's log.

    tpm    certificate  of the TPM's attestation key, by the platform's root
           quote        TPMS_ATTEST, and `signature` TPMT_SIGNATURE
           log          the records since boot (pcr.py)

The quote's qualifying data is the digest of the evidence without this part, nonce included: a quote of other evidence,
or of another exchange, is worth nothing. The certificate names the device whose evidence the key may go with: its
subject's serial number is the SHA-256 of the device's public key.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from hashlib import sha256, sha384
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.attest.certificates import leaf_of, raw_public, serial_number_of
from memvm.attest.pcr import MAX_LOG, RECORD_SIZE, last_register, replay
from memvm.attest.quote import Quote, pcr_digest, read_quote, verify_quote
from memvm.errors import AttestationError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Anchor(NamedTuple):
    """That part, as it is sent."""

    certificate: bytes
    quote: bytes
    signature: bytes
    log: bytes

    def to_fields(self) -> dict[str, bytes]:
        """As a map for CBOR."""
        return self._asdict()


class Anchored(NamedTuple):
    """What a TPM vouches for, checked."""

    tpm: bytes
    """SHA-384 of its attestation key."""
    quote: Quote

    def to_claims(self) -> dict[str, str | int]:
        """What a token says of it."""
        quote = self.quote
        boot = {"reset_count": quote.reset_count, "restart_count": quote.restart_count, "clock_ms": quote.clock}
        return {"key": self.tpm.hex(), "pcr": quote.pcr, **boot, "firmware": f"{quote.firmware:016x}"}


def qualifying(evidence: bytes) -> bytes:
    """What is quoted with: the digest of evidence without its anchor."""
    return sha256(b"memvm quote 1\0" + evidence).digest()


def check_anchor(
    fields: Any,
    evidence: bytes,
    instance: bytes,
    register: bytes,
    device: Ed25519PublicKey,
    roots: Sequence[x509.Certificate],
) -> Anchored:
    """What a TPM says of a guest with this instance and register, in `evidence` that this device signed.

    Raises AttestationError if anything of it is not right.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

    anchor = _parse(fields)
    certificate = leaf_of([anchor.certificate], roots)
    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise AttestationError("the TPM's attestation key is not on P-256")
    if serial_number_of(certificate) != key_digest(device):
        raise AttestationError("the TPM's attestation key is registered for another device")
    verify_quote(anchor.quote, anchor.signature, key)
    quote = read_quote(anchor.quote)
    if not secrets.compare_digest(quote.extra_data, qualifying(evidence)):
        raise AttestationError("the quote is of other evidence, or of another exchange")
    if quote.digest != pcr_digest(replay(anchor.log)):
        raise AttestationError("the log is not that of the quoted PCR")
    if last_register(anchor.log, instance) != register:
        raise AttestationError("the register is not the one that is anchored in the TPM")
    return Anchored(sha384(raw_public(key)).digest(), quote)


def key_digest(key: Ed25519PublicKey) -> str:
    """How a certificate names a device's key."""
    return sha256(key.public_bytes_raw()).hexdigest()


def _parse(fields: Any) -> Anchor:
    if not isinstance(fields, dict) or set(fields) != set(Anchor._fields):
        raise AttestationError("what the TPM says is not complete, or has something unknown")
    if not all(type(field) is bytes for field in fields.values()):
        raise AttestationError("what the TPM says is made of other things than bytes")
    anchor = Anchor(**fields)
    if len(anchor.log) > MAX_LOG or len(anchor.log) % RECORD_SIZE:
        raise AttestationError("the log of the TPM's PCR is too long, or has a record that is not complete")
    return anchor
