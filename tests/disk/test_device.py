"""The block device: what is read is what was last written, whatever happens in between, or it is an error."""

from __future__ import annotations

import errno
import os
import re
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvm.disk import device
from memvm.disk.anchor import SLOT_SIZE
from memvm.disk.device import Disk, disk_in, open_disk
from memvm.disk.files import DiskFiles, journal_path, open_files, tags_path
from memvm.disk.integrity import TAG_SIZE, protect
from memvm.disk.journal import NO_ROOT, Batch, read_batch
from memvm.disk.volume import DATA_OFFSET, create, open_volume
from memvm.errors import BadSector, DiskError, HostError
from memvm.faultpoints import FaultPoint, arm
from memvm.units import KIB, MIB
from tests.disk.conftest import PASSPHRASE, SIZE

SECTOR = 4096
UUID = "0b7d1a1e-53a1-4b9a-9d8c-2f4f3f0f6a55"
POINTS = (FaultPoint.DISK_JOURNAL_WRITTEN, FaultPoint.DISK_COMMITTED)


class Crash(BaseException):
    """The machine goes down here."""


def crashed(disk: Disk, point: FaultPoint) -> None:
    """The machine goes down at this point of a flush."""
    with arm(point, Crash()), pytest.raises(Crash):
        disk.flush()
    disk.abandon()


def filled(path: Path, platform: Path, byte: int = 1) -> None:
    """Every sector has this byte in front of its number."""
    with open_disk(path, passphrase=PASSPHRASE, platform=platform) as disk:
        disk.write(0, b"".join(sector(n, byte) for n in range(SIZE // SECTOR)))


def sector(number: int, byte: int = 1) -> bytes:
    """What `filled` puts there."""
    return bytes([byte]) + number.to_bytes(8, "big") * (SECTOR // 8 - 1) + bytes(7)


@pytest.mark.parametrize("with_tree", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("wwrrfo"), st.integers(0, 63), st.integers(1, 30)), max_size=25))
def test_it_is_an_array_of_sectors(
    tmp_path_factory: pytest.TempPathFactory, with_tree: bool, steps: list[tuple[str, int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("disk")
    path, platform = directory / "disk.img", directory
    create(path, SIZE, PASSPHRASE, kind="pbkdf2", iterations=1000)
    with open_volume(path) as volume:
        key, uuid = volume.unlock(PASSPHRASE), volume.header.uuid
    if with_tree:
        protect(path, uuid, SIZE // SECTOR, platform)
    disk = open_disk(path, volume_key=key, platform=platform)
    wanted = bytearray(disk.read(0, SIZE))
    assert not with_tree or not any(wanted)
    for number, (step, first, count) in enumerate(steps):
        offset, size = first * SECTOR, min(count * SECTOR, SIZE - first * SECTOR)
        if step == "w":
            data = (number + 1).to_bytes(2, "big") * (size // 2)
            wanted[offset : offset + size] = data
            disk.write(offset, data)
        elif step == "r":
            assert disk.read(offset, size) == wanted[offset : offset + size]
        elif step == "f":
            disk.flush()
        else:
            disk.close()
            disk = open_disk(path, volume_key=key, platform=platform)
    assert disk.read(0, SIZE) == wanted
    disk.close()
    left = {path.name, tags_path(path).name, "disks"} if with_tree else {path.name}
    assert {each.name for each in directory.iterdir()} == left


def test_much_that_is_written_is_flushed_by_itself(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "MOST_PENDING", 8 * SECTOR)
    with open_disk(disk, passphrase=PASSPHRASE) as one:
        for number in range(7):
            one.write(number * SECTOR, sector(number))
        before = disk.read_bytes()[DATA_OFFSET:]
        assert before == bytes(SIZE)
        one.write(7 * SECTOR, sector(7))
        assert disk.read_bytes()[DATA_OFFSET : DATA_OFFSET + SECTOR] != bytes(SECTOR)


def test_reading_on_is_reading_ahead(disk: Path, platform: Path) -> None:
    filled(disk, platform)
    reads: list[int] = []
    with open_disk(disk, passphrase=PASSPHRASE) as one, arm(FaultPoint.DISK_READ, lambda: reads.append(1)):
        for number in range(SIZE // SECTOR):
            assert one.read(number * SECTOR, SECTOR) == sector(number)
        assert len(reads) <= 1 + SIZE // (128 * KIB)
        reads.clear()
        for number in reversed(range(SIZE // SECTOR)):
            assert one.read(number * SECTOR, SECTOR) == sector(number)
        assert len(reads) > SIZE // SECTOR // 2


@pytest.mark.parametrize("with_tree", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_a_flush_happens_wholly_or_not_at_all(disk: Path, platform: Path, point: FaultPoint, with_tree: bool) -> None:
    if with_tree:
        with open_volume(disk) as volume:
            protect(disk, volume.header.uuid, SIZE // SECTOR, platform)
    filled(disk, platform)
    one = open_disk(disk, passphrase=PASSPHRASE, platform=platform)
    one.write(0, b"".join(sector(n, 2) for n in range(SIZE // SECTOR)))
    crashed(one, point)
    assert journal_path(disk).stat().st_size
    # Without a platform to say so, a journal that is whole counts; with one, what the platform has heard of.
    happened = 2 if point is FaultPoint.DISK_COMMITTED or not with_tree else 1
    with open_disk(disk, passphrase=PASSPHRASE, platform=platform) as one:
        for number in range(SIZE // SECTOR):
            assert one.read(number * SECTOR, SECTOR) == sector(number, happened)
    assert not journal_path(disk).exists()


@pytest.mark.parametrize("with_tree", [False, True])
def test_a_flush_that_broke_off_in_the_middle_is_ended_later(
    disk: Path, platform: Path, with_tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_tree:
        with open_volume(disk) as volume:
            protect(disk, volume.header.uuid, SIZE // SECTOR, platform)
    filled(disk, platform)
    one = open_disk(disk, passphrase=PASSPHRASE, platform=platform)
    for number in range(0, SIZE // SECTOR, 2):  # no two of them neighbours: one write for each
        one.write(number * SECTOR, sector(number, 2))
    written: list[int] = []

    def some(fd: int, data: bytes, offset: int) -> None:
        if fd == one._volume.fd:
            written.append(offset)
            if len(written) > 10:
                raise OSError(errno.EIO, "broken")
        while data:
            done = os.pwrite(fd, data, offset)
            data, offset = data[done:], offset + done

    monkeypatch.setattr(device, "write_all", some)
    with pytest.raises(BadSector, match="cannot be written: broken"):
        one.flush()
    with pytest.raises(BadSector, match="journal may have what they lack"):
        one.flush()
    one.abandon()
    monkeypatch.undo()
    with open_disk(disk, passphrase=PASSPHRASE, platform=platform) as one:
        for number in range(SIZE // SECTOR):
            assert one.read(number * SECTOR, SECTOR) == sector(number, 1 if number % 2 else 2)


def test_a_full_disk_is_one_error_and_the_next_flush_does_it(disk: Path, protected: Path, platform: Path) -> None:
    with open_disk(disk, passphrase=PASSPHRASE, platform=platform) as one:
        one.write(0, sector(0))
        with arm(FaultPoint.DISK_JOURNAL_WRITTEN, OSError(errno.ENOSPC, "no space"), at=1):
            with pytest.raises(BadSector, match="journal: no space"):
                one.flush()
            assert one.read(0, SECTOR) == sector(0)
            one.flush()
    with open_disk(disk, passphrase=PASSPHRASE, platform=platform) as one:
        assert one.read(0, SECTOR) == sector(0)


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_half_a_journal_never_happened(disk: Path, platform: Path, length: int) -> None:
    filled(disk, platform)
    one = open_disk(disk, passphrase=PASSPHRASE)
    one.write(0, sector(0, 2) + sector(1, 2))
    crashed(one, FaultPoint.DISK_JOURNAL_WRITTEN)
    os.truncate(journal_path(disk), length)
    with open_disk(disk, passphrase=PASSPHRASE) as one:
        assert one.read(0, SECTOR) == sector(0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 1 << 64), st.booleans())
def test_any_journal_never_happened_or_is_refused(tmp_path: Path, noise: bytes, count: int, is_mended: bool) -> None:
    """Also one whose checksum somebody made right."""
    raw = Batch(UUID, 1, NO_ROOT, {1: bytes(512), 3: bytes(512)}).to_bytes(512)
    changed = raw[:16] + (count % (1 << 64)).to_bytes(8, "big") + raw[24:-32] + noise
    path = tmp_path / "journal"
    path.write_bytes(changed + (sha256(changed).digest() if is_mended else b""))
    try:
        with path.open("rb") as file:
            found = read_batch(file.fileno(), str(path), UUID, 512, 4)
    except DiskError as error:
        assert "\n" not in error.message
    else:
        assert found is None or (count == 2 and not noise)


def test_attack_22_disks_spliced_by_a_journal(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    create(other, SIZE, PASSPHRASE, kind="pbkdf2", iterations=1000)
    one = open_disk(other, passphrase=PASSPHRASE)
    one.write(0, sector(0))
    crashed(one, FaultPoint.DISK_JOURNAL_WRITTEN)
    journal_path(other).rename(journal_path(disk))
    with pytest.raises(DiskError, match="not the journal of this disk"):
        open_disk(disk, passphrase=PASSPHRASE)


def test_a_sector_that_cannot_be_read_is_an_error_for_who_reads_it(disk: Path, platform: Path) -> None:
    filled(disk, platform)
    with open_disk(disk, passphrase=PASSPHRASE) as one:
        with arm(FaultPoint.DISK_READ, OSError(errno.EIO, "broken")), pytest.raises(BadSector, match="broken"):
            one.read(0, SECTOR)
        assert one.read(0, SECTOR) == sector(0)
        os.truncate(disk, DATA_OFFSET + 10 * SECTOR)
        assert one.read(5 * SECTOR, 5 * SECTOR)[:SECTOR] == sector(5)
        with pytest.raises(BadSector, match="ends before sector 10"):
            one.read(10 * SECTOR, SECTOR)


def changed(path: Path, offset: int, data: bytes) -> bytes:
    """What was there, after putting something else there."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(len(data))
        file.seek(offset)
        file.write(data)
    return before


def test_attack_22_sectors_spliced(protected: Path, platform: Path) -> None:
    """A sector from another place of the same disk, with its tag and without; and one that nobody wrote."""
    filled(protected, platform)
    raw, tags = protected.read_bytes(), tags_path(protected).read_bytes()
    changed(protected, DATA_OFFSET + 3 * SECTOR, raw[DATA_OFFSET + 9 * SECTOR :][:SECTOR])
    changed(protected, DATA_OFFSET + 20 * SECTOR, bytes(SECTOR))
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        for number in range(30):
            if number in (3, 20):
                with pytest.raises(BadSector, match=f"sector {number} is not what was last written"):
                    one.read(number * SECTOR, SECTOR)
            else:
                assert one.read(number * SECTOR, SECTOR) == sector(number)
        one.write(3 * SECTOR, sector(3, 2))  # writing it anew makes it good
        assert one.read(3 * SECTOR, SECTOR) == sector(3, 2)
    changed(tags_path(protected), 3 * TAG_SIZE, tags[9 * TAG_SIZE : 10 * TAG_SIZE])
    with pytest.raises(DiskError, match="not the one that the platform saw last"):
        open_disk(protected, passphrase=PASSPHRASE, platform=platform)


def test_attack_22_disks_spliced(protected: Path, platform: Path, tmp_path: Path) -> None:
    """A sector of another disk with the same key: a copy that went a way of its own."""
    filled(protected, platform)
    copy = tmp_path / "copy.img"
    copy.write_bytes(protected.read_bytes())
    with open_disk(copy, passphrase=PASSPHRASE) as other:  # there, nobody looks
        other.write(SECTOR, sector(1, 9))
    changed(protected, DATA_OFFSET + SECTOR, copy.read_bytes()[DATA_OFFSET + SECTOR :][:SECTOR])
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one, pytest.raises(BadSector):
        one.read(SECTOR, SECTOR)
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one, pytest.raises(BadSector):
        one.read(0, 2 * SECTOR)


def test_attack_21_disk_rolled_back(protected: Path, platform: Path) -> None:
    filled(protected, platform, 1)
    old = protected.read_bytes(), tags_path(protected).read_bytes()
    filled(protected, platform, 2)
    protected.write_bytes(old[0])
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one, pytest.raises(BadSector):
        one.read(0, SECTOR)
    tags_path(protected).write_bytes(old[1])
    with pytest.raises(DiskError, match="not the one that the platform saw last"):
        open_disk(protected, passphrase=PASSPHRASE, platform=platform)


@pytest.mark.parametrize("what", ["file", "slot"])
def test_attack_32_platforms_counter_file_rolled_back_without_its_disk(
    protected: Path, platform: Path, what: str
) -> None:
    """Then it has the root of another time than the disk, and that is noticed; half of it is worth nothing."""
    filled(protected, platform, 1)
    [anchor] = (platform / "disks").iterdir()
    old = anchor.read_bytes()
    filled(protected, platform, 2)
    filled(protected, platform, 3)
    if what == "file":
        anchor.write_bytes(old)
        with pytest.raises(DiskError, match=r"not the one that the platform saw last \(flush 1\)"):
            open_disk(protected, passphrase=PASSPHRASE, platform=platform)
    else:  # the slot that was written before the last one
        now = anchor.read_bytes()
        anchor.write_bytes(old[:SLOT_SIZE] + now[SLOT_SIZE:])
        with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
            assert one.read(0, SECTOR) == sector(0, 3)


def test_attack_32_platforms_counter_file_rolled_back_under_an_open_disk(protected: Path, platform: Path) -> None:
    """Whoever has the disk open goes by what he knows, and his next word counts."""
    filled(protected, platform, 1)
    [anchor] = (platform / "disks").iterdir()
    old = anchor.read_bytes()
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        one.write(0, sector(0, 2))
        one.flush()
        with anchor.open("r+b") as file:
            file.write(old)
        one.write(0, sector(0, 3))
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        assert one.facts.counter == 3
        assert one.read(0, SECTOR) == sector(0, 3)


def test_attack_32_platforms_counter_file_rolled_back_with_its_disk_is_not_noticed(
    protected: Path, platform: Path
) -> None:
    """The platform is files here, and whoever can write them can have it know an earlier time (anchor.py says why)."""
    filled(protected, platform, 1)
    [anchor] = (platform / "disks").iterdir()
    files = (anchor, protected, tags_path(protected))
    old = [file.read_bytes() for file in files]
    filled(protected, platform, 2)
    for file, contents in zip(files, old, strict=True):
        file.write_bytes(contents)
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        assert one.facts.counter == 1
        assert one.read(0, SECTOR) == sector(0, 1)


def test_attack_21_disk_rolled_back_by_an_old_journal(protected: Path, platform: Path) -> None:
    one = open_disk(protected, passphrase=PASSPHRASE, platform=platform)
    one.write(0, sector(0, 1))
    crashed(one, FaultPoint.DISK_COMMITTED)
    old = journal_path(protected).read_bytes()
    filled(protected, platform, 2)
    journal_path(protected).write_bytes(old)
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        assert one.read(0, SECTOR) == sector(0, 2)


def test_a_disk_without_its_tags_or_its_platform_is_refused(protected: Path, platform: Path, tmp_path: Path) -> None:
    filled(protected, platform)
    with pytest.raises(DiskError, match="no platform here knows the disk"):
        open_disk(protected, passphrase=PASSPHRASE, platform=tmp_path)
    tags = tags_path(protected).read_bytes()
    tags_path(protected).write_bytes(tags[:-1])
    found = f"{re.escape(str(tags_path(protected)))}: there are 63 tags for the disk's 64 sectors"
    with pytest.raises(DiskError, match=found):
        open_disk(protected, passphrase=PASSPHRASE, platform=platform)
    tags_path(protected).unlink()
    with pytest.raises(DiskError, match="tags cannot be read"):
        open_disk(protected, passphrase=PASSPHRASE, platform=platform)


def test_a_raw_disk_gives_and_takes_ciphertext_and_is_checked_all_the_same(protected: Path, platform: Path) -> None:
    filled(protected, platform)
    with open_volume(protected) as volume:
        cipher = volume.cipher(volume.unlock(PASSPHRASE))
    with open_disk(protected, platform=platform) as raw:
        assert raw.facts.is_raw
        assert cipher.decrypt(5, raw.read(5 * SECTOR, SECTOR)) == sector(5)
        raw.write(6 * SECTOR, cipher.encrypt(6, sector(6, 3)))
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        assert one.read(6 * SECTOR, SECTOR) == sector(6, 3)
    changed(protected, DATA_OFFSET, bytes(SECTOR))
    with open_disk(protected, platform=platform) as raw, pytest.raises(BadSector):
        raw.read(0, SECTOR)


def test_a_platform_that_cannot_keep_a_root_ends_the_writing(protected: Path, platform: Path) -> None:
    """Whether it has kept it, only whoever reads its file again can tell; until then the journal stays."""
    filled(protected, platform, 1)
    for happened in (1, 2):
        one = open_disk(protected, passphrase=PASSPHRASE, platform=platform)
        one.write(0, sector(0, 2))
        with (
            arm(FaultPoint.DISK_ANCHOR_WRITTEN, OSError(errno.EIO, "broken")),
            pytest.raises(HostError, match="cannot keep what it knows of the disk: broken"),
        ):
            one.flush()
        one.write(SECTOR, sector(1, 3))
        with pytest.raises(BadSector, match="its journal may have what they lack"):
            one.flush()
        assert one.read(0, 2 * SECTOR) == sector(0, 2) + sector(1, 3)
        one.abandon()
        if happened == 1:  # it did not reach the disk
            [anchor] = (platform / "disks").iterdir()
            tear_newest_slot(anchor)
        with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
            assert one.read(0, 2 * SECTOR) == sector(0, happened) + sector(1, 1)


def tear_newest_slot(anchor: Path) -> None:
    """Half of what was written there last has not reached the disk."""
    raw = bytearray(anchor.read_bytes())
    newest = max((0, 1), key=lambda slot: int.from_bytes(raw[slot * SLOT_SIZE + 16 : slot * SLOT_SIZE + 24], "big"))
    raw[newest * SLOT_SIZE + 100 : newest * SLOT_SIZE + 180] = bytes(80)
    anchor.write_bytes(raw)


def test_the_machine_goes_down_while_the_platform_writes_its_word(protected: Path, platform: Path) -> None:
    """Then the flush has not happened, and the one before has."""
    filled(protected, platform, 1)
    filled(protected, platform, 2)
    one = open_disk(protected, passphrase=PASSPHRASE, platform=platform)
    one.write(0, sector(0, 3))
    crashed(one, FaultPoint.DISK_ANCHOR_WRITTEN)
    [anchor] = (platform / "disks").iterdir()
    tear_newest_slot(anchor)
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        assert one.facts.counter == 2
        assert one.read(0, SECTOR) == sector(0, 2)
        one.write(0, sector(0, 4))
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform) as one:
        assert one.facts.counter == 3
        assert one.read(0, SECTOR) == sector(0, 4)


def test_descriptors_are_enough(protected: Path, platform: Path) -> None:
    """Once it is open, a disk is used, flushed and closed wherever its files and its directories have gone."""
    filled(protected, platform, 1)
    files = open_files(protected, writable=True)
    journal = journal_path(protected)
    given = DiskFiles("theirs", os.dup(files.sectors), os.dup(files.journal), os.dup(files.tags))
    one = disk_in(given, passphrase=PASSPHRASE, platform=platform)
    elsewhere = [(path, path.with_name(f"moved-{path.name}")) for path in (protected, tags_path(protected), platform)]
    for old, new in elsewhere:
        old.rename(new)
    one.write(0, sector(0, 2))
    one.flush()
    one.write(SECTOR, sector(1, 2))
    one.close()
    assert journal.exists()  # who made it is still there
    for old, new in elsewhere:
        new.rename(old)
    with pytest.raises(DiskError, match="in use"):
        open_files(protected, writable=False)
    files.close()
    assert not journal.exists()
    with open_disk(protected, passphrase=PASSPHRASE, platform=platform, writable=False) as one:
        assert one.read(0, 2 * SECTOR) == sector(0, 2) + sector(1, 2)


def test_what_cannot_be_the_files_of_a_disk_is_refused_and_closed(protected: Path) -> None:
    reading, writing = os.pipe()
    with pytest.raises(DiskError, match="an ordinary file"):
        DiskFiles("theirs", reading)
    with pytest.raises(DiskError, match="has no journal"):
        DiskFiles("theirs", os.open(protected, os.O_RDWR))
    with pytest.raises(DiskError, match="some are open to be written"):
        DiskFiles("theirs", os.open(protected, os.O_RDONLY), tags=os.open(tags_path(protected), os.O_RDWR))
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")  # nobody has the other end
    os.close(writing)


def test_a_tree_of_several_levels(tmp_path: Path, platform: Path) -> None:
    path = tmp_path / "large.img"
    create(path, 16 * MIB, PASSPHRASE, kind="pbkdf2", iterations=1000, sector_size=512)
    with open_volume(path) as volume:
        key, uuid = volume.unlock(PASSPHRASE), volume.header.uuid
    protect(path, uuid, 16 * MIB // 512, platform)
    with open_disk(path, volume_key=key, platform=platform) as one:
        seen = set()
        for offset in (0, 512 * 127, 512 * 128, 512 * 128 * 128, 16 * MIB - 512):
            one.write(offset, offset.to_bytes(8, "big") * 64)
            one.flush()
            assert one._integrity is not None
            seen.add(one._integrity.root)
        assert len(seen) == 5
    with open_disk(path, volume_key=key, platform=platform) as one:  # computes the tree anew
        assert one.facts.counter == 5
        assert one.read(512 * 128 * 128, 512) == (512 * 128 * 128).to_bytes(8, "big") * 64
        assert not any(one.read(512, 512))
