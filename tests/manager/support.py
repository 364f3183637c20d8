"""Fake managers in processes of their own, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memvm.errors import GuestStateError, NoSuchGuest
from memvm.machine.config import RunState
from memvm.manager.client import connect

ROOT = Path(__file__).parent.parent.parent
FAKE_MEMVM = (sys.executable, "-m", "tests.manager.fakes")


@contextmanager
def fake_memvm(*arguments: str | Path, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A running `memvm ARGUMENTS` with fake guests; killed at the end of the block."""
    with subprocess.Popen(
        [*FAKE_MEMVM, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def run_fake_memvm(*arguments: str | Path, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """`memvm ARGUMENTS` with fake guests, to its end."""
    return subprocess.run(
        [*FAKE_MEMVM, *map(str, arguments)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )


def wait_for_state(name: str, wanted: RunState, time_scale: float) -> None:
    """Wait until the guest is there and in that state."""
    deadline = time.monotonic() + 20 * time_scale
    while True:
        try:
            with connect(name) as client:
                if client.status().state is wanted:
                    return
        except (NoSuchGuest, GuestStateError):
            pass  # not there yet
        assert time.monotonic() < deadline, f"guest {name!r} never was {wanted}"
        time.sleep(0.01)
