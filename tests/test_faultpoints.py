"""Fault points: what is armed happens, where and when it was asked for."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memvm.errors import UsageError
from memvm.faultpoints import FaultPoint, arm, fire, parse_faults
from tests.support import MemvmCli

ROOT = Path(__file__).parent.parent
POINT, OTHER = FaultPoint.SAVE_BEFORE_SYNC, FaultPoint.LOAD_READ


def test_nothing_armed_nothing_happens() -> None:
    for point in FaultPoint:
        fire(point)


def test_armed_exception_is_raised_at_its_point_only() -> None:
    with arm(POINT, OSError(errno.EIO, "broken")):
        fire(OTHER)
        with pytest.raises(OSError, match="broken"):
            fire(POINT)
    fire(POINT)


def test_armed_callable_is_called_at_the_firing_that_was_asked_for() -> None:
    fired: list[str] = []
    with arm(POINT, lambda: fired.append("second"), at=2):
        fire(POINT)
        assert not fired
        fire(POINT)
        fire(POINT)
    assert fired == ["second"]


def test_inner_arming_hides_the_outer_one() -> None:
    fired: list[str] = []
    with arm(POINT, lambda: fired.append("outer")):
        with arm(POINT, lambda: fired.append("inner")):
            fire(POINT)
        fire(POINT)
    fire(POINT)
    assert fired == ["inner", "outer"]


def test_points_are_described() -> None:
    assert FaultPoint("save.before_sync") is POINT  # type: ignore[call-arg]
    assert all(point.meaning and f"{point}" == point.value for point in FaultPoint)


@pytest.mark.parametrize(("name", "code"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_parsed_error_is_raised(name: str, code: int) -> None:
    ((action, at),) = parse_faults(f"save.before_sync={name}@3").values()
    assert at == 3
    with arm(POINT, action), pytest.raises(OSError) as raised:
        fire(POINT)
    assert raised.value.errno == code


def test_parsed_stall_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    ((action, _),) = parse_faults("load.read=stall=0.2").values()
    with arm(OTHER, action):
        fire(OTHER)
    assert slept == [0.2]


def test_parsed_hold_waits_until_the_file_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, looks = tmp_path / "gate", list[float]()
    gate.touch()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert gate.read_text() == "held\n"
        if len(looks) == 3:
            gate.unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    ((action, at),) = parse_faults(f"load.chunks=hold={gate}@2").values()
    assert at == 2
    for _ in range(2):
        with arm(OTHER, action):
            fire(OTHER)
    assert len(looks) == 3 and not gate.exists()


@pytest.mark.parametrize(
    "text",
    ["nowhere=kill", "load.read", "load.read=fly", "load.read=eio@x", "load.read=stall=long", "load.read=hold="],
)
def test_malformed_faults_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="MEMVM_FAULTS") as raised:
        parse_faults(text)
    assert "@N" in raised.value.hint


def test_a_mistake_in_the_environment_is_told_by_every_command(memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "/bin/true", env={"MEMVM_FAULTS": "nowhere=kill"}, code=UsageError.exit_code)
    assert result.err.startswith("memvm: MEMVM_FAULTS: cannot understand 'nowhere=kill'")
    assert "memvm doctor --fault-points" in result.err


def test_environment_arms_a_child(time_scale: float) -> None:
    script = (
        "from memvm.faultpoints import *; point = FaultPoint.LOAD_READ; "
        "fire(point); print('once', flush=True); fire(point)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "MEMVM_FAULTS": "save.before_sync=eio, load.read=kill@2"},
        check=False,
        capture_output=True,
        text=True,
        timeout=30 * time_scale,
    )
    assert (done.returncode, done.stdout) == (-9, "once\n")
