"""Disks of memvm's in the hands of cryptsetup, and its disks in memvm's: no device mapper is needed for any of this."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from memvm.disk.device import open_disk
from memvm.disk.header import BINARY_SIZE
from memvm.disk.volume import create, open_volume
from memvm.errors import DiskError
from memvm.units import KIB, MIB
from tests.disk.conftest import PASSPHRASE, SIZE, Cryptsetup

QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


@pytest.mark.parametrize(("kind", "sector_size"), [("pbkdf2", 512), ("argon2id", 4096)])
def test_cryptsetup_opens_ours(tmp_path: Path, cryptsetup: Cryptsetup, kind: str, sector_size: int) -> None:
    path = tmp_path / "disk.img"
    create(path, SIZE, PASSPHRASE, kind=kind, iterations=1000 if kind == "pbkdf2" else 4, sector_size=sector_size)
    dump = cryptsetup("luksDump", path)
    assert "aes-xts-plain64" in dump
    assert f"sector: {sector_size} [bytes]" in dump
    cryptsetup("open", "--test-passphrase", path)
    cryptsetup("open", "--test-passphrase", path, passphrase=b"wrong", code=2)


@pytest.mark.parametrize("kind", ["pbkdf2", "argon2id", "argon2i"])
def test_we_open_what_cryptsetup_made(tmp_path: Path, cryptsetup: Cryptsetup, kind: str) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 17 * MIB)
    cost = QUICK if kind == "pbkdf2" else ("--pbkdf", kind, "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024")
    cryptsetup("luksFormat", "--type", "luks2", *cost, "--label", "theirs", path)
    with open_volume(path) as volume:
        assert volume.header.label == "theirs"
        volume.cipher(volume.unlock(PASSPHRASE))
        with pytest.raises(DiskError, match="opens no keyslot"):
            volume.unlock(b"wrong")


@pytest.mark.skipif(
    os.geteuid() != 0 and not os.access("/run/cryptsetup", os.W_OK),
    reason="cryptsetup has its locks in /run/cryptsetup, which only root may write",
)
def test_what_we_wrote_cryptsetup_reads_and_encrypts_anew(disk: Path, cryptsetup: Cryptsetup) -> None:
    contents = os.urandom(SIZE)
    with open_disk(disk, passphrase=PASSPHRASE) as ours:
        ours.write(0, contents)
    with open_volume(disk) as volume:
        key_before, raw_before = volume.unlock(PASSPHRASE), disk.read_bytes()[volume.data_offset :]
    cryptsetup("reencrypt", "--force-offline-reencrypt", *QUICK, disk)
    with open_disk(disk, passphrase=PASSPHRASE) as again, open_volume(disk) as volume:
        assert again.read(0, SIZE) == contents
        assert volume.unlock(PASSPHRASE) != key_before
        assert disk.read_bytes()[volume.data_offset :] != raw_before


def test_keyslots_that_either_adds_the_other_knows(disk: Path, tmp_path: Path, cryptsetup: Cryptsetup) -> None:
    new = tmp_path / "new.key"
    new.write_bytes(b"second")
    cryptsetup("luksAddKey", *QUICK, disk, new)
    with open_volume(disk, writable=True) as volume:
        assert volume.unlock(b"second") == volume.unlock(PASSPHRASE)
        volume.replace_passphrase(b"second", b"third", "pbkdf2", iterations=1000)
    for passphrase, code in ((PASSPHRASE, 0), (b"second", 2), (b"third", 0)):
        cryptsetup("open", "--test-passphrase", disk, passphrase=passphrase, code=code)


@pytest.mark.parametrize("offset", [0, 16 * KIB])
def test_cryptsetup_repairs_a_copy_and_we_do_without_it(disk: Path, cryptsetup: Cryptsetup, offset: int) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(BINARY_SIZE))
    with open_volume(disk) as volume:
        volume.unlock(PASSPHRASE)
    cryptsetup("open", "--test-passphrase", disk)


def test_attack_19_null_cipher_in_the_header_that_cryptsetup_takes(disk: Path, cryptsetup: Cryptsetup) -> None:
    """cryptsetup takes a header whose cipher was changed to none, with the checksum made right; we do not."""
    size = 16 * KIB
    raw = bytearray(disk.read_bytes()[: 2 * size])
    for begin in (0, size):
        text = bytes(raw[begin + BINARY_SIZE : begin + size]).rstrip(b"\0")
        fields = json.loads(text)
        fields["segments"]["0"]["encryption"] = "cipher_null-ecb"
        changed = json.dumps(fields, separators=(",", ":")).encode().ljust(size - BINARY_SIZE, b"\0")
        raw[begin + BINARY_SIZE : begin + size] = changed
        raw[begin + 448 : begin + 512] = bytes(64)
        raw[begin + 448 : begin + 480] = hashlib.sha256(raw[begin : begin + size]).digest()
    with disk.open("r+b") as file:
        file.write(raw)
    cryptsetup("open", "--test-passphrase", disk)  # that is what makes it an attack
    with pytest.raises(DiskError, match="cipher is 'cipher_null-ecb', and has to be aes-xts-plain64"):
        open_volume(disk)


def test_attack_20_foreign_keyslot_added_by_cryptsetup(disk: Path, tmp_path: Path, cryptsetup: Cryptsetup) -> None:
    with open_volume(disk) as volume:
        pinned = volume.header_digest()
    open_volume(disk, pinned=pinned).close()
    new = tmp_path / "new.key"
    new.write_bytes(b"mine")
    cryptsetup("luksAddKey", *QUICK, disk, new)
    with pytest.raises(DiskError, match="header is another one than it has to be"):
        open_volume(disk, pinned=pinned)


def test_a_disk_that_cryptsetup_has_not_finished_is_refused(disk: Path, cryptsetup: Cryptsetup) -> None:
    cryptsetup("reencrypt", "--force-offline-reencrypt", "--init-only", *QUICK, disk)
    with pytest.raises(DiskError, match=r"re-encryption|one segment"):
        open_volume(disk)
