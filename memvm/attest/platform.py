"""The platform's identity on this machine: a device key, and a certificate chain from a root that is made for labs.

    root.key root.pem       the test root: who has the key can make devices
    device.key chain.pem    the device key, and its certificates: its own first, then the root
    security-version        a number that rises when something is repaired that evidence must tell apart
    tpm.json tpm.pem        if it has a TPM: where that is, and the certificate of its attestation key
    tpm.log                 what the TPM's PCR was extended with since boot

All in one directory, readable by its owner alone: MEMVM_PLATFORM_DIR, or memvm/platform in XDG_DATA_HOME.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from memvm.attest.certificates import leaf_of, make_certificate
from memvm.attest.key_files import load_private, private_pem, reason_of, write_new
from memvm.attest.places import platform_directory
from memvm.errors import AttestationError, HostError, UsageError

SECURITY_VERSION = 1


class Device(NamedTuple):
    """Who signs evidence here."""

    key: Ed25519PrivateKey
    chain: tuple[bytes, ...]
    """Certificates in DER, the device's own first, without the root."""
    security_version: int


def make_platform(directory: Path, name: str) -> None:
    """Make a test root, and a device under it. Raises UsageError if there are files already, HostError."""
    made: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        root, device = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        root_certificate = make_certificate(f"memvm test root of {name}", root.public_key(), None, root)
        certificate = make_certificate(f"memvm device {name}", device.public_key(), root_certificate, root)
        pem = [each.public_bytes(Encoding.PEM) for each in (root_certificate, certificate)]
        for file, contents in (
            ("root.key", private_pem(root)),
            ("root.pem", pem[0]),
            ("device.key", private_pem(device)),
            ("chain.pem", pem[1] + pem[0]),
            ("security-version", f"{SECURITY_VERSION}\n".encode()),
        ):
            write_new(directory / file, contents)
            made.append(directory / file)
    except FileExistsError as error:
        raise UsageError(
            f"{error.filename}: there is a platform already", hint="remove the directory to make another"
        ) from None
    except OSError as error:
        for path in made:  # half a platform would be in the way of the next try
            path.unlink()
        raise HostError(f"{error.filename}: {error.strerror}") from error


_HELD: dict[Path, Any] = {}
"""What was read of files that this process may not be allowed to read later."""


def hold_platform() -> None:
    """Read now what is needed of the platform's files, if there is one, and no more from then on.

    For a process that is about to become another user. Raises AttestationError.
    """
    directory = platform_directory()
    if (directory / "device.key").exists():
        device, roots = load_device(directory), load_certificates(directory / "root.pem")
        _HELD.update({directory: device, directory / "root.pem": roots})


def has_platform() -> bool:
    """Whether there is a device on this machine."""
    directory = platform_directory()
    return directory in _HELD or (directory / "device.key").exists()


def load_device(directory: Path | None = None) -> Device:
    """The device of this machine. Raises AttestationError if there is none."""
    directory = directory or platform_directory()
    if directory in _HELD:
        return cast(Device, _HELD[directory])
    if not (directory / "device.key").exists():
        raise AttestationError(f"there is no platform in {directory}", hint="memvm platform init")
    chain = load_certificates(directory / "chain.pem")
    try:
        version = int((directory / "security-version").read_text())
    except (OSError, ValueError) as error:
        raise AttestationError(f"{directory}/security-version: {reason_of(error)}") from None
    ders = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain[:-1])
    return Device(load_private(directory / "device.key"), ders, version)


def load_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file. Raises AttestationError."""
    if path in _HELD:
        return cast("list[x509.Certificate]", _HELD[path])
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AttestationError(f"{path}: no certificates can be read: {reason_of(error)}") from None


def device_key_of(chain: Sequence[bytes], roots: Sequence[x509.Certificate]) -> Ed25519PublicKey:
    """The key of the first certificate of a chain that one of `roots` vouches for. Raises AttestationError."""
    key = leaf_of(chain, roots).public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise AttestationError("the device's key is not an Ed25519 key")
    return key
