"""Every demo guest under memvm keeps to its declaration, in all its variants, and on both fault engines."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.guests.declaration import Run, Where, built, declared_runs
from tests.machine.elf_writer import TEXT_ADDRESS, Load, Program, R, X
from tests.support import MemvmCli, kill_tree
from tools.build_guests import VARIANTS

RUNS = declared_runs(Where.MEMVM)
SUFFIXES = [variant.suffix for variant in VARIANTS.values()]
ENGINES = ["userfaultfd", "mprotect"]
LIMIT = 30.0
"""Seconds that a run may take."""


def check(cli: MemvmCli, program: Path, run: Run, engine: str, directory: Path) -> None:
    command: list[str | Path] = ["run", "--engine", engine, "--ram", "256M", "--", program, *run.args]
    if run.endless:
        out, err, code = beginning(cli, command, run, directory)
    else:
        result = cli(*command, stdin=run.stdin, cwd=directory, timeout=LIMIT)
        out, err, code = result.out, result.err, result.code
    assert run.complaints(out, code) == [], err
    for text in run.report:
        assert text in err
    if run.report:
        assert "rip=" in err
        assert "rsp=" in err
        assert "r15=" in err
    assert "Traceback" not in err
    assert list(directory.iterdir()) == [], "it left files behind"


def beginning(cli: MemvmCli, command: list[str | Path], run: Run, directory: Path) -> tuple[bytes, str, int | None]:
    """The declared first lines of an endless guest; then it is killed."""
    with cli.start(*command, stdin=run.stdin, cwd=directory) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.close()
        alarm = threading.Timer(LIMIT * cli.time_scale, kill_tree, [process.pid])
        alarm.start()
        try:
            out = b"".join(process.stdout.readline() for _ in range(run.beginning))
            code = process.poll()
        finally:
            alarm.cancel()
            alarm.join()
        process.terminate()
        return out, process.stderr.read().decode(), code


@pytest.mark.parametrize("run", RUNS, ids=[f"{run.guest}: {run.name}" for run in RUNS])
def test_guest_keeps_to_its_declaration(run: Run, guests: dict[str, Path], memvm_cli: MemvmCli, tmp_path: Path) -> None:
    for program in built(run, guests):
        directory = tmp_path / program.name
        directory.mkdir()
        check(memvm_cli, program, run, "userfaultfd", directory)


@pytest.mark.parametrize("run", RUNS, ids=[f"{run.guest}: {run.name}" for run in RUNS])
def test_guest_keeps_to_its_declaration_without_userfaultfd(
    run: Run, guests: dict[str, Path], memvm_cli: MemvmCli, tmp_path: Path
) -> None:
    check(memvm_cli, built(run, guests)[0], run, "mprotect", tmp_path)


def test_a_fatal_signal_is_an_exit_status_of_128_plus_its_number(guests: dict[str, Path], memvm_cli: MemvmCli) -> None:
    for name, status in (("bad/null", 128 + 11), ("bad/illegal", 128 + 4), ("bad/div0", 128 + 8)):
        memvm_cli("run", "--", guests[name], code=status)


def test_a_crash_report_names_signal_address_place_and_registers(guests: dict[str, Path], memvm_cli: MemvmCli) -> None:
    lines = memvm_cli("run", "--", guests["bad/readnull"], code=139).err.splitlines()
    assert lines[0] == "memvm: SIGSEGV: bad memory access at 0x120, a null pointer"
    assert lines[1].strip().startswith("at 0x")
    assert "read_balance" in lines[1]
    named = [word.partition("=")[0] for line in lines[2:] for word in line.split()]
    assert named == [
        *("rip", "rsp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"),
        *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "eflags"),
    ]


def test_a_crash_in_a_stripped_program_is_reported_without_a_name(
    guests: dict[str, Path], memvm_cli: MemvmCli, tmp_path: Path
) -> None:
    code = bytes.fromhex("488b042500000000")  # mov rax, [0]
    program = tmp_path / "bare"
    program.write_bytes(Program(segments=(Load(TEXT_ADDRESS, code, R | X),), with_sections=False).build())
    assert f"  at {TEXT_ADDRESS:#x}\n" in memvm_cli("run", "--", program, code=139).err
