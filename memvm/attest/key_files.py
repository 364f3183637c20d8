"""Keys in files, in PEM: private ones as PKCS #8, which their owners alone may read; public ones beside them.

Ed25519 keys sign: those of platforms, verifiers, brokers and makers. X25519 keys are what something is encrypted for.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from memvm.errors import AttestationError, HostError, UsageError

_PUBLIC = 0o666
"""The rights of a file that anybody may have, but for the user's umask."""

PrivateKey = Ed25519PrivateKey | X25519PrivateKey
PublicKey = Ed25519PublicKey | X25519PublicKey


def load_private(path: Path) -> Ed25519PrivateKey:
    """A key that signs. Raises AttestationError."""
    key = _load_private(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise _of_another_kind(path, "Ed25519")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """A key for signatures. Raises AttestationError."""
    key = _load_public(path)
    if not isinstance(key, Ed25519PublicKey):
        raise _of_another_kind(path, "Ed25519")
    return key


def load_private_to_decrypt(path: Path) -> X25519PrivateKey:
    """A key that decrypts. Raises AttestationError."""
    key = _load_private(path)
    if not isinstance(key, X25519PrivateKey):
        raise _of_another_kind(path, "X25519")
    return key


def load_public_to_encrypt(path: Path) -> X25519PublicKey:
    """A key to encrypt for. Raises AttestationError."""
    key = _load_public(path)
    if not isinstance(key, X25519PublicKey):
        raise _of_another_kind(path, "X25519")
    return key


def _load_private(path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise AttestationError(f"{path}: no private key can be read: {reason_of(error)}") from None


def _load_public(path: Path) -> PublicKeyTypes:
    try:
        return load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AttestationError(f"{path}: no public key can be read: {reason_of(error)}") from None


def _of_another_kind(path: Path, wanted: str) -> AttestationError:
    return AttestationError(f"{path}: not an {wanted} key")


def reason_of(error: Exception) -> str:
    """What to say of an error that came of reading a file."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def make_pair(private: PrivateKey, path: Path) -> None:
    """Keep a new key at a path where there is no file, and its public key beside it, with .pub.

    Raises UsageError, HostError.
    """
    try:
        write_new(path, private_pem(private))
        try:
            write_new(path.with_name(path.name + ".pub"), public_pem(private.public_key()), _PUBLIC)
        except OSError:
            path.unlink()
            raise
    except FileExistsError as error:
        raise UsageError(f"{error.filename}: there is a file already", hint="a key is not written over") from None
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error


def service_key(directory: Path, name: str) -> Ed25519PrivateKey:
    """A service's own key: NAME.key in its directory, made at first with NAME.pub.

    Raises AttestationError, HostError.
    """
    path = directory / f"{name}.key"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            key, public = Ed25519PrivateKey.generate(), directory / f"{name}.pub"
            public.unlink(missing_ok=True)
            write_new(public, public_pem(key.public_key()), _PUBLIC)
            write_new(path, private_pem(key))  # last, since who finds it makes no other
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error
    return load_private(path)


def write_new(path: Path, contents: bytes, mode: int = 0o600) -> None:
    """A file with these rights, which only its owner may read if nothing is said; whole, or not at all.

    Raises FileExistsError and OSError, which name it. Where half a key is, no service starts, and none makes another.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def private_pem(key: PrivateKey) -> bytes:
    """A private key as PKCS #8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: PublicKey) -> bytes:
    """A public key as SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
