"""A guest that the command line started, at the other end of pipes: each line of its output, and when it arrived."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from memvm.manager.client import Client, connect
from tools.benchmarks.setting import BenchmarkError, environment, memvm_command

_TIMEOUT = 60.0
_LATE = re.compile(r"tick \d+ late_us (\d+)")


class Line(NamedTuple):
    """A line of output, and when it came (time.monotonic)."""

    arrival: float
    text: str


class GuestProcess:
    """`memvm run` or `memvm restore` as a child process. A context manager: leaving it kills the guest."""

    def __init__(self, name: str, command: str, arguments: Sequence[str], stdin: IO[bytes] | None = None) -> None:
        """Start `memvm COMMAND --name NAME ARGUMENTS`. Without `stdin`, its input is a pipe that says nothing."""
        self.name = name
        self.lines: list[Line] = []
        self._more = threading.Condition()
        self._over = False
        words = [*memvm_command(), command, "--name", name, *arguments]
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=subprocess.PIPE,
            env=environment(),
            bufsize=0,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The manager's process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        fd, rest = self._process.stdout.fileno(), b""
        while data := os.read(fd, 1 << 16):
            now = time.monotonic()
            *whole, rest = (rest + data).split(b"\n")
            with self._more:
                self.lines.extend(Line(now, line.decode()) for line in whole)
                self._more.notify_all()
        with self._more:
            self._over = True
            self._more.notify_all()

    def wait_for(self, enough: Callable[[list[Line]], bool]) -> None:
        """Wait until the lines so far are enough. Raises BenchmarkError if they never will be."""
        with self._more:
            done = self._more.wait_for(lambda: enough(self.lines) or self._over, _TIMEOUT)
            if not done or not enough(self.lines):
                raise BenchmarkError(f"guest {self.name} did not say what was expected: {self.lines[-3:]}")

    def wait_for_lines(self, count: int) -> None:
        """Wait until there are so many lines."""
        self.wait_for(lambda lines: len(lines) >= count)

    def client(self) -> Client:
        """A connection to the manager."""
        return connect(self.name)

    def end(self) -> None:
        """Kill the guest, and wait until its manager has gone."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(_TIMEOUT)
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> GuestProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def save(name: str, file: Path, *options: str) -> dict[str, Any]:
    """`memvm checkpoint NAME FILE --json`; its report. Raises BenchmarkError."""
    words = [*memvm_command(), "checkpoint", name, str(file), "--json", *options]
    result = subprocess.run(words, check=False, capture_output=True, text=True, env=environment())
    if result.returncode != 0:
        raise BenchmarkError(f"the guest could not be saved: {result.stderr}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def most_late(lines: Sequence[Line]) -> float:
    """By how many seconds the latest of a ticker's lines was late, by the guest's own clock."""
    return max((int(match[1]) for line in lines if (match := _LATE.match(line.text))), default=0) / 1e6


def longest_wait(lines: Sequence[Line], period: float) -> float:
    """By how many seconds a line came later than a period after the one before, on the receiving side."""
    arrivals = [line.arrival for line in lines]
    return max((after - before - period for before, after in pairwise(arrivals)), default=0.0)
