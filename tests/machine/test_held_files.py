"""What a guest has open, and in memory, is there again after a restore; the host's files are what they were."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import memvm
from memvm.errors import CheckpointError, SettingRefused
from tests.machine.conftest import CProgram
from tests.support import MemvmCli

ENGINES = ["userfaultfd", "mprotect"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "file").write_bytes(b"0123456789")
    return made


def native(program: Path, folder: Path) -> bytes:
    """What it prints, with a directory of its own for what a guest has in its /tmp."""
    (folder / "made").unlink(missing_ok=True)
    with TemporaryDirectory() as own:
        done = subprocess.run([program, folder, own], input=b"go on\n", capture_output=True, check=True)
    for name in ("made", "link"):
        (folder / name).unlink()
    return done.stdout


@contextmanager
def holding(program: Path, folder: Path, **options: Sequence[str] | str | dict[str, str]) -> Iterator[memvm.Guest]:
    """A guest that holds files open."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with memvm.Guest([program, folder], ram="64M", **pipes, **options) as guest:  # type: ignore[arg-type]
        assert guest.stdout is not None
        assert guest.stdout.readline() == b"holding\n"
        yield guest


def go_on(guest: memvm.Guest) -> bytes:
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(b"go on\n")
    guest.stdin.close()
    out = guest.stdout.read()
    assert guest.wait().code == 0
    return out


Saved = Callable[..., Path]


@pytest.fixture
def saved(c_program: CProgram, folder: Path, tmp_path: Path) -> Path:
    """The checkpoint of a guest that has `folder` as --rw."""
    path = tmp_path / "held.ckpt"
    with holding(c_program("held"), folder, rw=[str(folder)]) as guest:
        guest.checkpoint(path)
    return path


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("live", [True, False])
def test_everything_that_is_open_goes_on(
    live: bool, engine: str, c_program: CProgram, folder: Path, tmp_path: Path
) -> None:
    path, program = tmp_path / "held.ckpt", c_program("held")
    expected = native(program, folder).partition(b"\n")[2]
    with holding(program, folder, rw=[str(folder)], engine=engine) as guest:
        guest.checkpoint(path, live=live)
        assert go_on(guest) == expected
    for _ in range(2):
        with memvm.restore(path, engine=engine, **PIPES) as again:  # type: ignore[arg-type]
            assert go_on(again) == expected
    assert [one.name for one in folder.iterdir()] == ["file"]


def test_it_can_be_saved_again_and_again(saved: Path, c_program: CProgram, folder: Path, tmp_path: Path) -> None:
    expected = native(c_program("held"), folder).partition(b"\n")[2]
    for number in range(3):
        following = tmp_path / f"{number}.ckpt"
        with memvm.restore(saved, **PIPES) as guest:  # type: ignore[arg-type]
            guest.checkpoint(following, live=bool(number % 2))
        saved = following
    with memvm.restore(saved, **PIPES) as guest:  # type: ignore[arg-type]
        assert go_on(guest) == expected


def test_clones_have_files_of_their_own(saved: Path, c_program: CProgram, folder: Path, tmp_path: Path) -> None:
    expected = native(c_program("held"), folder).partition(b"\n")[2]
    with memvm.restore(saved, **PIPES) as one, memvm.restore(saved, **PIPES) as other:  # type: ignore[arg-type]
        assert go_on(one) == expected
        assert go_on(other) == expected


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_a_file_that_has_changed_is_named(change: str, saved: Path, folder: Path) -> None:
    file = folder / "file"
    if change == "gone":
        file.unlink()
    elif change == "size":
        file.write_bytes(b"0123456789AB")
    else:
        os.utime(file, ns=(0, 0))
    with pytest.raises(CheckpointError, match=str(file)):
        memvm.restore(saved, stdin=subprocess.DEVNULL)
    if change == "size":
        with memvm.restore(saved, accept_changed_files=True, **PIPES) as guest:  # type: ignore[arg-type]
            assert b"host: 23456789AB\n" in go_on(guest)


def test_a_directory_can_be_given_from_elsewhere(saved: Path, folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(memvm.MemvmError, match="folder"):
        memvm.restore(saved, stdin=subprocess.DEVNULL)
    with memvm.restore(saved, rw=[f"{moved}:{folder}"], **PIPES) as guest:  # type: ignore[arg-type]
        assert b"host: 23456789\n" in go_on(guest)


def test_a_directory_that_is_written_through_has_to_be_given_again(
    c_program: CProgram, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "held.ckpt"
    with holding(c_program("held"), folder, pass_through=[str(folder)]) as guest:
        guest.checkpoint(path)
    assert (folder / "made").read_bytes() == b"made by the guest"
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        memvm.restore(path, stdin=subprocess.DEVNULL)
    assert "--pass" in caught.value.hint
    with memvm.restore(path, pass_through=[str(folder)], **PIPES) as guest:  # type: ignore[arg-type]
        go_on(guest)
    assert (folder / "made").read_bytes() == b"made by the guest!"


def test_files_in_memory_are_listed_and_extracted(
    saved: Path, folder: Path, tmp_path: Path, memvm_cli: MemvmCli
) -> None:
    listed = {file["path"]: file for file in json.loads(memvm_cli("files", "--json", saved, code=0).text)}
    assert listed[f"{folder}/made"]["size"] == 17
    assert listed[f"{folder}/link"]["target"] == "made"
    assert f"{folder}/file" not in listed
    text = memvm_cli("files", saved, code=0).text
    assert re.search(rf"-rw------- +17 B  {folder}/made\n", text)
    out = tmp_path / "out"
    memvm_cli("files", "--extract", out, saved, code=0)
    made = Path(f"{out}{folder}/made")
    assert made.read_bytes() == b"made by the guest"
    assert Path(f"{out}{folder}/link").readlink() == Path("made")
    assert len(list((out / "tmp" / "many").iterdir())) == 40
    assert "is there already" in memvm_cli("files", "--extract", out, saved, code=64).err


def test_files_of_a_running_guest(c_program: CProgram, folder: Path, tmp_path: Path, memvm_cli: MemvmCli) -> None:
    """They are what a checkpoint of that moment would have, and the guest goes on."""
    out = tmp_path / "out"
    with holding(c_program("held"), folder, rw=[str(folder)], name="held") as guest:
        listed = {file["path"]: file for file in json.loads(memvm_cli("files", "--json", "held", code=0).text)}
        assert listed[f"{folder}/made"]["size"] == 17
        memvm_cli("files", "--extract", out, "held", code=0)
        assert Path(f"{out}{folder}/made").read_bytes() == b"made by the guest"
        guest.change_setting("debug", "off")
        refused = memvm_cli("files", "held", code=77)
        assert "needs debug=on" in refused.err
        go_on(guest)
    gone = memvm_cli("files", "held", code=66)
    assert "no file held, and no guest of that name" in gone.err


def test_writing_through_what_was_only_read_is_noted_or_refused(
    c_program: CProgram, folder: Path, tmp_path: Path
) -> None:
    """It is a change of the setting `files`, also where its value allows that."""
    for behaviour in ("record", "refuse"):
        file = tmp_path / f"{behaviour}.ckpt"
        settings = {"files": f"write:{behaviour}"}
        with holding(c_program("held"), folder, rw=[str(folder)], settings=settings) as guest:
            guest.checkpoint(file)
        with memvm.restore(file, **PIPES) as guest:  # type: ignore[arg-type]
            assert guest.config().changes == 0
    with memvm.restore(tmp_path / "record.ckpt", pass_through=[folder], **PIPES) as guest:  # type: ignore[arg-type]
        entry = json.loads(guest.config().log[0])
        assert (entry["setting"], entry["before"], entry["after"]) == ("files", f"rw {folder}", f"pass {folder}")
    with pytest.raises(SettingRefused, match="was launched with files=write:refuse"):
        memvm.restore(tmp_path / "refuse.ckpt", pass_through=[folder], **PIPES)  # type: ignore[arg-type]


def test_an_empty_directory_in_memory_is_as_it_was_after_two_restores(c_program: CProgram, tmp_path: Path) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with memvm.Guest([c_program("tmptimes")], ram="64M", **pipes) as guest:  # type: ignore[arg-type]
        assert guest.stdout is not None
        assert guest.stdout.readline() == b"holding\n"
        guest.checkpoint(first)
    with memvm.restore(first, **pipes) as guest:  # type: ignore[arg-type]
        guest.checkpoint(second)  # before it has looked at its tree again
    with memvm.restore(second, **pipes) as guest:  # type: ignore[arg-type]
        assert go_on(guest) == b"as it was\n"
