"""LUKS2 files as such: what is refused, and what a crash leaves."""

from __future__ import annotations

import base64
import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.disk.antiforensic import merge, split
from memvm.disk.files import open_files
from memvm.disk.header import Header
from memvm.disk.kdf import new_kdf
from memvm.disk.keyslots import new_keyslot, wrap
from memvm.disk.metadata_reader import read_metadata
from memvm.disk.sectors import SectorCipher
from memvm.disk.volume import create, open_volume
from memvm.errors import DiskError, UsageError
from memvm.faultpoints import FaultPoint, arm
from tests.disk.conftest import PASSPHRASE, SIZE
from tools import fuzz_disk


class Crash(BaseException):
    """The machine goes down here."""


def test_what_is_in_a_new_disk(disk: Path) -> None:
    with open_volume(disk) as volume:
        assert (volume.size, volume.sector_size, volume.header.label) == (SIZE, 4096, "a disk")
        assert len(volume.unlock(PASSPHRASE)) == 64
    assert disk.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in disk.parent.iterdir()] == [disk.name]


def test_two_disks_have_nothing_in_common(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    create(other, SIZE, PASSPHRASE, kind="pbkdf2", iterations=1000)
    with open_volume(disk) as first, open_volume(other) as second:
        assert first.unlock(PASSPHRASE) != second.unlock(PASSPHRASE)
        with pytest.raises(DiskError, match="not the disk's key"):
            second.cipher(first.unlock(PASSPHRASE))


def test_nobodys_file_is_overwritten(disk: Path) -> None:
    before = disk.read_bytes()
    with pytest.raises(DiskError, match="is there already"):
        create(disk, SIZE, b"x", kind="pbkdf2", iterations=1000)
    assert disk.read_bytes() == before
    assert [path.name for path in disk.parent.iterdir()] == [disk.name]


@pytest.mark.parametrize(("size", "sector_size"), [(0, 4096), (4096 + 512, 4096), (4096, 1000), (-512, 512)])
def test_sizes_that_are_none(tmp_path: Path, size: int, sector_size: int) -> None:
    with pytest.raises(UsageError, match="whole sectors"):
        create(tmp_path / "disk.img", size, b"x", sector_size=sector_size)


def test_one_writer_at_a_time(disk: Path) -> None:
    with open_volume(disk, writable=True):
        open_volume(disk).close()  # to look at it
        for writable in (False, True):
            with pytest.raises(DiskError, match="in use"):
                open_files(disk, writable=writable)
    with (
        open_files(disk, writable=False),
        open_files(disk, writable=False),
        pytest.raises(DiskError, match="in use"),
    ):
        open_volume(disk, writable=True)
    assert [path.name for path in disk.parent.iterdir()] == [disk.name]


@pytest.mark.parametrize(
    "contents", [b"", b"LUKS\xba\xbe", b"\x7fELF" + bytes(70000), b"LUKS\xba\xbe\0\x01" + bytes(70000)]
)
def test_what_is_no_disk(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(contents)
    with pytest.raises(DiskError, match="no LUKS2 disk"):
        open_volume(path)
    for other in (tmp_path, tmp_path / "missing", Path("/dev/null")):
        with pytest.raises(DiskError):
            open_volume(other)


@pytest.mark.parametrize(
    ("point", "at"),
    [(FaultPoint.DISK_KEYSLOT_WRITTEN, 1), (FaultPoint.DISK_HEADER_COPY, 1), (FaultPoint.DISK_HEADER_COPY, 2)],
)
def test_a_passphrase_opens_the_disk_after_a_crash_while_it_is_replaced(disk: Path, point: FaultPoint, at: int) -> None:
    with open_volume(disk, writable=True) as volume:
        key = volume.unlock(PASSPHRASE)
        with arm(point, Crash(), at=at), pytest.raises(Crash):
            volume.replace_passphrase(PASSPHRASE, b"new", "pbkdf2", iterations=1000)
    is_new = point is FaultPoint.DISK_HEADER_COPY
    with open_volume(disk, writable=True) as volume:
        assert volume.unlock(b"new" if is_new else PASSPHRASE) == key
        with pytest.raises(DiskError):
            volume.unlock(PASSPHRASE if is_new else b"new")
        volume.replace_passphrase(b"new" if is_new else PASSPHRASE, b"newer", "pbkdf2", iterations=1000)
        assert volume.unlock(b"newer") == key


def test_a_passphrase_that_was_replaced_is_gone_from_the_file(disk: Path) -> None:
    with open_volume(disk, writable=True) as volume:
        slot = volume.metadata.keyslots["0"]
        before = os.pread(volume.fd, slot.size, slot.offset)
        for number in range(6):
            old = PASSPHRASE if not number else str(number).encode()
            volume.replace_passphrase(old, str(number + 1).encode(), "pbkdf2", iterations=1000)
        after = disk.read_bytes()
    assert all(after.find(before[at : at + 512]) < 0 for at in range(0, len(before), 512))


@given(st.binary(min_size=1, max_size=80), st.integers(2, 40), st.sampled_from(["sha256", "sha1", "sha512"]))
def test_split_keys_merge(key: bytes, stripes: int, name: str) -> None:
    material = split(key, stripes, name)
    assert len(material) == stripes * len(key)
    assert merge(material, stripes, name) == key
    if len(key) > 15:  # short keys can be hit by chance
        changed = bytearray(material)
        changed[random.Random(stripes).randrange(len(material))] ^= 1
        assert merge(bytes(changed), stripes, name) != key


def test_sectors_as_the_standard_has_them() -> None:
    """IEEE 1619-2007, annex B, vector 10: AES-256-XTS, data unit 0xff."""
    key = bytes.fromhex(
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592"
    )
    plain = bytes(range(256)) * 2
    cipher = SectorCipher(key, 512)
    encrypted = cipher.encrypt(0xFF, plain)
    assert encrypted[:16].hex() == "1c3b3a102f770386e4836c99e370cf9b"
    assert cipher.decrypt(0xFF, encrypted) == plain
    large = SectorCipher(key, 4096)
    assert large.encrypt(1, bytes(4096))[:512] == cipher.encrypt(8, bytes(512))  # tweaks count units of 512 bytes
    with pytest.raises(DiskError, match="halves"):
        SectorCipher(bytes(64), 512)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_metadata_is_refused_in_words(raw: bytes) -> None:
    with pytest.raises(DiskError, match="here: the disk's metadata"):
        read_metadata(raw, 16384, "here")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time": 1000, "memory": 1 << 22}, "more than anybody needs"),
        ({"time": 0}, "time is no number"),
        ({"memory": 1 << 23}, "memory is no number"),
        ({"cpus": 64}, "cpus is no number"),
        ({"salt": "AAAA"}, "less than it can do with"),
        ({"salt": "?"}, "base64|character"),
    ],
)
def test_a_key_derivation_that_would_take_for_ever_is_refused(
    disk: Path, change: dict[str, object], reason: str
) -> None:
    with open_volume(disk) as volume:
        fields = json.loads(volume.header.json)
    good = {"type": "argon2id", "time": 4, "memory": 1 << 18, "cpus": 2, "salt": "A" * 44}
    for kdf in (good, good | change):
        fields["keyslots"]["0"]["kdf"] = kdf
        raw = json.dumps(fields).encode()
        if kdf is good:
            assert read_metadata(raw, 16384, "here").keyslots["0"].kdf.memory == 1 << 18
        else:
            with pytest.raises(DiskError, match=reason):
                read_metadata(raw, 16384, "here")


def rewritten(disk: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The header with other metadata, in both copies, and with the right checksums: as anybody can make it."""
    with open_volume(disk) as volume:
        header = volume.header
    fields = json.loads(header.json)
    change(fields)
    copies = header._replace(json=json.dumps(fields).encode(), sequence=header.sequence + 1).copies()
    with disk.open("r+b") as file:
        file.write(b"".join(copies))


def test_what_only_repeats_a_header_is_taken(disk: Path) -> None:
    """So that the next tests fail for what they are about."""
    rewritten(disk, lambda fields: None)
    with open_volume(disk) as volume:
        volume.cipher(volume.unlock(PASSPHRASE))


def test_attack_19_null_cipher_in_the_header(disk: Path) -> None:
    rewritten(disk, lambda fields: fields["segments"]["0"].update(encryption="cipher_null-ecb"))
    with pytest.raises(DiskError, match="cipher is 'cipher_null-ecb', and has to be aes-xts-plain64"):
        open_volume(disk)


@pytest.mark.parametrize("cipher", ["aes-ecb", "aes-cbc-plain64", "aes-xts-plain", "serpent-xts-plain64", ""])
def test_attack_19_changed_cipher_in_the_header(disk: Path, cipher: str) -> None:
    """Of the data, and of a keyslot."""
    with open_volume(disk) as volume:
        good = json.loads(volume.header.json)
    rewritten(disk, lambda fields: fields["segments"]["0"].update(encryption=cipher))
    with pytest.raises(DiskError, match="has to be aes-xts-plain64"):
        open_volume(disk)
    good["keyslots"]["0"]["area"]["encryption"] = cipher
    raw = json.dumps(good).encode()
    with pytest.raises(DiskError, match="has to be with aes-xts-plain64"):
        read_metadata(raw, 16384, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"sector_size": 512},
        {"iv_tweak": "8"},
        {"integrity": {"type": "hmac(sha256)"}},
        {"type": "linear"},
        {"flags": ["x"]},
    ],
    ids=str,
)
def test_attack_19_changed_cipher_in_the_header_by_what_belongs_to_it(disk: Path, change: dict[str, Any]) -> None:
    """It is refused, or it is another header than the one that was to be opened."""
    with open_volume(disk) as volume:
        pinned = volume.header_digest()
    rewritten(disk, lambda fields: fields["segments"]["0"].update(change))
    with pytest.raises(DiskError, match=r"not plainly encrypted|header is another one"):
        open_volume(disk, pinned=pinned)


def test_attack_20_foreign_keyslot_added(disk: Path) -> None:
    """One that opens the disk with the attacker's passphrase; who keeps the header's digest does not open it then."""
    with open_volume(disk) as volume:
        pinned, key, slot = volume.header_digest(), volume.unlock(PASSPHRASE), volume.metadata.keyslots["0"]
    mine = new_keyslot(slot.offset + slot.size, new_kdf("pbkdf2", iterations=1000))
    with disk.open("r+b") as file:
        file.seek(mine.offset)
        file.write(wrap(mine, b"mine", key))

    def add(fields: dict[str, Any]) -> None:
        fields["keyslots"]["1"] = copy.deepcopy(fields["keyslots"]["0"])
        fields["keyslots"]["1"]["area"]["offset"] = str(mine.offset)
        fields["keyslots"]["1"]["kdf"]["salt"] = base64.b64encode(mine.kdf.salt).decode()
        fields["digests"]["0"]["keyslots"] = ["0", "1"]

    rewritten(disk, add)
    with open_volume(disk) as volume:
        assert volume.unlock(b"mine") == key  # that is what makes it an attack
    with pytest.raises(DiskError, match="header is another one than it has to be"):
        open_volume(disk, pinned=pinned)


def test_what_does_not_fit_into_a_header_is_not_written() -> None:
    with pytest.raises(DiskError, match="do not fit"):
        Header(16384, 1, "", "", "", bytes(16384)).copies()


def test_a_few_files_of_the_fuzzer() -> None:
    assert fuzz_disk.main(["--files", "1500", "--seed", "5"]) == 0
