"""X.509 certificates of a platform's keys: how the test root makes them, and how a chain is checked.

What is checked is less than what X.509 allows: chains of a few certificates, whose issuers are authorities, that are
valid now, and that end at a root which is trusted here. A certificate that only has something deprecated is refused.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from memvm.errors import AttestationError

MAX_CHAIN = 4
_YEARS = datetime.timedelta(days=3650)
_EARLIER = datetime.timedelta(minutes=5)
_UNUSED = (
    *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("encipher_only", "decipher_only"),
)


def make_certificate(
    name: str,
    key: Ed25519PublicKey | EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    signer: Ed25519PrivateKey,
    *,
    serial_number: str = "",
) -> x509.Certificate:
    """A certificate for `key`; that of a root if nobody else issues it. `serial_number` is the subject's."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]
    if serial_number:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    subject = x509.Name(attributes)
    now = datetime.datetime.now(datetime.UTC)
    is_root = issuer is None
    usage = dict.fromkeys(_UNUSED, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **usage),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return builder.sign(signer, None)


def leaf_of(chain: Sequence[bytes], roots: Sequence[x509.Certificate]) -> x509.Certificate:
    """The first certificate of a chain that one of `roots` vouches for. Raises AttestationError."""
    if not 1 <= len(chain) < MAX_CHAIN or not all(isinstance(der, bytes) for der in chain):
        raise AttestationError("a certificate chain that is empty or too long")
    try:
        certificates = [_strictly_loaded(der) for der in chain]
        now = datetime.datetime.now(datetime.UTC)
        for certificate, issuer in pairwise(certificates):
            _check_issued(certificate, issuer, now)
        root = next((root for root in roots if root.subject == certificates[-1].issuer), None)
        if root is None:
            raise AttestationError("the certificate chain ends at no root that is trusted here")
        _check_issued(certificates[-1], root, now)
        if certificates[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise AttestationError("evidence is signed by a key that makes certificates")
        certificates[0].public_key()
    except AttestationError:
        raise
    except Exception as error:  # noqa: BLE001  # hostile certificates have exceptions of many kinds, Warning among them
        raise AttestationError(f"the certificate chain is wrong: {error or type(error).__name__}") from None
    return certificates[0]


def serial_number_of(certificate: x509.Certificate) -> str:
    """The serial number of the subject; empty if it has none, or several. Raises AttestationError."""
    try:
        found = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    except ValueError as error:
        raise AttestationError(f"a certificate whose subject makes no sense: {error}") from None
    return str(found[0].value) if len(found) == 1 else ""


def raw_public(key: EllipticCurvePublicKey) -> bytes:
    """A key as the uncompressed point."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _strictly_loaded(der: bytes) -> x509.Certificate:
    """A certificate that nothing is to be said against: what is only deprecated raises a warning as an exception.

    All of it is signed but for how the signature is encoded, which has to be in its one form, for otherwise a device
    could come with several certificates: a BIT STRING (X.690, 8.6) of whole bytes, at the end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certificate = x509.load_der_x509_certificate(der)
    content = b"\0" + certificate.signature
    size = len(content)
    length = bytes((size,)) if size < 0x80 else b"\x81%c" % size if size < 0x100 else b"\x82" + size.to_bytes(2, "big")
    if not der.endswith(b"\x03" + length + content):
        raise AttestationError("a certificate whose signature is not encoded as it has to be")
    return certificate


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, now: datetime.datetime) -> None:
    if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise AttestationError("a certificate of the chain is issued by one that must not issue any")
    for each in (certificate, issuer):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise AttestationError("a certificate of the chain has expired, or is not valid yet")
    certificate.verify_directly_issued_by(issuer)
