"""One guest's life from outside: what may be asked of it when, and how it is said to have ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memvm.errors import GuestStateError, ImageError, UsageError
from memvm.machine.config import EngineChoice, ExitStatus, GuestConfig, RunOptions, RunState
from memvm.machine.layout import MAX_RAM, MIN_RAM
from memvm.machine.machine import Machine
from memvm.units import MIB, PAGE_SIZE
from tests.checkpoint.lives import SCALE
from tests.machine.conftest import CProgram
from tests.machine.elf_writer import CODE, DATA_ADDRESS, EXIT_CODE, TEXT_ADDRESS, Load, Program, R, W, X
from tests.support import MemvmCli

ENGINES = [EngineChoice.USERFAULTFD, EngineChoice.MPROTECT]
LIMIT = 20.0 * SCALE

COUNTING = bytes.fromhex("48ff0425" + DATA_ADDRESS.to_bytes(4, "little").hex() + "ebf6")
"""inc qword [DATA_ADDRESS]; jmp back"""
SLEEPING = bytes.fromhex("b822000000 0f05 ebf7")
"""mov eax, SYS_pause; syscall; jmp back"""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineChoice:
    chosen: EngineChoice = request.param
    return chosen


@contextmanager
def machine(directory: Path, code: bytes, engine: EngineChoice) -> Iterator[Machine]:
    """A guest of 16 MiB that executes this code and has a page of data; not started."""
    program = Program(segments=(Load(TEXT_ADDRESS, code, R | X), Load(DATA_ADDRESS, bytes(PAGE_SIZE), R | W)))
    path = directory / "program"
    path.write_bytes(program.build())
    made = Machine.launch(GuestConfig(str(path), ("program",), ram_size=16 * MIB), RunOptions("one", engine=engine))
    try:
        yield made
    finally:
        made.close()


def count(guest: Machine) -> int:
    return int.from_bytes(guest.read_memory(DATA_ADDRESS, 8), "little")


def wait_for(guest: Machine, more_than: int) -> int:
    deadline = time.monotonic() + LIMIT
    while (now := count(guest)) <= more_than:
        assert guest.wait(0.001) is None
        assert time.monotonic() < deadline, f"it counted to {now} and no further"
    return now


@pytest.mark.parametrize("size", [0, MIN_RAM - 1, MAX_RAM + PAGE_SIZE, -1])
def test_ram_has_its_bounds(size: int) -> None:
    with pytest.raises(UsageError, match="it must be"):
        Machine(RunOptions("none"), size)


def test_a_program_that_is_none_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("#!/bin/sh\n")
    with pytest.raises(ImageError):
        Machine.launch(GuestConfig(str(path), ("text",)), RunOptions("none"))


def test_a_guest_that_ends_tells_its_status(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, CODE, engine) as guest:
        assert guest.status().state is RunState.STARTING
        guest.start()
        assert guest.wait(LIMIT) == ExitStatus(EXIT_CODE)
        status = guest.status()
        assert (status.state, status.hypercalls, status.engine) == (RunState.ENDED, 1, engine.value)


def test_a_guest_that_was_never_started_can_be_closed(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, CODE, engine) as guest:
        assert guest.wait(0) is None
        assert guest.registers()["rip"] == TEXT_ADDRESS


def test_a_paused_guest_stands_still(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, COUNTING, engine) as guest:
        guest.start()
        wait_for(guest, 0)
        guest.pause()
        guest.pause()
        assert guest.status().state is RunState.PAUSED
        stopped, registers = count(guest), guest.registers()
        assert guest.wait(0.02) is None
        assert (count(guest), guest.registers()) == (stopped, registers)
        guest.resume()
        assert guest.status().state is RunState.RUNNING
        wait_for(guest, stopped)
        guest.kill()
        assert guest.wait(LIMIT) == ExitStatus(128 + 9, 9, "killed")


def test_a_paused_guest_can_be_killed(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, COUNTING, engine) as guest:
        guest.start()
        guest.pause()
        guest.kill("enough")
        assert guest.wait(LIMIT) == ExitStatus(128 + 9, 9, "enough")
        guest.kill("again")
        assert guest.wait(LIMIT) == ExitStatus(128 + 9, 9, "enough"), "the first reason counts"


def test_memory_can_be_read_and_changed_while_the_guest_runs(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, COUNTING, engine) as guest:
        guest.start()
        guest.pause()  # it might be between reading and writing
        guest.write_memory(DATA_ADDRESS, (1 << 60).to_bytes(8, "little"))
        guest.resume()
        wait_for(guest, 1 << 60)
        assert guest.read_memory(TEXT_ADDRESS, len(COUNTING)) == COUNTING
        assert guest.read_memory(DATA_ADDRESS, 0) == b""
        for address, size in ((0, 1), (DATA_ADDRESS, 2 * PAGE_SIZE), (DATA_ADDRESS, -1), (1 << 63, 8)):
            with pytest.raises(UsageError, match="not allocated"):
                guest.read_memory(address, size)
        with pytest.raises(UsageError, match="not allocated"):
            guest.write_memory(0, b"x")


def test_a_guest_that_has_ended_answers_no_more(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, CODE, engine) as guest:
        guest.start()
        guest.wait(LIMIT)
        for ask in (guest.pause, guest.resume, guest.registers, lambda: guest.frozen(lambda: None)):
            with pytest.raises(GuestStateError):
                ask()
        guest.kill()
        assert guest.wait(LIMIT) == ExitStatus(EXIT_CODE)


@pytest.mark.parametrize("code", [COUNTING, SLEEPING])
def test_a_guest_killed_from_outside_is_reported(code: bytes, tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, code, engine) as guest:
        guest.start()
        os.kill(guest.status().guest_pid, signal.SIGKILL)
        ending = guest.wait(LIMIT)
        assert ending is not None
        assert (ending.code, ending.signal) == (128 + 9, 9)
        assert "from outside" in ending.reason


def test_a_signal_from_outside_has_its_default_action(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, SLEEPING, engine) as guest:
        guest.start()
        for ignored in (signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG, signal.SIGTSTP, signal.SIGSTOP):
            os.kill(guest.status().guest_pid, ignored)
        assert guest.wait(0.05) is None
        os.kill(guest.status().guest_pid, signal.SIGTERM)
        assert guest.wait(LIMIT) == ExitStatus(128 + 15, 15, "ended by SIGTERM")


def test_many_ask_at_once(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, COUNTING, engine) as guest:
        guest.start()
        asked = [0, 0, 0, 0]

        def ask(which: int) -> None:
            for _ in range(40):
                assert guest.frozen(lambda: which) == which
                guest.registers()
                asked[which] += 1

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked == [40] * 4
        wait_for(guest, count(guest))


def test_an_error_of_what_runs_in_the_freeze_goes_to_who_asked(tmp_path: Path, engine: EngineChoice) -> None:
    with machine(tmp_path, COUNTING, engine) as guest:
        guest.start()
        with pytest.raises(ZeroDivisionError):
            guest.frozen(lambda: 1 // 0)
        wait_for(guest, count(guest))


@pytest.mark.slow
@pytest.mark.parametrize("engine_name", [choice.value for choice in ENGINES])
def test_too_many_pieces_of_memory_are_enomem_for_the_guest(
    engine_name: str, c_program: CProgram, memvm_cli: MemvmCli
) -> None:
    """vm.max_map_count, 65,530 unless somebody raised it."""
    if int(Path("/proc/sys/vm/max_map_count").read_text()) > 100_000:
        pytest.skip("vm.max_map_count is higher here than the program tries")
    result = memvm_cli("run", "--engine", engine_name, "--ram", "1G", "--", c_program("pieces"), code=0)
    assert result.text.splitlines()[0] == "ENOMEM after many"
    assert [line.rpartition(": ")[2] for line in result.text.splitlines()[1:]] == ["0", "0"]


def test_who_fails_for_lack_of_memory_is_told_of_it(guests: dict[str, Path], memvm_cli: MemvmCli) -> None:
    failed = memvm_cli("run", "--ram", "64M", "--", guests["ticker"], "500", code=1)
    assert "could not have 500.0 MiB of memory at once, of 64.0 MiB in all; if it needed that: --ram" in failed.err
    limited = memvm_cli("run", "--setting", "ram-limit=32M", "--", guests["ticker"], "50", code=1)
    assert "could not have 50.0 MiB of memory at once, of 32.0 MiB in all" in limited.err
    fine = memvm_cli("run", "--ram", "64M", "--", guests["ticker"], "16", "0", "1", "1", code=0)
    assert fine.err == ""
