"""The platform's word for a disk: what was stored last, or before, and never anything else."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvm.disk.anchor import SLOT_SIZE, Anchor, Anchored, forget
from memvm.errors import DiskError

UUID, OTHER = "0b7d1a1e-53a1-4b9a-9d8c-2f4f3f0f6a55", "7c1d1a1e-53a1-4b9a-9d8c-2f4f3f0f6a55"
KEPT = Anchored(bytes(range(32)), 7, bytes(range(32, 64)), OTHER)
GOLDEN = (
    "4d56414e43484f52000000010000000000000000000000050000000000000007"
    "30623764316131652d353361312d346239612d396438632d326634663366306636613535"
    "37633164316131652d353361312d346239612d396438632d326634663366306636613535"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
)


def opened(directory: Path, uuid: str = UUID) -> Anchor:
    anchor = Anchor.open(directory, uuid, writable=True)
    assert anchor is not None
    return anchor


def read(directory: Path) -> Anchored:
    anchor = opened(directory)
    anchor.close()
    return anchor.load()


def file_of(directory: Path) -> Path:
    return directory / "disks" / f"{UUID}.anchor"


def test_the_format() -> None:
    body = bytes.fromhex(GOLDEN)
    assert KEPT.to_slot(UUID, 5) == body + sha256(body).digest()
    assert Anchored.from_slot(body + sha256(body).digest() + bytes(3000), UUID) == (5, KEPT)


def test_slots_are_written_in_turn(tmp_path: Path) -> None:
    Anchor.create(tmp_path, UUID, KEPT)
    with open(file_of(tmp_path), "rb") as file:  # one file from then on
        anchor = opened(tmp_path)
        for counter in range(8, 12):
            anchor.store(KEPT._replace(counter=counter))
            file.seek(0)
            raw = file.read()
            found = [Anchored.from_slot(raw[at:], UUID) for at in (0, SLOT_SIZE)]
            assert sorted(each[1].counter for each in found if each is not None) == [counter - 1, counter]
        anchor.close()
    assert read(tmp_path).counter == 11
    assert file_of(tmp_path).stat().st_mode & 0o777 == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    st.integers(1, 5), st.binary(min_size=200, max_size=200), st.integers(0, 200), st.integers(0, 200), st.booleans()
)
def test_a_write_that_was_torn_never_happened(
    tmp_path_factory: pytest.TempPathFactory, stores: int, noise: bytes, begin: int, end: int, is_noise: bool
) -> None:
    """Whatever part of it has not reached the disk, or is something else there."""
    directory = tmp_path_factory.mktemp("platform")
    Anchor.create(directory, UUID, KEPT)
    anchor = opened(directory)
    for counter in range(8, 8 + stores):
        anchor.store(KEPT._replace(counter=counter))
    before = file_of(directory).read_bytes()
    last = Anchored(b"k" * 32, 8 + stores, b"r" * 32)
    anchor.store(last)
    after = bytearray(file_of(directory).read_bytes())
    at = (stores + 1) % 2 * SLOT_SIZE
    for place in range(min(begin, end), max(begin, end)):
        after[at + place] = noise[place] if is_noise else before[at + place]
    file_of(directory).write_bytes(after)
    found = read(directory)
    is_whole = after[at : at + 200] == last.to_slot(UUID, stores + 1)
    assert found == (last if is_whole else KEPT._replace(counter=7 + stores))
    again = opened(directory)
    again.store(found._replace(counter=100))  # and it goes on from there
    assert read(directory) == found._replace(counter=100)
    again.close()
    anchor.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.binary(max_size=2 * SLOT_SIZE), st.booleans())
def test_any_file_is_believed_or_refused(tmp_path: Path, noise: bytes, is_mended: bool) -> None:
    raw = (noise[:168] + sha256(noise[:168]).digest() if is_mended else noise).ljust(2 * SLOT_SIZE, b"\0")
    (tmp_path / "disks").mkdir(exist_ok=True)
    file_of(tmp_path).write_bytes(raw)
    with pytest.raises(DiskError, match="makes no sense"):
        Anchor.open(tmp_path, UUID)


def test_that_of_another_disk_or_another_version_is_refused(tmp_path: Path) -> None:
    Anchor.create(tmp_path, OTHER, KEPT)
    (tmp_path / "disks" / f"{OTHER}.anchor").rename(file_of(tmp_path))
    with pytest.raises(DiskError, match="it is of another disk"):
        Anchor.open(tmp_path, UUID)
    body = bytearray.fromhex(GOLDEN)
    body[11] = 2
    file_of(tmp_path).write_bytes((body + sha256(body).digest()).ljust(2 * SLOT_SIZE, b"\0"))
    with pytest.raises(DiskError, match=r"another version of memvm \(2\)"):
        Anchor.open(tmp_path, UUID)
    for huge in (KEPT.to_slot(UUID, (1 << 64) - 1), KEPT._replace(counter=1 << 63).to_slot(UUID, 4)):
        file_of(tmp_path).write_bytes((bytes(SLOT_SIZE) + huge if huge[23] % 2 else huge).ljust(2 * SLOT_SIZE, b"\0"))
        with pytest.raises(DiskError, match="too large to have been counted"):
            Anchor.open(tmp_path, UUID)
    with pytest.raises(DiskError, match="no UUID of a disk"):
        Anchor.open(tmp_path, "../../device")


def test_what_an_earlier_memvm_kept_is_taken_over(tmp_path: Path) -> None:
    old = file_of(tmp_path).with_suffix(".json")
    old.parent.mkdir()
    fields = {"key": KEPT.key.hex(), "counter": 7, "root": KEPT.root.hex()}
    old.write_text(json.dumps(fields))
    assert read(tmp_path) == KEPT._replace(replaces="")
    assert [path.name for path in old.parent.iterdir()] == [f"{UUID}.anchor"]
    old.write_text(json.dumps(fields | {"counter": 1}))  # one that somebody brings back is not looked at
    assert read(tmp_path).counter == 7
    forget(tmp_path, UUID)
    for wrong in ({"counter": -1}, {"counter": "7"}, {"key": "00"}, {"root": None}):
        old.write_text(json.dumps(fields | wrong))
        with pytest.raises(DiskError, match="makes no sense"):
            Anchor.open(tmp_path, UUID)
    old.unlink()
    assert Anchor.open(tmp_path, UUID) is None
