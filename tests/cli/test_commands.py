"""Each command against a manager of a fake guest, as a user sees it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from memvm.machine.config import RunState
from tests.manager.support import FAKE_MEMVM, ROOT, fake_memvm, run_fake_memvm, wait_for_state
from tests.support import stop


@pytest.fixture
def guest(time_scale: float) -> Iterator[subprocess.Popen[str]]:
    """A fake guest called "hub"."""
    with fake_memvm("run", "--name", "hub", "./sleep") as process:
        wait_for_state("hub", RunState.RUNNING, time_scale)
        yield process
        process.terminate()
        process.communicate(timeout=30)


def test_ps_shows_guests(guest: subprocess.Popen[str]) -> None:
    headings, line = run_fake_memvm("ps").stdout.splitlines()
    assert headings.split()[:4] == ["NAME", "STATE", "PID", "UP"]
    assert line.split()[:3] == ["hub", "running", str(guest.pid)]
    assert line.endswith("./sleep")


def test_ps_for_programs(guest: subprocess.Popen[str]) -> None:
    (shown,) = json.loads(run_fake_memvm("ps", "--json").stdout)
    assert (shown["name"], shown["manager_pid"], shown["status"]["state"]) == ("hub", guest.pid, "running")
    assert shown["manager_process"]["rss"] > 1 << 20


def test_ps_of_nobody() -> None:
    assert run_fake_memvm("ps").stdout.split()[0] == "NAME"
    assert json.loads(run_fake_memvm("ps", "--json").stdout) == []


def test_ps_lists_a_manager_that_does_not_answer(guest: subprocess.Popen[str]) -> None:
    stop(guest.pid)
    try:
        line = run_fake_memvm("ps").stdout.splitlines()[1]
    finally:
        guest.send_signal(signal.SIGCONT)
    assert line.startswith("hub   not answering")
    assert line.endswith("./sleep")


def test_pause_and_resume(guest: subprocess.Popen[str], time_scale: float) -> None:
    assert run_fake_memvm("pause", "hub").returncode == 0
    wait_for_state("hub", RunState.PAUSED, time_scale)
    again = run_fake_memvm("pause", "hub")
    assert (again.returncode, again.stderr) == (75, "memvm: guest 'hub' is paused already\n")
    assert run_fake_memvm("resume", "hub").returncode == 0
    wait_for_state("hub", RunState.RUNNING, time_scale)


def test_kill(guest: subprocess.Popen[str], runtime_dir: Path) -> None:
    assert run_fake_memvm("kill", "hub").returncode == 0
    assert list(runtime_dir.iterdir()) == []
    _out, err = guest.communicate(timeout=30)
    assert (guest.returncode, err) == (137, "memvm: the guest was ended by `memvm kill`\n")


def test_kill_of_several_ends_all_or_none(guest: subprocess.Popen[str], time_scale: float) -> None:
    with fake_memvm("run", "--name", "two", "./sleep") as other:
        wait_for_state("two", RunState.RUNNING, time_scale)
        result = run_fake_memvm("kill", "two", "hub", "three")
        assert (result.returncode, result.stderr.splitlines()[0]) == (66, "memvm: no running guest is called 'three'")
        wait_for_state("two", RunState.RUNNING, time_scale)
        assert run_fake_memvm("kill", "two", "hub").returncode == 0
        other.communicate(timeout=30)
    guest.communicate(timeout=30)
    assert (guest.returncode, other.returncode) == (137, 137)


def test_checkpoint_and_restore(guest: subprocess.Popen[str], tmp_path: Path, time_scale: float) -> None:
    path = tmp_path / "hub.ckpt"
    result = run_fake_memvm("checkpoint", "hub", os.path.relpath(path, ROOT), "--live")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "hub: 2.0 MiB saved as 5 B, 100% of its pages zero, in 1.25 s; frozen for 4.0 ms\n"
    with fake_memvm("restore", path) as restored:
        wait_for_state("hub-2", RunState.RUNNING, time_scale)
        listed = [line.split() for line in run_fake_memvm("ps").stdout.splitlines()[1:]]
        assert [(line[0], *line[-2:]) for line in listed[1:]] == [("hub-2", "sleep", "hub.ckpt")]
        assert listed[0][-1] == "./sleep"
        restored.terminate()
        restored.communicate(timeout=30)
    assert restored.returncode == 143


def test_checkpoint_for_programs(guest: subprocess.Popen[str], tmp_path: Path) -> None:
    report = json.loads(run_fake_memvm("checkpoint", "hub", tmp_path / "a", "--json").stdout)
    assert (report["path"], report["bytes_raw"]) == (str(tmp_path / "a"), 2 << 20)


def test_suspend_ends_the_guest(guest: subprocess.Popen[str], tmp_path: Path) -> None:
    result = run_fake_memvm("suspend", "hub", tmp_path / "a", "--time", "2s", "--data", "1M")
    assert result.returncode == 0
    assert result.stdout.startswith("hub: 2.0 MiB saved as ")
    assert "4.0 KiB of it more than once, in 1.25 s, for the last 4.0 ms of which it stood still" in result.stdout
    assert run_fake_memvm("ps", "--json").stdout.strip() == "[]", "when the command has ended its manager has, too"
    _, complaints = guest.communicate(timeout=30)
    assert guest.returncode == 0
    assert complaints == f"memvm: suspended to {tmp_path}/a\n"


def test_suspend_that_fails(guest: subprocess.Popen[str], tmp_path: Path, time_scale: float) -> None:
    result = run_fake_memvm("suspend", "hub", tmp_path / "full")
    assert result.returncode == 74
    assert result.stderr == f"memvm: {tmp_path}/full: no space left\n  try: make room\n"
    wait_for_state("hub", RunState.RUNNING, time_scale)


def test_checkpoint_that_fails(guest: subprocess.Popen[str], tmp_path: Path) -> None:
    result = run_fake_memvm("checkpoint", "hub", tmp_path / "full")
    assert result.returncode == 74
    assert result.stderr == f"memvm: {tmp_path}/full: no space left\n  try: make room\n"


def test_ctrl_c_gives_a_checkpoint_up(guest: subprocess.Popen[str], tmp_path: Path, time_scale: float) -> None:
    with fake_memvm("checkpoint", "hub", tmp_path / "slow") as saving:
        deadline = time.monotonic() + 20 * time_scale
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        saving.send_signal(signal.SIGINT)
        assert saving.communicate(timeout=30) == ("", "")
    assert saving.returncode == 130
    assert list(tmp_path.iterdir()) == [], "nothing is left of it when the command has ended"
    wait_for_state("hub", RunState.RUNNING, time_scale)


def test_a_terminal_gets_a_progress_bar(guest: subprocess.Popen[str], tmp_path: Path, time_scale: float) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [*FAKE_MEMVM, "checkpoint", "hub", str(tmp_path / "slow")],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
        env=environment,
    ) as saving:
        os.close(theirs)
        shown = b""
        while b"saving hub" not in shown:
            assert select.select([ours], [], [], 20 * time_scale)[0], shown
            shown += os.read(ours, 4096)
        saving.send_signal(signal.SIGINT)
        # Read on while it ends: on a terminal that nobody reads it would block.
        while True:
            try:
                if not os.read(ours, 4096):
                    break
            except OSError:  # EIO: the other side has closed it
                break
    os.close(ours)
    assert saving.returncode == 130


def test_dirty(guest: subprocess.Popen[str]) -> None:
    heading, *lines = run_fake_memvm("dirty", "hub", "--every", "10ms", "--count", "2").stdout.splitlines()
    assert heading.split() == ["INTERVAL", "WRITTEN", "PAGES", "RATE", "PUNCHED", "SEEN", "BY"]
    shown = "500.0 ms  8.0 KiB  2  16.0 KiB/s  4.0 KiB  made up"
    assert [line.split() for line in lines] == 2 * [shown.split()]
    assert all(line.index("8.0 KiB") == heading.index("WRITTEN") for line in lines), "columns are aligned"


def test_dirty_pages(guest: subprocess.Popen[str]) -> None:
    result = run_fake_memvm("dirty", "hub", "--every", "10ms", "--count", "1", "--pages")
    assert [line.split() for line in result.stdout.splitlines()[2:]] == [
        ["FROM", "TO", "PAGES"],
        ["written", "0x210000", "0x212000", "2"],
        ["punched", "0x30f40000", "0x30f41000", "1"],
    ]


def test_dirty_for_programs(guest: subprocess.Popen[str]) -> None:
    (line,) = run_fake_memvm("dirty", "hub", "--every", "10ms", "--count", "1", "--json", "--pages").stdout.splitlines()
    assert json.loads(line) == {
        "seconds": 0.5,
        "bytes_written": 8192,
        "pages_written": 2,
        "pages_punched": 1,
        "bytes_per_second": 16384.0,
        "means": "made up",
        "written": [[16, 2]],
        "punched": [[200_000, 1]],
    }


def test_dirty_ends_with_the_guest(guest: subprocess.Popen[str]) -> None:
    with fake_memvm("dirty", "hub", "--every", "10ms") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        assert watching.stdout.readline()
        guest.terminate()
        assert watching.wait(30) == 0


@pytest.mark.parametrize("option", [["--every", "1ms"], ["--count", "0"]])
def test_dirty_with_options_that_make_no_sense(option: list[str]) -> None:
    assert run_fake_memvm("dirty", "hub", *option).returncode == 64


def test_commands_about_nobody(time_scale: float) -> None:
    for command in (["kill", "x"], ["pause", "x"], ["resume", "x"], ["dirty", "x"], ["checkpoint", "x", "/tmp/y"]):
        result = run_fake_memvm(*command)
        assert result.returncode == 66
        assert result.stderr.startswith("memvm: no running guest is called 'x'\n  try: ")


def test_the_environment_of_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERM", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("SECRET", "s")
    ours = run_fake_memvm("run", "./env").stdout
    assert ours == "HOME=/home/x\nPATH=/bin:/usr/bin\n"
    given = run_fake_memvm("run", "--env", "A=1=2", "--env", "HOME=/", "--env", "SECRET", "--", "./env").stdout
    assert given == "A=1=2\nHOME=/\nPATH=/bin:/usr/bin\nSECRET=s\n"
    assert run_fake_memvm("run", "--clear-env", "--env", "A=", "./env").stdout == "A=\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["./exit", "5"],
        ["--", "./exit", "5"],
        ["--strict", "--ram", "64M", "--", "./exit", "5"],
        ["--ram=64M", "./exit", "5", "--ram", "--", "-v"],
        ["--engine", "mprotect", "--cpu", "0", "--strace", "--time-limit", "1h", "./exit", "5", "--help"],
    ],
    ids=" ".join,
)
def test_where_options_end_and_the_program_begins(arguments: list[str]) -> None:
    assert run_fake_memvm("run", *arguments).returncode == 5


def test_a_program_is_looked_up_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exit").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run_fake_memvm("run", "exit", "4").returncode == 65, "not executable"
    (tmp_path / "exit").chmod(0o755)
    assert run_fake_memvm("run", "exit", "4").returncode == 4


def test_closed_streams_are_filled_with_nothing(time_scale: float) -> None:
    """Otherwise a control socket could become the guest's standard output."""
    shell = " ".join([*FAKE_MEMVM, "run", "--name", "hub", "./sleep", "<&-", ">&-", "2>&-"])
    with subprocess.Popen(["sh", "-c", f"exec {shell}"], cwd=ROOT) as process:
        wait_for_state("hub", RunState.RUNNING, time_scale)
        open_files = [Path(f"/proc/{process.pid}/fd/{fd}").readlink() for fd in range(3)]
        psutil.Process(process.pid).terminate()
        process.wait(30)
    assert open_files == [Path("/dev/null")] * 3
