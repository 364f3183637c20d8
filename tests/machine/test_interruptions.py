"""However often a guest is stopped, each of its calls is carried out once; whenever it is killed, nothing stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.machine.conftest import CProgram

ENGINES = ["userfaultfd", "mprotect"]
LINES = 2500


def disturb(
    way: str, engine: str, seed: int, command: list[str | Path], stdin: bytes, limit: float
) -> tuple[bytes, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.machine.disturbing", way, engine, str(seed), *command],
        input=stdin,
        capture_output=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def lines(count: int) -> bytes:
    return b"".join(b"%07d\n" % line for line in range(1, count + 1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", [1, 2])
def test_calls_are_carried_out_once_though_interrupted(
    engine: str, seed: int, c_program: CProgram, time_scale: float
) -> None:
    out, report = disturb("freeze", engine, seed, [c_program("steps")], lines(LINES), 60 * time_scale)
    assert (report["code"], report["reason"]) == (0, "")
    assert report["left"] == []
    assert report["times"] >= 100
    assert out == lines(LINES)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_guest_killed_at_any_moment_leaves_nothing(engine: str, c_program: CProgram, time_scale: float) -> None:
    _, report = disturb("kill", engine, 3, [c_program("steps"), "any"], lines(100_000), 60 * time_scale)
    assert report["left"] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_are_made_though_a_signal_waits(engine: str, c_program: CProgram, time_scale: float) -> None:
    """A clone that meets one gives up in the kernel, with an error that no program ever sees."""
    out, report = disturb("freeze", engine, 4, [c_program("spawning")], b"", 60 * time_scale)
    assert (report["code"], report["reason"]) == (0, "")
    assert out == b"all of them\n"
