"""Quotes of a TPM 2.0, read and verified without a TPM: TPMS_ATTEST and TPMT_SIGNATURE (TPM 2.0 Library, Part 2).

    TPMS_ATTEST     u32 TPM_GENERATED_VALUE, u16 TPM_ST_ATTEST_QUOTE, 2B qualifiedSigner, 2B extraData,
                    TPMS_CLOCK_INFO: u64 clock, u32 resetCount, u32 restartCount, u8 safe; u64 firmwareVersion,
                    TPMS_QUOTE_INFO: u32 count, count * (u16 hash, u8 size, size bytes: a bit a PCR), 2B pcrDigest
    TPMT_SIGNATURE  u16 TPM_ALG_ECDSA, u16 TPM_ALG_SHA256, 2B r, 2B s

All big endian; "2B" is a u16 length, and as many bytes. Taken is a quote of one PCR of the bank of SHA-384, signed with
ECDSA on P-256 and SHA-256, which every TPM 2.0 of a PC can do.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from memvm.errors import AttestationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE: a restricted key signs nothing that begins so unless the TPM made it."""
_ATTEST_QUOTE = 0x8018


class Algorithm(IntEnum):
    """TPM_ALG_ID (TCG Algorithm Registry)."""

    SHA256 = 0x000B
    SHA384 = 0x000C
    ECDSA = 0x0018


class Quote(NamedTuple):
    """What a TPM says of one of its PCRs."""

    extra_data: bytes
    """What whoever asked gave."""
    clock: int
    """Milliseconds that the TPM has been powered."""
    reset_count: int
    """How often it was reset: with each boot."""
    restart_count: int
    """How often it came back from a suspension since then."""
    safe: bool
    """Whether `clock` has certainly never been higher."""
    firmware: int
    pcr: int
    digest: bytes
    """SHA-256 over the PCR's value."""


def read_quote(attested: bytes) -> Quote:
    """Take a TPMS_ATTEST apart. Raises AttestationError unless it is a quote of one PCR, whole and with no more."""
    reader = _Reader(attested, "quote")
    if reader.number(4) != _GENERATED:
        raise AttestationError("a quote that no TPM has made")
    if reader.number(2) != _ATTEST_QUOTE:
        raise AttestationError("the TPM attests something else than PCRs")
    reader.sized()  # the signer's qualified name: which key it is, its certificate says
    extra = reader.sized()
    clock, resets, restarts, safe = (reader.number(size) for size in (8, 4, 4, 1))
    firmware = reader.number(8)
    if safe > 1:
        raise AttestationError("a quote whose clock is neither safe nor unsafe")
    if reader.number(4) != 1 or reader.number(2) != Algorithm.SHA384:
        raise AttestationError("a quote of other PCRs than one of the bank of SHA-384")
    selected = int.from_bytes(reader.take(reader.number(1)), "little")
    if selected.bit_count() != 1:
        raise AttestationError("a quote of several PCRs, or of none")
    digest = reader.sized()
    reader.finish()
    return Quote(extra, clock, resets, restarts, bool(safe), firmware, selected.bit_length() - 1, digest)


def verify_quote(attested: bytes, signature: bytes, key: EllipticCurvePublicKey) -> None:
    """Raises AttestationError unless this key signed the quote."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    reader = _Reader(signature, "quote's signature")
    if (reader.number(2), reader.number(2)) != (Algorithm.ECDSA, Algorithm.SHA256):
        raise AttestationError("the quote is signed with another algorithm than ECDSA with SHA-256")
    r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
    reader.finish()
    try:
        key.verify(encode_dss_signature(r, s), attested, ECDSA(SHA256()))
    except InvalidSignature:
        raise AttestationError("the quote's signature is wrong") from None


def pcr_digest(value: bytes) -> bytes:
    """What a quote has of a PCR with this value."""
    return sha256(value).digest()


class _Reader:
    """Reads a structure from its beginning to its end."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what, self._at = data, what, 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise AttestationError(f"a {self._what} that ends too early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def finish(self) -> None:
        if self._at != len(self._data):
            raise AttestationError(f"a {self._what} with something behind it")
