"""Keys in files: each kind is read as what it is, and no other; none is written over."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from memvm.attest.key_files import (
    PrivateKey,
    PublicKey,
    load_private,
    load_private_to_decrypt,
    load_public,
    load_public_to_encrypt,
    make_pair,
    public_pem,
    service_key,
)
from memvm.attest.platform import make_platform
from memvm.errors import AttestationError, HostError, UsageError

LOADERS: tuple[tuple[Callable[[Path], PrivateKey | PublicKey], str, type], ...] = (
    (load_private, "", Ed25519PrivateKey),
    (load_public, ".pub", Ed25519PrivateKey),
    (load_private_to_decrypt, "", X25519PrivateKey),
    (load_public_to_encrypt, ".pub", X25519PrivateKey),
)


@pytest.mark.parametrize("kind", [Ed25519PrivateKey, X25519PrivateKey])
def test_a_pair_is_read_as_what_it_is(kind: type[Ed25519PrivateKey] | type[X25519PrivateKey], tmp_path: Path) -> None:
    path, private = tmp_path / "key", kind.generate()
    make_pair(private, path)
    assert path.stat().st_mode & 0o777 == 0o600
    for load, suffix, of_kind in LOADERS:
        file = tmp_path / f"key{suffix}"
        if of_kind is kind:
            key = load(file)
            public = key.public_key() if isinstance(key, (Ed25519PrivateKey, X25519PrivateKey)) else key
            assert public_pem(public) == public_pem(private.public_key())
        else:
            wanted = "Ed25519" if kind is X25519PrivateKey else "X25519"
            with pytest.raises(AttestationError, match=f"{file}: not an {wanted} key"):
                load(file)


@pytest.mark.parametrize("load", [load for load, _, _ in LOADERS])
def test_what_is_no_key(load: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "file"
    for make in (lambda: None, lambda: file.write_bytes(b""), lambda: file.write_bytes(b"-----BEGIN\xff")):
        make()
        with pytest.raises(AttestationError, match=r"key can be read: ."):
            load(file)


def test_a_key_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_pair(X25519PrivateKey.generate(), path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is a file already"):
        make_pair(X25519PrivateKey.generate(), path)
    assert path.read_bytes() == before
    with pytest.raises(HostError, match="No such file"):
        make_pair(X25519PrivateKey.generate(), tmp_path / "missing" / "key")


@pytest.mark.parametrize(
    "make",
    [
        lambda directory: service_key(directory, "verifier"),
        lambda directory: make_pair(X25519PrivateKey.generate(), directory / "keeper.pem"),
        lambda directory: make_platform(directory, "lab"),
    ],
    ids=["service", "pair", "platform"],
)
@pytest.mark.parametrize("which", [0, 1])
def test_a_full_disk_leaves_no_half_of_a_key(
    make: Callable[[Path], object], which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds one would neither use it nor make another."""
    synced = 0

    def full(fd: int) -> None:
        nonlocal synced
        synced += 1
        if synced > which:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(HostError, match=f"^{tmp_path}/.*: No space left on device"):
            make(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".pub"]
    make(tmp_path)
