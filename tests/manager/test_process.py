"""The life of a manager: how it ends, what it says, and that it leaves nothing. With fake guests."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from memvm.errors import GuestStateError
from memvm.machine.config import RunState
from memvm.manager.client import connect
from memvm.manager.protocol import decode
from tests.manager.fakes import CRASH_REPORT
from tests.manager.support import FAKE_MEMVM, ROOT, fake_memvm, run_fake_memvm, wait_for_state


def test_the_exit_status_passes_through(runtime_dir: Path) -> None:
    result = run_fake_memvm("run", "--name", "a", "--", "./exit", "7")
    assert (result.returncode, result.stdout, result.stderr) == (7, "", "")
    assert list(runtime_dir.iterdir()) == []


def test_the_streams_pass_through() -> None:
    with fake_memvm("run", "--", "./cat", stdin=subprocess.PIPE) as process:
        assert process.communicate("one\ntwo\n", timeout=30) == ("one\ntwo\n", "")


def test_a_crash_is_reported() -> None:
    result = run_fake_memvm("run", "./crash")
    assert (result.returncode, result.stderr) == (139, f"memvm: {CRASH_REPORT}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_guest(number: signal.Signals, time_scale: float, runtime_dir: Path) -> None:
    with fake_memvm("run", "--name", "a", "./sleep") as process:
        wait_for_state("a", RunState.RUNNING, time_scale)
        process.send_signal(number)
        _out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == f"memvm: the guest was ended by {number.name}\n"
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize("attempt", range(8))
def test_a_signal_right_after_a_stop_ends_it(attempt: int, time_scale: float) -> None:
    """The kernel gives such a signal to whichever thread is awake first."""
    with fake_memvm("run", "--name", "a", "./sleep") as process:
        wait_for_state("a", RunState.RUNNING, time_scale)
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_loading_ends_it(
    number: signal.Signals, time_scale: float, tmp_path: Path, runtime_dir: Path
) -> None:
    (tmp_path / "slow").write_text("sleep")
    with fake_memvm("restore", "--eager", "--name", "a", tmp_path / "slow") as process:
        wait_for_state("a", RunState.STARTING, time_scale)
        process.send_signal(number)
        _out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, f"memvm: the guest was ended by {number.name}\n")
    assert list(runtime_dir.iterdir()) == []


def test_an_ignored_signal_stays_ignored(time_scale: float) -> None:
    arguments = ["nohup", *FAKE_MEMVM, "run", "--name", "a", "./sleep"]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, cwd=ROOT) as process:
        wait_for_state("a", RunState.RUNNING, time_scale)
        process.send_signal(signal.SIGHUP)
        with connect("a") as client:
            assert client.status().state is RunState.RUNNING
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 143


def test_the_time_limit() -> None:
    result = run_fake_memvm("run", "--time-limit", "100ms", "./sleep")
    assert result.returncode == 124
    assert result.stderr == "memvm: the guest ran longer than its time limit of 100.0 ms, and was ended\n"


def test_kill_ends_it_and_frees_the_name(time_scale: float, runtime_dir: Path) -> None:
    with fake_memvm("run", "--name", "a", "./sleep") as process:
        wait_for_state("a", RunState.RUNNING, time_scale)
        with connect("a") as client:
            assert client.kill("enough").reason == "enough"
        assert list(runtime_dir.iterdir()) == [], "all is gone when kill is done"
        _out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (137, "memvm: enough\n")


def test_kill_ends_a_guest_that_is_being_loaded(time_scale: float, tmp_path: Path) -> None:
    (tmp_path / "slow").write_text("sleep")
    with fake_memvm("restore", "--name", "a", tmp_path / "slow") as process:
        wait_for_state("a", RunState.STARTING, time_scale)
        with connect("a") as client:
            assert client.kill("enough").code == 143
        process.communicate(timeout=30)
    assert process.returncode == 143


def test_what_loading_raises_is_told(runtime_dir: Path) -> None:
    result = run_fake_memvm("run", "./nonsense")
    assert (result.returncode, result.stderr) == (
        65,
        "memvm: ./nonsense: not a program\n  try: take another\n",
    )
    assert list(runtime_dir.iterdir()) == []


def test_a_second_guest_of_a_name_is_refused(time_scale: float) -> None:
    with fake_memvm("run", "--name", "a", "./sleep"):
        wait_for_state("a", RunState.RUNNING, time_scale)
        result = run_fake_memvm("run", "--name", "a", "./exit", "0")
        assert result.returncode == GuestStateError.exit_code
        assert "'a' is running already" in result.stderr
        with connect("a") as client:
            client.kill("")


class TestReadyPipe:
    def ready(self, *arguments: str) -> tuple[int, list[dict[str, object]], str]:
        """Exit status, what came through the ready pipe, and standard error."""
        reading, writing = os.pipe()
        with subprocess.Popen(
            [*FAKE_MEMVM, "run", "--ready-fd", str(writing), *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            text=True,
            cwd=ROOT,
        ) as process:
            os.close(writing)
            with open(reading, "rb") as pipe:
                news = [decode(line) for line in pipe]
            _out, err = process.communicate(timeout=30)
        return process.returncode, news, err

    def test_a_start_and_an_end(self) -> None:
        code, (started, ended), err = self.ready("--name", "a", "./exit", "7")
        assert isinstance(started["ok"], dict) and started["ok"]["name"] == "a"
        assert ended == {"ended": {"code": 7, "signal": None, "reason": ""}}
        assert (code, err) == (7, "")

    def test_a_failure_is_told_there_and_nowhere_else(self) -> None:
        code, (failed,), err = self.ready("./nonsense")
        assert failed["error"] == {
            "kind": "ImageError",
            "message": "./nonsense: not a program",
            "hint": "take another",
            "exit_code": 65,
        }
        assert (code, err) == (65, "")

    def test_a_descriptor_that_is_none(self) -> None:
        result = run_fake_memvm("run", "--ready-fd", "99", "./sleep")
        assert (result.returncode, result.stderr) == (64, "memvm: descriptor 99 is not open\n")

    def test_a_reader_that_has_gone_is_no_error(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            result = subprocess.run(
                [*FAKE_MEMVM, "run", f"--ready-fd={writing}", "./exit", "3"],
                check=False,
                pass_fds=[writing],
                capture_output=True,
                cwd=ROOT,
                timeout=30,
            )
        finally:
            os.close(writing)
        assert (result.returncode, result.stderr) == (3, b"")
