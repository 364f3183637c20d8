"""The guest's standard streams: files, pipes, terminals, closed ones and full ones."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.machine.conftest import CProgram
from tests.support import MemvmCli, kill_tree

MIB = 1 << 20
COMMAND = [sys.executable, "-m", "memvm"]


def numbered(size: int) -> bytes:
    return b"".join(b"%07d\n" % line for line in range(size // 8 + 1))[:size]


@contextmanager
def started(command: list[str | Path], **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with these streams, which is ended, if it has not, with all its descendants."""
    with subprocess.Popen(command, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_tree(process.pid)


def read_all(descriptor: int, until: bytes | None, limit: float) -> bytes:
    """What can be read until a text or the end; on a terminal the end is an error."""
    deadline, data = time.monotonic() + limit, b""
    while until is None or until not in data:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came after {data[-200:]!r}"
        try:
            part = os.read(descriptor, MIB)
        except OSError:
            break
        if not part:
            break
        data += part
    return data


def test_a_reader_that_goes_away_ends_the_guest_by_sigpipe(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    with memvm_cli.start("run", "--", c_program("stream"), "numbers", "1000000000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0000000\n"
        process.stdout.close()
        assert process.wait(20 * memvm_cli.time_scale) == 128 + 13


def test_sigpipe_that_is_ignored_is_an_error_of_the_write(
    c_program: CProgram, memvm_cli: MemvmCli, busybox: Path
) -> None:
    with memvm_cli.start("run", "--", busybox, "ash", "-c", "trap '' PIPE; while echo x; do :; done") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        assert process.wait(20 * memvm_cli.time_scale) != 128 + 13


@pytest.mark.parametrize("size", [1, 1000, 5 * MIB])
def test_a_file_is_copied_with_as_many_calls_as_natively(
    size: int, c_program: CProgram, memvm_cli: MemvmCli, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(numbered(1000 if size == 1 else 4 * MIB if size == 1000 else 12 * MIB))
    command: list[str | Path] = [c_program("stream"), "copy", str(size)]
    with source.open("rb") as stdin, (tmp_path / "native").open("wb") as stdout:
        expected = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=True)
    with source.open("rb") as stdin, (tmp_path / "guest").open("wb") as stdout:
        got = subprocess.run(
            [*COMMAND, "run", "--", *command], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=True
        )
    assert got.stderr == expected.stderr
    assert (tmp_path / "guest").read_bytes() == (tmp_path / "native").read_bytes() == source.read_bytes()


def test_one_large_write_to_a_pipe_is_one_call(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--", c_program("stream"), "fill", str(9 * MIB), code=0)
    assert result.out == numbered(9 * MIB)
    assert result.err == f"wrote {9 * MIB}\n"


def test_input_that_comes_in_parts_is_waited_for(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    with memvm_cli.start("run", "--", c_program("stream"), "copy", "100") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for part in (b"one\n", b"two\n", b"x" * 1000 + b"\n"):
            process.stdin.write(part)
            process.stdin.flush()
            assert process.stdout.readline() == part
        process.stdin.close()
        assert process.wait(20 * memvm_cli.time_scale) == 0


def test_a_guest_that_does_not_block_gets_all_out(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--strict", "--", c_program("stream"), "eager", "20000", code=0)
    assert result.out == numbered(20000 * 8)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(closed: str, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    """What a guest sees there is the end of input, or a place where output goes; but nobody else's file."""
    script = f'exec "$@" {closed}'
    command = ["sh", "-c", script, "sh", *COMMAND, "run", "--", str(c_program("stream")), "copy", "10"]
    done = subprocess.run(command, input=b"text", capture_output=True, timeout=30 * memvm_cli.time_scale, check=False)
    assert done.returncode in (0, 1)
    assert done.stdout == (b"text" if closed == "2>&-" else b"")
    assert b"Traceback" not in done.stderr
    assert b"memvm" not in done.stderr


def test_the_flags_of_a_shared_stream_stay_as_they_are(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    reader, writer = os.pipe()
    try:
        command: list[str | Path] = [*COMMAND, "run", "--", c_program("stream"), "eager", "1000000"]
        with started(command, stdin=subprocess.DEVNULL, stdout=writer) as process:
            read_all(reader, b"0001000\n", 20 * memvm_cli.time_scale)
            assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
            process.terminate()
            assert process.wait(20 * memvm_cli.time_scale) == 128 + signal.SIGTERM
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal of 33 rows and 77 columns: ours, and the guest's."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("=4H", 33, 77, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_is_passed_through(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    limit = 20 * memvm_cli.time_scale
    command: list[str | Path] = [*COMMAND, "run", "--strict", "--", c_program("stream"), "terminal"]
    with terminal() as (ours, theirs), started(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        told = read_all(ours, b"ready\r\n", limit).decode()
        assert not termios.tcgetattr(theirs)[3] & termios.ECHO
        os.write(ours, b"HELLO\n")
        assert read_all(ours, b"hello\r\n", limit) == b"hello\r\n"
        assert process.wait(limit) == 0
    assert ": NO" not in told
    assert "33 rows, 77 columns" in told
    assert "tcsetpgrp(0, 77): EPERM" in told
    assert "lseek(0, 0, SEEK_CUR): ESPIPE" in told


def test_a_terminal_that_nobody_reads_holds_up_the_guest_and_nobody_else(
    c_program: CProgram, memvm_cli: MemvmCli
) -> None:
    command: list[str | Path] = [*COMMAND, "run", "--name", "full", "--", c_program("stream"), "numbers", "1000000"]
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with terminal() as (ours, theirs), started(command, stdout=theirs, **streams) as process:
        read_all(ours, b"0000100\r\n", 20 * memvm_cli.time_scale)
        wait_until_idle(memvm_cli, "full")
        memvm_cli("pause", "full", code=0, timeout=10)
        memvm_cli("resume", "full", code=0, timeout=10)
        memvm_cli("kill", "full", code=0, timeout=10)
        assert process.wait(20 * memvm_cli.time_scale) == 128 + 9


def wait_until_idle(cli: MemvmCli, name: str) -> None:
    """Wait until the guest makes no more system calls."""
    seen = -1
    deadline = time.monotonic() + 20 * cli.time_scale
    while time.monotonic() < deadline:
        [guest] = [guest for guest in json.loads(cli("ps", "--json", code=0).text) if guest["name"] == name]
        if guest["status"] is None:  # its manager did not answer in time
            continue
        calls = guest["status"]["hypercalls"]
        if calls == seen:
            return
        seen = calls
    raise AssertionError("the guest is not held up")


@pytest.mark.parametrize("way", ["fill", "numbers", "eager"])
def test_a_full_pipe_holds_up_the_guest_and_nobody_else(
    way: str, c_program: CProgram, memvm_cli: MemvmCli, tmp_path: Path
) -> None:
    amount = {"fill": 2 * MIB, "numbers": MIB // 8, "eager": MIB // 8}[way]
    program = c_program("stream")
    with memvm_cli.start("run", "--name", "full", "--", program, way, str(amount)) as process:
        assert process.stdout is not None
        start = os.read(process.stdout.fileno(), 8)
        wait_until_idle(memvm_cli, "full")
        memvm_cli("pause", "full", code=0, timeout=10)
        memvm_cli("checkpoint", "full", tmp_path / "stopped", code=0, timeout=20)
        memvm_cli("resume", "full", code=0, timeout=10)
        memvm_cli("checkpoint", "full", tmp_path / "live", "--live", code=0, timeout=20)
        rest = read_all(process.stdout.fileno(), None, 20 * memvm_cli.time_scale)
        assert process.wait(20 * memvm_cli.time_scale) == 0
    assert start + rest == numbered(amount if way == "fill" else amount * 8)
