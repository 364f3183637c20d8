"""`memvm top` on terminals and without one, against managers of fake guests."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from memvm.cli.main import main
from memvm.machine.config import RunState
from tests.manager.support import FAKE_MEMVM, ROOT, fake_memvm, run_fake_memvm, wait_for_state


@pytest.fixture
def guest(time_scale: float) -> Iterator[subprocess.Popen[str]]:
    """A fake guest called "hub"."""
    with fake_memvm("run", "--name", "hub", "./sleep") as process:
        wait_for_state("hub", RunState.RUNNING, time_scale)
        yield process
        process.terminate()
        process.communicate(timeout=30)


class Screen:
    """`memvm top` on a terminal of its own."""

    def __init__(self, columns: int, time_scale: float) -> None:
        self._limit = 30 * time_scale
        # The inner end stays open here: with nobody at it, reading from the terminal would be an error.
        self.terminal, self.inner = pty.openpty()
        inner = self.inner
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
        self.settings = termios.tcgetattr(inner)
        self.process = subprocess.Popen(
            [*FAKE_MEMVM, "top", "--interval", "100ms"],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "", "LINES": ""},
        )
        self._drawn = b""

    @property
    def shown(self) -> str:
        """What was drawn since the last wait, without colours; what came of it so far may end anywhere."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._drawn.decode(errors="replace"))

    def wait_for(self, pattern: str) -> None:
        """Until that was shown since the last wait."""
        deadline = time.monotonic() + self._limit
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, f"{pattern!r} was not shown, but {self.shown[-2000:]!r}"
            if select.select([self.terminal], [], [], 0.1)[0]:
                self._drawn += os.read(self.terminal, 1 << 16)
        self._drawn = b""

    def press(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def end(self) -> int:
        """Wait for the end; the exit status."""
        deadline = time.monotonic() + self._limit
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.terminal], [], [], 0.05)[0]:
                os.read(self.terminal, 1 << 16)
        return self.process.wait(1)


@pytest.fixture
def screen(time_scale: float) -> Iterator[Screen]:
    screen = Screen(100, time_scale)
    yield screen
    screen.process.kill()
    screen.process.wait()
    os.close(screen.terminal)
    os.close(screen.inner)


def test_a_live_view(guest: subprocess.Popen[str], screen: Screen) -> None:
    screen.wait_for(r"1 guest, 1 running, by name")
    screen.press(b"c")
    screen.wait_for(r"by cpu[^$]*hub +running")
    screen.press(b"p")
    screen.wait_for(r"paused")
    screen.press(b" \x1b[A")
    screen.wait_for(r"top  1 guest")
    guest.send_signal(signal.SIGSTOP)
    try:
        screen.wait_for(r"hub +no answer")
    finally:
        guest.send_signal(signal.SIGCONT)
    screen.wait_for(r"hub +running")
    guest.terminate()
    screen.wait_for(r"no guest is running")
    screen.press(b"q")
    assert screen.end() == 0
    assert termios.tcgetattr(screen.inner) == screen.settings


def test_ctrl_c_leaves_the_terminal_as_it_was(screen: Screen) -> None:
    screen.wait_for(r"no guest is running")
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 130
    assert termios.tcgetattr(screen.inner) == screen.settings


def test_one_table_without_a_terminal(guest: subprocess.Popen[str]) -> None:
    headings, line = run_fake_memvm("top", "--interval", "100ms").stdout.splitlines()
    assert headings.split()[:4] == ["NAME", "STATE", "CPU", "TOUCHED"]
    assert line.split()[:4] == ["hub", "running", "0%", "4.0K"]


def test_for_programs(guest: subprocess.Popen[str]) -> None:
    (shown,) = json.loads(run_fake_memvm("top", "--json", "--interval", "100ms").stdout)
    assert (shown["name"], shown["state"], shown["fault_rate"], shown["fault_p99"]) == ("hub", "running", 0.0, None)


def test_a_senseless_interval(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", "1ms"]) == 64
    assert "--interval 1ms is too short" in capsys.readouterr().err
