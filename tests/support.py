"""What tests use to run memvm's command line as a user does: in a process of its own, with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import IO

import psutil


@dataclass(frozen=True)
class CliResult:
    """How a command ended, and what it wrote."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode()


@dataclass(frozen=True)
class MemvmCli:
    """Runs `memvm ARGUMENTS`. Time limits are in seconds, and grow with MEMVM_TEST_TIME_SCALE."""

    time_scale: float

    def __call__(
        self,
        *arguments: str | Path,
        stdin: bytes | IO[bytes] = b"",
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        code: int | None = None,
    ) -> CliResult:
        """Run a command to its end; with `code`, fail the test unless that is its exit status.

        `env` is added to this process's environment. A command that takes longer than `timeout` is
        killed with all its descendants, and fails the test with what it wrote so far.
        """
        with self.start(*arguments, stdin=stdin, env=env, cwd=cwd) as process:
            given = stdin if isinstance(stdin, bytes) else None
            try:
                out, err = process.communicate(given, timeout * self.time_scale)
            except subprocess.TimeoutExpired:
                kill_tree(process.pid)
                out, err = process.communicate()
                raise AssertionError(
                    f"{_command_line(arguments)} took longer than {timeout} s\n{_shown(out, err)}"
                ) from None
        if code is not None and process.returncode != code:
            raise AssertionError(
                f"{_command_line(arguments)} ended with {process.returncode}, not {code}\n{_shown(out, err)}"
            )
        return CliResult(process.returncode, out, err.decode(errors="replace"))

    @contextmanager
    def start(
        self,
        *arguments: str | Path,
        stdin: bytes | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A running command, its three streams pipes (standard input a file if given one).

        At the end of the block it is killed, with all its descendants, if it still runs.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", "memvm", *map(str, arguments)],
            stdin=subprocess.PIPE if stdin is None or isinstance(stdin, bytes) else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):  # what it never read
                        stream.close()
            process.wait()


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Somebody who answers over HTTP, one request after the other; the URL."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def stop(pid: int) -> None:
    """Stop a process, until somebody sends it SIGCONT; returns when it stands still.

    The signal wakes one thread, and only when that runs are the others told: until then they go on.
    """
    os.kill(pid, signal.SIGSTOP)
    while any(not _stands_still(task) for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def _stands_still(task: Path) -> bool:
    """Whether a thread is stopped or traced, or has ended (proc_pid_stat(5))."""
    try:
        return task.joinpath("stat").read_text().rpartition(") ")[2][0] in "TtZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def descriptors_of(pid: int) -> Iterator[tuple[Path, str]]:
    """What a process has open: the path of each descriptor in /proc, and what the kernel calls it."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield path, os.readlink(path)  # noqa: PTH115 - names such as socket:[7] are no paths


def _command_line(arguments: tuple[str | Path, ...]) -> str:
    return " ".join(["memvm", *map(str, arguments)])


def _shown(out: bytes, err: bytes) -> str:
    tail = 4000
    return (
        f"standard output: {out[-tail:].decode(errors='replace')}\n"
        f"standard error: {err[-tail:].decode(errors='replace')}"
    )


def dumps_no_core(pid: int) -> bool:
    """Whether a process's limit forbids core files, and dumps that are given to a program (linux/prctl.py)."""
    [line] = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line]
    *_, soft, hard, _ = line.split()
    return soft == hard == "1"
