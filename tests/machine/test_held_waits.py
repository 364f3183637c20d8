"""What a guest waits for, and the calls in which its threads wait, go on after a save and after a restore."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import memvm
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.machine.hypercalls.families import TABLE
from memvm.machine.state import GuestState
from tests.checkpoint.lives import SCALE
from tests.machine.conftest import CProgram

ENGINES = ["userfaultfd", "mprotect"]
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
WAITING = Counter({"read": 3, "recvfrom": 1, "write": 1, "epoll_wait": 1, "poll": 1})
"""The calls that the threads of programs/awaited.c wait in, the main thread's read of its input among them. One more
reads a timer, which may have expired by then."""
HOLDING = b"holding\n"


@pytest.fixture(scope="module")
def expected(c_program: CProgram) -> bytes:
    """What it prints when it runs by itself and has been told to go on."""
    out = subprocess.run([c_program("awaited")], input=b"go on\n", stdout=subprocess.PIPE, check=True).stdout
    assert b": NO\n" not in out
    return out.partition(HOLDING)[2]


@contextmanager
def holding(program: Path, **options: Any) -> Iterator[memvm.Guest]:
    with memvm.Guest([program], ram="64M", **PIPES, **options) as guest:
        assert guest.stdout is not None
        while guest.stdout.readline() != HOLDING:
            pass
        yield guest


def go_on(guest: memvm.Guest) -> bytes:
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(b"go on\n")
    guest.stdin.close()
    out = guest.stdout.read()
    assert guest.wait().code == 0
    return out


def state_in(path: Path) -> GuestState:
    with CheckpointFile.open(path) as file:
        return GuestState.from_json(file.state, file.header.ram_base, file.header.ram_size, str(path))


def save_while_all_wait(guest: memvm.Guest, path: Path, **how: Any) -> None:
    """A thread that has been started is in its call soon."""
    deadline = time.monotonic() + 60 * SCALE
    while True:
        guest.checkpoint(path, **how)
        calls = [thread.blocked for thread in state_in(path).threads]
        names = Counter(TABLE[call.number].name for call in calls if call is not None and call.answer is None)
        if not WAITING - names:
            return
        assert time.monotonic() < deadline, f"they wait in {names}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["live", "stopped", "suspend", "incremental"])
def test_all_that_is_awaited_comes(how: str, engine: str, c_program: CProgram, expected: bytes, tmp_path: Path) -> None:
    path, parent = tmp_path / "awaited.ckpt", tmp_path / "before.ckpt"
    with holding(c_program("awaited"), engine=engine) as guest:
        if how == "suspend":
            guest.suspend(path)
        elif how == "incremental":
            guest.checkpoint(parent)
            save_while_all_wait(guest, path, parent=parent)
        else:
            save_while_all_wait(guest, path, live=how == "live")
        if how != "suspend":
            assert go_on(guest) == expected, "the guest that was saved goes on, too"
    with memvm.restore(path, engine=engine, **PIPES) as again:
        assert go_on(again) == expected


def test_it_can_be_saved_again_and_again(c_program: CProgram, expected: bytes, tmp_path: Path) -> None:
    saved = tmp_path / "first.ckpt"
    with holding(c_program("awaited")) as guest:
        guest.checkpoint(saved)
    for number in range(3):
        following = tmp_path / f"{number}.ckpt"
        with memvm.restore(saved, **PIPES) as guest:
            guest.checkpoint(following, live=bool(number % 2))
        saved = following
    with memvm.restore(saved, **PIPES) as guest:
        assert go_on(guest) == expected


def test_each_clone_has_its_own(c_program: CProgram, expected: bytes, tmp_path: Path) -> None:
    saved = tmp_path / "awaited.ckpt"
    with holding(c_program("awaited")) as guest:
        guest.checkpoint(saved)
    with memvm.restore_clones(saved, 2, stdout=subprocess.PIPE) as clones:
        for clone in clones:
            assert clone.stdout is not None
            assert clone.stdout.read() == expected
            assert clone.wait().code == 0


@pytest.mark.parametrize("trigger", ["level", "edge"])
def test_input_that_is_another_one_after_a_restore_is_awaited(
    trigger: str, c_program: CProgram, tmp_path: Path
) -> None:
    """A pipe's place is taken by another pipe, by what is always ready and cannot be watched, and by a file."""
    saved, file = tmp_path / "listening.ckpt", tmp_path / "input"
    file.write_bytes(b"of a file")
    with memvm.Guest([c_program("listening"), *["edge"] * (trigger == "edge")], ram="64M", **PIPES) as guest:
        assert guest.stdout is not None
        assert guest.stdout.readline() == HOLDING
        guest.checkpoint(saved)
    with memvm.restore(saved, **PIPES) as guest:
        assert go_on(guest) == b"1 1 5 go on\n\n"
    with memvm.restore(saved, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        assert guest.stdout.read() == b"1 1 5 \n"
    with file.open("rb") as given, memvm.restore(saved, stdin=given, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        assert guest.stdout.read() == b"1 1 5 of a file\n"
