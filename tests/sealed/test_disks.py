"""Sealed guests that write their disks: the manager has the files, the platform what it takes to use them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from memvm.disk.device import open_disk
from memvm.disk.files import journal_path, tags_path
from memvm.disk.integrity import protect
from memvm.disk.volume import DATA_OFFSET, create, open_volume
from memvm.errors import ControlError, DiskError
from memvm.sealed.platform import MOST_DISKS, Platform
from memvm.sealed.protocol import Kind, Message
from memvm.units import KIB
from tests.machine.conftest import CProgram, c_program  # noqa: F401
from tests.sealed.test_attacks_on_memory import opened_by
from tests.support import MemvmCli

SIZE, SECTOR = 64 * KIB, 4096
OLD = b"o" * SIZE
WRITTEN = OLD[:SECTOR] + b"x" * (3 * SECTOR) + OLD[: SIZE - 5 * SECTOR] + b"x" * SECTOR
"""What disk.c makes of OLD if it is told to use the disk."""


class Lab(NamedTuple):
    """A directory with a platform, a key, and a disk that has OLD on it."""

    directory: Path
    cli: MemvmCli
    program: Path

    @property
    def disk(self) -> Path:
        return self.directory / "data.img"

    @property
    def platform(self) -> Path:
        return self.directory / "platform"

    def environment(self, faults: str = "") -> dict[str, str]:
        return {"MEMVM_PLATFORM_DIR": str(self.platform), "MEMVM_FAULTS": faults}

    def command(self, *what: str) -> tuple[str | Path, ...]:
        """How a guest is started that has the disk, in the clear."""
        given = ("--disk", self.disk, "--disk-key-file", self.directory / "secret.key")
        return ("run", "--sealed", "--name", "sealed", *given, "--", self.program, *what)

    def contents(self) -> bytes:
        with open_disk(self.disk, passphrase=b"secret", platform=self.platform) as disk:
            return disk.read(0, SIZE)

    def beside(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}


@pytest.fixture(params=[False, True], ids=["plain", "integrity"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, c_program: CProgram, memvm_cli: MemvmCli) -> Lab:  # noqa: F811
    made = Lab(tmp_path, memvm_cli, c_program("disk"))
    (tmp_path / "secret.key").write_bytes(b"secret")
    (tmp_path / "secret.key").chmod(0o600)
    tmp_path.chmod(0o700)
    memvm_cli("platform", "init", env=made.environment(), code=0)
    create(made.disk, SIZE, b"secret", kind="pbkdf2", iterations=1000)
    if request.param:
        with open_volume(made.disk) as volume:
            protect(made.disk, volume.header.uuid, SIZE // SECTOR, made.platform)
    with open_disk(made.disk, passphrase=b"secret", platform=made.platform) as disk:
        disk.write(0, OLD)
    return made


def test_what_it_writes_is_on_the_disk(lab: Lab) -> None:
    """Started by root too, where the platform is a user who may open nothing of this."""
    before = lab.beside()
    lab.cli(*lab.command("use"), env=lab.environment(), code=0)
    assert lab.contents() == WRITTEN
    assert lab.beside() == before


@pytest.mark.parametrize("point", ["disk.journal_written", "disk.anchor_written", "disk.committed"])
def test_its_platform_is_killed_within_a_flush(lab: Lab, point: str) -> None:
    """What the journal has counts: with a tree, from the moment on in which the platform has the new root."""
    before = lab.beside()
    is_protected = tags_path(lab.disk).exists()
    ended = lab.cli(*lab.command("use"), env=lab.environment(f"{point}=kill"))
    if point == "disk.anchor_written" and not is_protected:
        assert ended.code == 0
    else:
        assert ended.code == 69
        assert "the sealed guest was lost: its platform ended by signal 9" in ended.err
        assert journal_path(lab.disk).stat().st_size
    counts = point != "disk.journal_written" or not is_protected
    assert lab.contents() == (WRITTEN if counts else OLD)
    lab.cli(*lab.command("use"), env=lab.environment(), code=0)
    assert lab.contents() == WRITTEN
    assert lab.beside() == before


def test_its_manager_is_killed(lab: Lab) -> None:
    """Then the platform writes what is to be written, ends the guest, and lets go of the disk."""
    before = lab.beside()
    with lab.cli.start(*lab.command("wait"), env=lab.environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b": 4096\n")  # it has written, and not flushed
        [platform] = psutil.Process(process.pid).children()
        user, path = platform.uids().real, str(lab.disk)
        assert (user == os.geteuid()) is (os.geteuid() != 0)
        assert path in opened_by(process.pid)
        if os.geteuid() == 0:
            assert path in opened_by(platform.pid)
        with pytest.raises(DiskError, match="in use"):
            lab.contents()
        process.send_signal(signal.SIGKILL)
        process.wait(60 * lab.cli.time_scale)
        psutil.wait_procs([platform], 60 * lab.cli.time_scale)
    lab.cli("ps", code=0)  # which takes away what the manager left in the run-time directory
    assert lab.contents() == b"w" * SECTOR + OLD[SECTOR:]
    assert lab.beside() == before


def test_a_disk_that_cannot_be_used_is_one_error(lab: Lab) -> None:
    (lab.directory / "secret.key").write_bytes(b"wrong")
    refused = lab.cli(*lab.command("use"), env=lab.environment(), code=65)
    assert "opens no keyslot" in refused.err
    with open_disk(lab.disk, passphrase=b"secret", platform=lab.platform):
        refused = lab.cli(*lab.command("use"), env=lab.environment(), code=65)
    assert "the disk is in use" in refused.err
    assert not journal_path(lab.disk).exists()


def test_a_sector_that_was_changed_is_eio_and_a_line(lab: Lab) -> None:
    if not tags_path(lab.disk).exists():
        pytest.skip("nobody notices without a tree")
    with lab.disk.open("r+b") as file:
        file.seek(DATA_OFFSET + 3 * SECTOR)
        file.write(bytes(SECTOR))
    ended = lab.cli(*lab.command("read", "3"), env=lab.environment(), code=0)
    assert "EIO" in ended.text
    assert "sector 3 is not what was last written there" in ended.err


def given(*descriptors: int, journal: bool = False, tags: bool = False) -> tuple[Message, tuple[int, ...]]:
    """A manager's message."""
    return Message(Kind.DISK, 1, {"name": "x", "journal": journal, "tags": tags}, len(descriptors)), descriptors


def test_a_platform_takes_nothing_else_for_a_disk(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        platform = Platform(theirs, lambda name, parents, descriptors, disks, ask: pytest.fail("it was loaded"))
        path = tmp_path / "file"
        path.touch()

        def opened(flags: int = os.O_RDONLY) -> int:
            return os.open(path, flags)

        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        wrong: list[tuple[str, Callable[[], tuple[Message, tuple[int, ...]]]]] = [
            ("an ordinary file", lambda: given(os.memfd_create("x"), os.open("/dev/null", os.O_RDWR), journal=True)),
            ("has no journal", lambda: given(opened(os.O_RDWR))),
            ("some are not", lambda: given(opened(os.O_RDWR), opened(), journal=True)),
            ("some are not", lambda: given(opened(os.O_WRONLY))),
        ]
        for said, make in wrong:
            with pytest.raises(DiskError, match=said):
                platform._answer(*make())
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        for _ in range(MOST_DISKS):
            platform._answer(*given(opened()))
        with pytest.raises(ControlError, match="at most"):
            platform._answer(*given(opened()))
        for files in platform._disks:
            files.close()
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(("journal", "tags"), [(False, False), (True, False), (False, True), (True, True)])
def test_as_many_descriptors_as_are_named(journal: bool, tags: bool) -> None:
    body = Message(Kind.DISK, 1, {"name": "x", "journal": journal, "tags": tags}, 1 + journal + tags).pack()
    for count in range(5):
        data = body[:5] + bytes([count]) + body[6:]
        if count == 1 + journal + tags:
            assert Message.unpack(data, count).fields["tags"] is tags
        else:
            with pytest.raises(ControlError, match="descriptors came with it"):
                Message.unpack(data, count)
