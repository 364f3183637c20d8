"""Every key and nonce with which something of a sealed guest's checkpoints is encrypted, in all of its lives."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memvm.attest.checkpoint_keys import CheckpointKey, unwrapped
from memvm.checkpoint import encryption
from memvm.checkpoint.restore import RestoreOptions, restore
from memvm.checkpoint.save import SaveOptions, save
from memvm.errors import SaveError
from memvm.faultpoints import FaultPoint, arm
from memvm.machine.config import GuestConfig, RunOptions
from memvm.machine.machine import Machine
from memvm.sealed.chains import adopt, open_claimed
from memvm.sealed.making import Sealed
from memvm.units import MIB


class Watched:
    """AES-GCM that notes each key with each nonce."""

    used: list[tuple[bytes, bytes]] = []  # noqa: RUF012 - the fixture begins it anew

    def __init__(self, key: Any) -> None:
        self._key, self._cipher = bytes(key), AESGCM(key)

    def encrypt_into(self, nonce: bytes, *rest: Any) -> int:
        """As AESGCM has it."""
        self.used.append((self._key, nonce))
        return self._cipher.encrypt_into(nonce, *rest)

    def decrypt(self, *arguments: Any) -> bytes:
        """As AESGCM has it."""
        return self._cipher.decrypt(*arguments)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bytes, bytes]]]:
    """All pairs."""
    monkeypatch.setattr(Watched, "used", [])
    monkeypatch.setattr(encryption, "AESGCM", Watched)
    yield Watched.used


def saved(sealed: Sealed, path: Path, *, live: bool) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        options = SaveOptions(live=live)
        save(sealed.machine, path, options, lambda done, total: None, sealed.open_output(fd, lambda: None))
    finally:
        os.close(fd)


def restored(path: Path, keeper: X25519PrivateKey) -> Sealed:
    files = adopt([path], [os.open(path, os.O_RDONLY)])
    key = unwrapped(files[0].header, keeper)
    chain = open_claimed(files, key)
    return Sealed(restore(path, RunOptions("again"), RestoreOptions(lazy=False), lambda done, total: None, chain), key)


def test_attack_27_gcm_nonce_reused_after_a_restore(
    used: list[tuple[bytes, bytes]], guests: Mapping[str, Path], tmp_path: Path
) -> None:
    """Saved twice, once in vain, and again; restored twice from one file, and each time saved twice more."""
    keeper = X25519PrivateKey.generate()
    program = str(guests["counter"])
    first = Machine.launch(GuestConfig(program, (program, "10"), ram_size=64 * MIB), RunOptions("first"))
    begun, files = 0, [tmp_path / f"{number}.ckpt" for number in range(7)]

    def save_twice(sealed: Sealed, *paths: Path) -> None:
        for live, path in zip((True, False), paths, strict=True):
            saved(sealed, path, live=live)

    sealed = Sealed(first, CheckpointKey.new(keeper.public_key().public_bytes_raw()))
    try:
        first.start()
        save_twice(sealed, *files[:2])
        begun = len(used)
        full = OSError(errno.ENOSPC, "full")
        with arm(FaultPoint.SAVE_BEFORE_INDEX, full), pytest.raises(SaveError):
            saved(sealed, files[2], live=False)
        assert len(used) > begun  # records of the file that never was
        saved(sealed, files[2], live=False)
    finally:
        first.close()
    for paths in (files[3:5], files[5:7]):
        again = restored(files[2], keeper)
        try:
            save_twice(again, *paths)
        finally:
            again.machine.close()
    assert len({key for key, _ in used}) == len(files) + 1
    assert len(used) >= 2 * len(files)
    assert len(set(used)) == len(used)
    assert all(len(nonce) == 12 for _, nonce in used)
