"""Saves of a sealed guest that fail, on either side of the socket: the old file stays, and the guest goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import memvm
from memvm.attest.checkpoint_keys import CheckpointKey
from memvm.checkpoint.save import SaveOptions, save
from memvm.errors import MemvmError, SaveError, SettingRefused
from memvm.machine.config import GuestConfig, RunOptions
from memvm.machine.machine import Machine
from memvm.machine.settings import Name
from memvm.sealed.making import Sealed
from memvm.units import MIB
from tests.sealed.lab import SealedLab, ask, guest_of, ready


@contextmanager
def launched(lab: SealedLab, *options: str, faults: str = "") -> Iterator[memvm.Guest]:
    environment = {**lab.environment, "MEMVM_FAULTS": faults}
    with guest_of(environment, "run", *lab.words, *options, "--", *lab.command) as guest:
        yield ready(guest)


@pytest.mark.parametrize(
    ("how", "point"),
    [("live", "save.before_rename"), ("stopped", "save.block_write"), ("suspend", "save.before_sync")],
)
def test_a_full_disk(lab: SealedLab, tmp_path: Path, how: str, point: str) -> None:
    file = tmp_path / "guest.ckpt"
    file.write_text("an old file")
    with launched(lab, faults=f"{point}=enospc@1") as guest:
        ask(guest)
        with pytest.raises(SaveError, match="the disk is full"):
            if how == "suspend":
                guest.suspend(file)
            else:
                guest.checkpoint(file, live=how == "live")
        assert file.read_text() == "an old file"
        assert list(tmp_path.iterdir()) == [file]
        before = ask(guest)
        guest.suspend(file)
    with lab.restored(file) as guest:
        assert int(ask(guest).split()[0]) == int(before.split()[0]) + 1


def test_a_platform_that_dies_while_it_saves(lab: SealedLab, tmp_path: Path) -> None:
    with launched(lab, faults="save.before_index=kill") as guest:
        with pytest.raises(MemvmError):
            guest.checkpoint(tmp_path / "guest.ckpt")
        assert "platform ended by signal 9" in guest.wait(60 * lab.cli.time_scale).reason
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("live", "fault", "why"),
    [
        (True, "save.before_index=enospc@2", "the disk is full"),
        (False, "save.block_write=enospc@2", "the disk is full"),
        (True, "save.before_rename=enospc@2", "the disk is full"),
        (False, "load.read=eio@1", r"first\.ckpt: cannot read it"),  # of the parent, which nobody has read before
        (True, "load.read=eio@9", r"first\.ckpt"),
    ],
)
def test_a_save_on_top_that_fails(lab: SealedLab, tmp_path: Path, live: bool, fault: str, why: str) -> None:
    first, file = tmp_path / "first.ckpt", tmp_path / "guest.ckpt"
    file.write_text("an old file")
    with launched(lab, faults=fault) as guest:
        ask(guest)
        guest.checkpoint(first, live=False)  # with one storage block, however much of it is in use
        ask(guest)
        with pytest.raises(MemvmError, match=why):
            guest.checkpoint(file, live=live, parent=first)
        assert file.read_text() == "an old file"
        assert sorted(tmp_path.iterdir()) == [first, file]
        before = ask(guest)
        guest.checkpoint(file, live=live, parent=first)
    with lab.restored(file) as guest:
        assert int(ask(guest).split()[0]) == int(before.split()[0]) + 1


@pytest.mark.parametrize("point", ["save.before_index=kill@2", "load.read=kill@3"])
def test_a_platform_that_dies_while_it_saves_on_top(lab: SealedLab, tmp_path: Path, point: str) -> None:
    first, file = tmp_path / "first.ckpt", tmp_path / "guest.ckpt"
    with launched(lab, faults=point) as guest:
        guest.checkpoint(first)
        with pytest.raises(MemvmError):
            guest.checkpoint(file, parent=first)
        assert "platform ended by signal 9" in guest.wait(60 * lab.cli.time_scale).reason
    assert list(tmp_path.iterdir()) == [first]
    with lab.restored(first) as guest:
        assert ask(guest).startswith("1 ")


def test_a_save_that_is_given_up(lab: SealedLab, tmp_path: Path) -> None:
    class GivenUp(Exception):
        pass

    def give_up(done: int, total: int) -> None:
        raise GivenUp

    with launched(lab, faults="save.before_index=stall=0.3") as guest:
        with pytest.raises(GivenUp):
            guest.checkpoint(tmp_path / "guest.ckpt", progress=give_up)
        assert ask(guest)


def test_a_setting_that_is_changed_while_the_guest_is_saved(guests: Mapping[str, Path]) -> None:
    """The header was written with what counted before, and the state has what counts now: there is no such file."""
    program = str(guests["counter"])
    keeper = X25519PrivateKey.generate().public_key().public_bytes_raw()
    machine = Machine.launch(GuestConfig(program, (program, "10"), ram_size=64 * MIB), RunOptions("changed"))
    fd = os.memfd_create("checkpoint")
    published: list[bool] = []
    limits = iter(["1000s", "2000s"])

    def change(done: int, total: int) -> None:
        if limit := next(limits, None):
            machine.settings.change(Name.TIME_LIMIT, limit)

    try:
        machine.start()
        begin = Sealed(machine, CheckpointKey.new(keeper)).open_output(fd, lambda: published.append(True))
        with pytest.raises(SaveError, match="was changed while it was saved"):
            save(machine, Path("/checkpoint"), SaveOptions(), change, begin)
        assert not published
        os.ftruncate(fd, 0)
        save(machine, Path("/checkpoint"), SaveOptions(), lambda done, total: None, begin)
        assert published
    finally:
        machine.close()
        os.close(fd)


def test_the_checkpoint_setting_is_asked_for_by_the_platform_too(lab: SealedLab, tmp_path: Path) -> None:
    with launched(lab, "--setting=checkpoint=encrypted:record") as guest:
        guest.checkpoint(tmp_path / "guest.ckpt")
        guest.change_setting("checkpoint", "no")
        with pytest.raises(SettingRefused):
            guest.checkpoint(tmp_path / "guest.ckpt")
