"""Clones of a guest with files: each has its own of what is in memory, and opens what is the host's for itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import memvm
from memvm.errors import CheckpointError
from tests.checkpoint.lives import SCALE
from tests.machine.conftest import CProgram


def saved_with(program: Path, folder: Path, file: Path, access: str) -> None:
    options = {access: [folder], "cwd": folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with memvm.Guest([program], ram="64M", **options) as guest:  # type: ignore[arg-type]
        assert guest.stdout is not None
        assert guest.stdout.readline() == b"ready\n"
        guest.checkpoint(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "file").write_bytes(b"as the host has it")
    return made


@pytest.mark.parametrize("engine", ["userfaultfd", "mprotect"])
def test_each_clone_has_its_own_layer(engine: str, c_program: CProgram, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cloned.ckpt"
    saved_with(c_program("cloned"), folder, file, "rw")
    with memvm.restore_clones(file, 3, engine=engine, stdout=subprocess.PIPE) as clones:
        told = [guest.stdout.read() for guest in clones if guest.stdout is not None]
        assert [ending.code for ending in clones.wait(60 * SCALE)] == [0, 0, 0]
    assert told == [b"before befclone %d\n" % number for number in (1, 2, 3)]
    assert (folder / "file").read_bytes() == b"as the host has it"


def test_clones_write_through_only_where_they_are_told_to(c_program: CProgram, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cloned.ckpt"
    saved_with(c_program("cloned"), folder, file, "pass_through")
    assert (folder / "file").read_bytes() == b"before" + b"as the host has it"[6:]
    with pytest.raises(CheckpointError, match="changes files of this machine"):
        memvm.restore_clones(file, 2, stdout=subprocess.PIPE)
    with memvm.restore_clones(file, 2, rw=[folder], stdout=subprocess.PIPE) as clones:
        told = [guest.stdout.read() for guest in clones if guest.stdout is not None]
    assert told == [b"before befclone 1\n", b"before befclone 2\n"]
    with memvm.restore_clones(file, 1, pass_through=[folder], stdout=subprocess.PIPE) as clones:
        assert [ending.code for ending in clones.wait(60 * SCALE)] == [0]
    assert (folder / "file").read_bytes().startswith(b"befclone 1")


def test_clones_of_a_guest_whose_file_was_changed(c_program: CProgram, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cloned.ckpt"
    saved_with(c_program("cloned"), folder, file, "pass_through")
    (folder / "file").write_bytes(b"changed, and longer than it was")
    with pytest.raises(CheckpointError, match="has changed since the checkpoint"):
        memvm.restore_clones(file, 2, pass_through=[folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with memvm.restore_clones(
        file, 1, rw=[folder], accept_changed_files=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as clones:
        assert clones[0].stdout is not None
        assert clones[0].stdout.read() == b"change chaclone 1\n"
