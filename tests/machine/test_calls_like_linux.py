"""Hypercalls give what Linux gives: each program of tests/machine/programs/ prints the same natively and as a guest."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.machine.conftest import CProgram
from tests.support import MemvmCli

ENGINES = ["userfaultfd", "mprotect"]
NO_ANSWER = re.compile(r": NO$|TOO (SHORT|LONG)$", re.MULTILINE)


def native(program: Path, stdin: int | None = None) -> str:
    with subprocess.Popen([program], stdin=stdin, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    return out


def compare(expected: str, got: str) -> None:
    assert not NO_ANSWER.findall(expected), "the program expects what Linux does not do"
    assert got.splitlines() == expected.splitlines()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mappings", "settings", "privileges"])
def test_memory_signals_limits_names_and_clocks(
    name: str, engine: str, c_program: CProgram, memvm_cli: MemvmCli
) -> None:
    program = c_program(name)
    result = memvm_cli("run", "--engine", engine, "--strict", "--", program, code=0)
    compare(native(program, subprocess.DEVNULL), result.text)


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_and_how_they_wait_for_each_other(engine: str, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    program = c_program("threads")
    result = memvm_cli("run", "--engine", engine, "--strict", "--", program, code=0)
    compare(native(program, subprocess.DEVNULL), result.text)


@pytest.mark.parametrize("engine", ENGINES)
def test_handlers_of_signals_and_timers(engine: str, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    program = c_program("handlers")
    reader, writer = os.pipe()
    try:
        expected = native(program, reader)
        with os.fdopen(reader, "rb", closefd=False) as stdin:
            result = memvm_cli("run", "--engine", engine, "--strict", "--", program, stdin=stdin, code=0)
    finally:
        os.close(reader)
        os.close(writer)
    compare(expected, result.text)


def test_descriptors_positions_and_facts_of_a_file(c_program: CProgram, memvm_cli: MemvmCli, tmp_path: Path) -> None:
    program, file = c_program("descriptors"), tmp_path / "digits"
    file.write_bytes(b"0123456789")
    with file.open("rb") as first:
        expected = native(program, first.fileno())
    with file.open("rb") as second:
        result = memvm_cli("run", "--strict", "--", program, stdin=second, code=0)
        assert second.tell() == os.lseek(second.fileno(), 0, os.SEEK_CUR)
    compare(expected, result.text)


@pytest.mark.parametrize("name", ["waiting", "events", "epoll", "pairs", "cputime"])
def test_waiting_for_readiness_and_for_time(name: str, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    """Also by counters, timers, signals, epoll and pairs of sockets."""
    program = c_program(name)
    reader, writer = os.pipe()
    try:
        expected = native(program, reader)
        with os.fdopen(reader, "rb", closefd=False) as stdin:
            result = memvm_cli("run", "--strict", "--", program, stdin=stdin, code=0)
    finally:
        os.close(reader)
        os.close(writer)
    compare(expected, result.text)


@pytest.mark.parametrize("access", ["rw", "pass", "tmp"])
def test_files_directories_and_names(access: str, c_program: CProgram, memvm_cli: MemvmCli, tmp_path: Path) -> None:
    """In memory on top of an empty directory of the host's, written through, and in memory alone."""
    program = c_program("tree")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    expected = subprocess.run([program], cwd=ours, stdout=subprocess.PIPE, text=True, check=True).stdout
    given: list[str | Path] = [f"--{access}", theirs, "--cwd", theirs]
    if access == "tmp":
        given = ["--ro", f"{theirs}:/here", "--cwd", "/tmp"]
    result = memvm_cli("run", "--strict", *given, "--", program, code=0)
    compare(expected, result.text)
    assert ("it may change files of this machine" in result.err) == (access == "pass")
    left = sorted(path.name for path in theirs.iterdir())
    assert left == (sorted(path.name for path in ours.iterdir()) if access == "pass" else [])


def test_copies_from_file_to_file(c_program: CProgram, memvm_cli: MemvmCli, tmp_path: Path) -> None:
    program = c_program("copies")
    expected = subprocess.run([program], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in ("from", "to"):
        (tmp_path / name).unlink()
    result = memvm_cli("run", "--strict", "--rw", tmp_path, "--cwd", tmp_path, "--", program, code=0)
    compare(expected, result.text)
