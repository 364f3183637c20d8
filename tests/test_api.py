"""memvm.Guest and memvm.restore, with fake guests in managers of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import memvm
from memvm.machine.config import ExitStatus, RunState
from memvm.manager import launch
from memvm.manager.client import running
from tests.manager.fakes import BAD_PAGE, CRASH_REPORT, RAM_START, fake_modules

BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from tests.manager.fakes import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_BOOT", BOOT)
    for name, module in fake_modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def test_a_guest_runs_to_its_end() -> None:
    with memvm.Guest(["./exit", "7"]) as guest:
        assert guest.wait() == ExitStatus(7)
        assert guest.wait(0) == ExitStatus(7), "asking again is no error"
    assert repr(guest) == "<memvm.Guest 'exit', ended with 7>"


def test_its_streams_are_pipes_if_wanted() -> None:
    with memvm.Guest(["./cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdin is not None and guest.stdout is not None and guest.stderr is None
        guest.stdin.write(b"hello")
        guest.stdin.close()
        assert guest.stdout.read() == b"hello"
        assert guest.wait(30).code == 0


def test_leaving_the_block_ends_it() -> None:
    with memvm.Guest(["./sleep"], name="hub", stderr=subprocess.PIPE) as guest:
        assert (guest.name, [entry.pid for entry in running()]) == ("hub", [guest.pid])
    assert running() == []
    assert guest.wait().code == 143
    guest.close()


def test_a_crash_is_in_the_ending() -> None:
    with memvm.Guest(["./crash"]) as guest:
        assert guest.wait() == ExitStatus(139, 11, CRASH_REPORT)


def test_wait_gives_up_in_time() -> None:
    with memvm.Guest(["./sleep"]) as guest, pytest.raises(TimeoutError):
        guest.wait(0.05)


def test_several_threads_may_wait() -> None:
    endings: list[ExitStatus] = []
    with memvm.Guest(["./sleep"]) as guest:
        waiters = [threading.Thread(target=lambda: endings.append(guest.wait())) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
        with pytest.raises(TimeoutError):
            guest.wait(0.05)
        assert guest.kill().code == 137
        for waiter in waiters:
            waiter.join()
    assert [ending.code for ending in endings] == [137] * 3


def test_what_can_be_asked_of_it() -> None:
    with memvm.Guest(["./sleep"]) as guest:
        guest.pause()
        assert guest.status().state is RunState.PAUSED
        guest.resume()
        assert guest.registers()["rip"] == 0x401000
        guest.write_memory(RAM_START + 1, b"abc")
        assert guest.read_memory(RAM_START, 4) == b"\0abc"
        with pytest.raises(memvm.BadPage):
            guest.read_memory(BAD_PAGE, 1)


def test_after_its_end_nothing_can() -> None:
    with memvm.Guest(["./sleep"], name="hub") as guest:
        assert guest.kill().code == 137
        assert guest.kill().code == 137
        with memvm.Guest(["./sleep"], name="hub") as other:
            with pytest.raises(memvm.GuestStateError, match="has ended"):
                guest.status()
            assert other.status().state is RunState.RUNNING


def test_after_an_end_that_nobody_waited_for_nothing_can_either() -> None:
    with memvm.Guest(["./exit", "7"]) as guest:
        os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(memvm.GuestStateError, match="has ended"):
            guest.status()
        assert guest.kill().code == 7


def test_another_guest_of_the_same_name_is_not_taken_for_it() -> None:
    with memvm.Guest(["./sleep"], name="hub") as guest:
        subprocess.run([sys.executable, "-m", "memvm", "kill", "hub"], check=True)
        with memvm.Guest(["./sleep"], name="hub") as other:
            with pytest.raises(memvm.GuestStateError, match="has ended"):
                guest.pause()
            assert other.status().state is RunState.RUNNING


def test_a_manager_that_is_killed_is_an_ending_too() -> None:
    with memvm.Guest(["./sleep"]) as guest:
        guest._manager.process.kill()
        assert guest.wait().code == 137
    assert running() == []


def test_a_guest_that_is_just_ending_has_ended(runtime_dir: Path) -> None:
    with memvm.Guest(["./sleep"], name="hub") as guest:
        (runtime_dir / "hub.sock").unlink()  # as a manager does, before it gives the name back
        with pytest.raises(memvm.GuestStateError, match="'hub' has ended"):
            guest.status()
        guest._manager.process.kill()
        os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(memvm.GuestStateError, match="'hub' has ended"):
            guest.pause()
        assert guest.kill().code == 137


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    seen: list[int] = []
    with memvm.Guest(["./sleep"]) as guest:
        report = guest.checkpoint(tmp_path / "a", progress=lambda done, _total: seen.append(done))
        assert (report.path, report.pages_zero) == (str(tmp_path / "a"), 511)
        assert seen
        with pytest.raises(memvm.SaveError, match="no space left"):
            guest.checkpoint(tmp_path / "full")
    for lazy in (True, False):
        with memvm.restore(tmp_path / "a", lazy=lazy, name="again") as again:
            assert again.status().state is RunState.RUNNING


def test_the_environment_is_what_is_given() -> None:
    with memvm.Guest(["./env"], env={"A": "1", "B": "ä=\n"}, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        assert guest.stdout.read().decode() == "A=1\nB=ä=\n\n"


@pytest.mark.parametrize(
    ("argv", "options", "error"),
    [
        (["./nonsense"], {}, memvm.ImageError),
        (["no-such-program-anywhere"], {}, memvm.ImageError),
        (["./sleep"], {"name": "a/b"}, memvm.UsageError),
        (["./sleep"], {"ram": "lots"}, memvm.UsageError),
        ([], {}, memvm.UsageError),
        ("sleep", {}, memvm.UsageError),
    ],
    ids=str,
)
def test_what_goes_wrong_at_the_start_is_raised(
    argv: list[str], options: dict[str, str], error: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error):
        memvm.Guest(argv, **options)  # type: ignore[arg-type]
    assert capfd.readouterr().err == "", "and it is not printed as well"


def test_a_manager_that_cannot_start_is_a_host_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_BOOT", "import sys; sys.exit(3)")
    with pytest.raises(memvm.HostError, match="status 3"):
        memvm.Guest(["./sleep"])


def test_an_unknown_engine_is_a_usage_error() -> None:
    with pytest.raises(memvm.UsageError):
        memvm.Guest(["./sleep"], engine="steam", stderr=subprocess.DEVNULL)
