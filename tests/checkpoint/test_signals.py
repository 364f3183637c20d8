"""Signals over a save and a restore: handlers go on, and what waits, and timers, come back."""

from __future__ import annotations

import random
import re
import signal
import subprocess
from pathlib import Path

import pytest

import memvm
from tests.checkpoint.lives import restored, running

ENGINES = ("userfaultfd", "mprotect")


def rings(output: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^ring (\d+)$", output, re.MULTILINE)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["alarms", "alarms-musl"])
def test_no_ring_is_lost_over_several_lives(engine: str, name: str, guests: dict[str, Path], tmp_path: Path) -> None:
    if name not in guests:
        pytest.skip("no musl-gcc here")
    chance, path = random.Random(name), tmp_path / "a"
    with running(tmp_path / "0", guests[name], "2", "0", engine=engine) as life:
        life.await_lines(3)
        before = life.save(path, live=True)
    for number in range(1, 5):
        with restored(tmp_path / f"{number}", path, engine=engine, lazy=chance.random() < 0.5) as life:
            life.await_lines(3)
            before += life.save(path, live=chance.random() < 0.5)
            assert life.complaints() == ""
    assert rings(before) == list(range(1, len(rings(before)) + 1))
    assert before == b"".join(b"ring %d\n" % number for number in rings(before))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_from_outside_reaches_the_handler_of_a_restored_guest(
    engine: str, guests: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "a"
    with running(tmp_path / "1", guests["alarms"], "2", "0", engine=engine) as life:
        life.await_lines(2)
        life.save(path)
    with restored(tmp_path / "2", path, engine=engine) as life:
        life.await_lines(2)
        life.guest._manager.process.send_signal(signal.SIGTERM)
        assert life.guest.wait().code == 3
        assert life.output().endswith(b"over\n")


def test_a_signal_that_nobody_handles_ends_the_guest(guests: dict[str, Path]) -> None:
    with memvm.Guest([guests["counter"], "1", "0"], ram="64M", stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        guest.stdout.readline()
        guest._manager.process.send_signal(signal.SIGTERM)
        assert guest.wait().code == 128 + signal.SIGTERM


def test_a_paused_guest_that_handles_signals_is_closed_at_once(guests: dict[str, Path], tmp_path: Path) -> None:
    """It does not hear the signal, and is not let go on for it."""
    with running(tmp_path / "1", guests["alarms"], "2", "0") as life:
        life.await_lines(2)
        life.guest.pause()
        life.guest.close()
        ending = life.guest.wait()
        assert (ending.code, ending.signal) == (137, signal.SIGKILL)
        assert "was paused" in ending.reason
        assert b"over" not in life.output()
