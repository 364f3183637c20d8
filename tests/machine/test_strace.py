"""What --strace, --strict and the statistics say of a guest's calls."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.machine.conftest import PROGRAMS, CProgram
from tests.support import MemvmCli

EXPECTED = r"""
mmap(0x10000000, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0) = 0x10000000
write(1, "abcde\n", 6) = 6
write(1, 0x10000000, 0) = 0
write(2, 0x1000, 10) = -1 EFAULT
write(77, "abcde\nghijklmnopqrstuvwxyzabcdef"..., 60) = -1 EBADF
read(0, "in\x00put", 100) = 6
openat(-100, "/etc/pass\"wd", O_RDONLY|O_CLOEXEC, 0) = -1 ENOENT
mprotect(0x10000000, 4096, PROT_READ) = 0
munmap(0x10000000, 8192) = 0
clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, STACK, 0) = 0
socket(1, 0x2, 3) = -1 EAFNOSUPPORT
brk(0x1) = BREAK
unknown_333(0x1, 0x2, 0x3, 0x4, 0x5, 0x6) = -1 ENOSYS
exit_group(7) = 0
"""


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """programs/tour.c, which does without a C library."""
    program = tmp_path_factory.mktemp("tour") / "tour"
    options = ["-O1", "-w", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fcf-protection=none"]
    subprocess.run(["gcc", *options, PROGRAMS / "tour.c", "-o", program], check=True)
    return program


@pytest.mark.parametrize("engine", ["userfaultfd", "mprotect"])
def test_strace_prints_each_call_with_arguments_and_result(engine: str, tour: Path, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--strace", "--engine", engine, "--", tour, stdin=b"in\0put", code=7)
    assert result.out == b"abcde\n"
    shown = re.sub(r"0x400[0-9a-f]{5}\b|0x401[0-9a-f]{5}\b", "STACK", result.err)
    shown = re.sub(r"(?<=^brk\(0x1\) = )\w+$", "BREAK", shown, flags=re.MULTILINE)
    assert shown.splitlines() == EXPECTED.strip().splitlines()


def test_strict_ends_a_guest_at_a_call_that_is_not_known(tour: Path, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--strict", "--", tour, code=70)
    assert result.out == b"abcde\n"
    assert "system call 333" in result.err
    assert "--strict" in result.err


def test_without_strict_it_is_counted(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    count = 15_000
    given = b"14d 0 0 0 0 0 0\n" * count
    with memvm_cli.start("run", "--name", "counted", "--", c_program("calls")) as process:
        assert process.stdin is not None
        process.stdin.write(given)
        process.stdin.close()
        deadline = time.monotonic() + 20 * memvm_cli.time_scale
        counts: dict[str, int] = {}
        while counts != {"system call 333": count}:  # its output does not fit into the pipe: it cannot end
            assert time.monotonic() < deadline, counts
            found = json.loads(memvm_cli("ps", "--json", code=0).text)
            counts = found[0]["status"]["unknown_calls"] if found and found[0]["status"] else {}
        assert process.stdout is not None
        assert process.stdout.read() == b"ENOSYS\n" * count
        assert process.wait(20 * memvm_cli.time_scale) == 0


def test_a_call_by_the_32_bit_door_is_refused_and_counted(guests: dict[str, Path], memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--strace", "--", guests["bad/int80"])
    assert re.search(r"^foreign_\d+\(.*\) = -1 ENOSYS$", result.err, re.MULTILINE)
    strict = memvm_cli("run", "--strict", "--", guests["bad/int80"], code=70)
    assert "32-bit system call" in strict.err


def test_the_time_limit_ends_an_endless_guest(guests: dict[str, Path], memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--time-limit", "300ms", "--", guests["bad/loop"], code=124)
    assert "time limit" in result.err
