"""Security settings of running guests: what they forbid, and what happens when somebody changes one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

import memvm
from memvm.errors import CheckpointError, GuestStateError, MemvmError, SettingRefused
from memvm.linux import ptrace
from memvm.machine.config import RunState
from memvm.machine.layout import RAM_BASE
from memvm.machine.settings import Name
from memvm.manager.client import connect
from tests.machine.conftest import CProgram, c_program  # noqa: F401
from tests.support import MemvmCli, stop

DETACH = 17
"""PTRACE_DETACH of include/uapi/linux/ptrace.h."""
PAGE = RAM_BASE + 0x200000
"""Of the counter's image."""


def guest_of(guests: Mapping[str, Path], **settings: str) -> memvm.Guest:
    named = {name.replace("_", "-"): value for name, value in settings.items()}
    return memvm.Guest(
        [guests["sleeper"], "10", "0"], ram="64M", settings=named, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )


def test_attack_14_debug_switched_on_after_launch_is_refused(guests: Mapping[str, Path]) -> None:
    with guest_of(guests, debug="off:refuse", observers="off") as guest:
        for attempt in (
            lambda: guest.read_memory(PAGE, 16),
            lambda: guest.write_memory(PAGE, b"x"),
            guest.registers,
            lambda: list(guest.trace(seconds=0.1)),
            lambda: guest.dirty().__enter__(),
            guest.sample_working_set,
            lambda: guest.change_setting("debug", "on"),
        ):
            with pytest.raises(SettingRefused):
                attempt()
        assert guest.status().state is RunState.RUNNING
        guest.pause()
        guest.resume()
        assert guest.config().changes == 0


def test_attack_14_debug_switched_on_after_launch_is_noted(guests: Mapping[str, Path]) -> None:
    """It is allowed, and noted, where the guest was launched so."""
    with guest_of(guests, debug="off:record") as guest:
        with pytest.raises(SettingRefused, match="debug=on"):
            guest.registers()
        guest.change_setting("debug", "on")
        assert guest.registers()["rip"]
        config = guest.config()
        assert config.changes == 1
        assert '"after":"on"' in config.log[0]
        [debug] = [setting for setting in config.settings if setting.name == "debug"]
        assert (debug.value, debug.at_launch, debug.behaviour) == ("on", "off", "record")


def test_a_trace_ends_when_debug_does(guests: Mapping[str, Path]) -> None:
    with guest_of(guests, debug="on:record") as guest:
        batches = guest.trace(again=0.01)
        next(batches)
        guest.change_setting("debug", "off")
        with pytest.raises(SettingRefused):
            list(batches)


def test_terminate_ends_the_guest_first(guests: Mapping[str, Path]) -> None:
    with guest_of(guests, debug="off:terminate") as guest:
        with pytest.raises((SettingRefused, GuestStateError)):
            guest.change_setting("debug", "on")
        ending = guest.wait(20)
        assert ending.signal == signal.SIGKILL
        assert "debug" in ending.reason


def test_reattest_stops_the_guest(guests: Mapping[str, Path]) -> None:
    with guest_of(guests, debug="off:reattest") as guest:
        guest.change_setting("debug", "on")
        assert guest.status().state is RunState.PAUSED
        with pytest.raises(SettingRefused, match="token"):
            guest.resume()


def test_checkpoints_and_clones_are_forbidden(guests: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "guest.ckpt"
    with guest_of(guests, checkpoint="free:record", cloning="off") as guest:
        guest.checkpoint(file)
        for value, why in (("no", "checkpoint=no"), ("encrypted", "encrypted checkpoints cannot be made yet")):
            guest.change_setting("checkpoint", value)
            with pytest.raises(SettingRefused, match=why):
                guest.checkpoint(tmp_path / "other.ckpt")
            with pytest.raises(SettingRefused):
                guest.suspend(tmp_path / "other.ckpt")
    with pytest.raises((SettingRefused, CheckpointError), match="cloning"):
        memvm.restore_clones(file, 2)
    with memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as again:
        assert again.config().changes == 0


def test_settings_and_register_come_back(guests: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "guest.ckpt"
    with guest_of(guests, debug="off:record", wx="off") as guest:
        guest.change_setting("debug", "on")
        guest.checkpoint(file)
        before = guest.config()
    with memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as again:
        assert again.config() == before
        again.change_setting("debug", "off")
        assert again.config().changes == 2
        with pytest.raises(SettingRefused):
            again.registers()


def test_memory_rights_and_limits(c_program: CProgram) -> None:  # noqa: F811
    program = c_program("rights")

    def lines(**settings: str) -> list[bytes]:
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        with memvm.Guest([program], ram="64M", settings=named, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
            assert guest.stdout is not None
            return [guest.stdout.readline().split()[-1] for _ in range(6)]

    assert lines() == [b"mapped", b"changed", b"changed", b"mapped", b"mapped", b"0"]
    assert lines(wx="off", ram_limit="16M") == [b"EACCES", b"EACCES", b"changed", b"ENOMEM", b"EACCES", b"0"]


def given(guests: Mapping[str, Path], access: str, folder: Path, files: str) -> memvm.Guest:
    """A guest with a view of the host's files, and a setting that says which it may have."""
    return memvm.Guest(
        [guests["sleeper"], "10", "0"],
        ram="64M",
        settings={"files": files},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        ro=[folder] * (access == "ro"),
        rw=[folder] * (access == "rw"),
        pass_through=[folder] * (access == "pass_through"),
    )


@pytest.mark.parametrize(
    ("files", "refused"), [("none", ["ro", "rw", "pass_through"]), ("read-only", ["pass_through"]), ("write", [])]
)
def test_views_are_forbidden(files: str, refused: list[str], guests: Mapping[str, Path], tmp_path: Path) -> None:
    for access in ("ro", "rw", "pass_through"):
        if access in refused:
            with pytest.raises(SettingRefused, match=f"files={files}"):
                given(guests, access, tmp_path, files)
        else:
            given(guests, access, tmp_path, files).close()


def test_a_view_that_is_there_cannot_be_forbidden(guests: Mapping[str, Path], tmp_path: Path) -> None:
    with given(guests, "rw", tmp_path, "write:record") as guest:
        with pytest.raises(GuestStateError, match="--rw"):
            guest.change_setting("files", "none")
        guest.change_setting("files", "read-only")
        assert guest.config().changes == 1


def test_a_restore_gives_no_view_that_is_forbidden(guests: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "guest.ckpt"
    (folder := tmp_path / "folder").mkdir()
    with given(guests, "ro", folder, "read-only") as guest:
        guest.checkpoint(file)
    with pytest.raises(SettingRefused, match="files=read-only"):
        memvm.restore(file, pass_through=[folder], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    memvm.restore(file, rw=[folder], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL).close()


def test_a_restored_guest_has_its_views_and_settings(guests: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "guest.ckpt"
    with given(guests, "ro", tmp_path, "write:record") as guest:
        guest.checkpoint(file)
    with (
        memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as again,
        pytest.raises(GuestStateError, match="--ro"),
    ):
        again.change_setting("files", "none")


def test_w_and_x_cannot_be_forbidden_to_who_has_it(c_program: CProgram) -> None:  # noqa: F811
    with memvm.Guest([c_program("rights")], ram="64M", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        for _ in range(6):
            guest.stdout.readline()
        with pytest.raises(GuestStateError, match="writable and executable"):
            guest.change_setting("wx", "off")
        with pytest.raises(GuestStateError, match="allocated"):
            guest.change_setting("ram-limit", "8M")
        assert guest.config().changes == 0


def test_calls_that_are_not_in_the_list_are_denied(c_program: CProgram, memvm_cli: MemvmCli) -> None:  # noqa: F811
    names = (
        "read,write,fstat,newfstatat,ioctl,mmap,mprotect,brk,arch_prctl,set_tid_address,set_robust_list,"
        "rseq,prlimit64,readlinkat,readlink,getrandom"
    )
    command = ("run", "--ram", "64M", "--setting", f"hypercalls={names}", "--", c_program("rights"))
    assert memvm_cli(*command, code=0).text.splitlines()[-1] == "getppid: 1"  # EPERM


def test_the_time_limit_is_a_setting(guests: Mapping[str, Path]) -> None:
    with guest_of(guests) as guest:
        guest.change_setting("time-limit", "10ms")
        assert guest.wait(20).code == 124
    with guest_of(guests, time_limit="30s:refuse") as guest, pytest.raises(SettingRefused):
        guest.change_setting("time-limit", "none")


def test_attack_16_enforcer_stopped_before_it_acts(guests: Mapping[str, Path]) -> None:
    """A manager that is stopped makes no change; when it goes on, it does what was asked, and notes it."""
    with guest_of(guests, debug="off:record") as guest:
        stop(guest.pid)
        try:
            client = connect(guest.name, 0.3)
            with client, pytest.raises(MemvmError):
                client.request("set", timeout=0.3, name="debug", value="on")
            with connect(guest.name, 0.3) as client, pytest.raises(MemvmError):
                client.request("registers", timeout=0.3)
        finally:
            os.kill(guest.pid, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while not guest.config().changes:  # who asked has gone; what he asked for is done, and noted
            assert time.monotonic() < deadline


@contextmanager
def stopped(thread: int) -> Iterator[None]:
    """A thread of another process, traced and stopped while this is entered."""
    ptrace.seize(thread, ptrace.Option(0))
    ptrace.interrupt(thread)
    ptrace.wait(thread)
    try:
        yield
    finally:
        ptrace._request(DETACH, thread)


@pytest.mark.parametrize("behaviour", ["record", "revoke"])
def test_attack_16_enforcer_stopped_before_it_acts_a_thread_at_a_time(
    guests: Mapping[str, Path], behaviour: str
) -> None:
    """Whichever of its threads stands still: a change happens with its behaviour and its note, or not at all."""
    with guest_of(guests, debug=f"off:{behaviour}") as guest:
        threads = [int(path.name) for path in Path(f"/proc/{guest.pid}/task").iterdir()]
        for number, thread in enumerate(threads):
            value = "off" if number % 2 else "on"
            with stopped(thread), suppress(MemvmError), connect(guest.name, 0.1) as client:
                client.request("set", timeout=0.1, name="debug", value=value)
            guest.change_setting("debug", value)  # if it was not heard; if it was, that is no change
            config = guest.config()
            [debug] = [setting for setting in config.settings if setting.name == "debug"]
            assert json.loads(config.log[-1])["after"] == debug.value
        entries = [json.loads(entry) for entry in guest.config().log]
        assert len(entries) >= len(threads)
        assert [entry["before"] for entry in entries] == ["off", *(entry["after"] for entry in entries[:-1])]
        assert {entry["behaviour"] for entry in entries} == {behaviour}


def test_attack_16_enforcer_killed_before_it_acts(guests: Mapping[str, Path], memvm_cli: MemvmCli) -> None:
    """While it was asked: it takes the guest with it, which computes and asks for nothing that nobody would answer."""
    for behaviour in ("record", "terminate"):
        settings, words = {"debug": f"off:{behaviour}"}, [str(guests["avxloop"]), "1", "1000000000000"]
        with memvm.Guest(words, ram="64M", settings=settings, stderr=subprocess.PIPE) as guest:
            assert guest.stderr is not None
            assert guest.stderr.readline().startswith(b"avxloop")
            guest_pid = guest.status().guest_pid
            stop(guest.pid)
            with connect(guest.name, 0.1) as client, pytest.raises(MemvmError):
                client.request("set", timeout=0.1, name="debug", value="on")
            os.kill(guest.pid, signal.SIGKILL)
            guest.wait(20)
            deadline = time.monotonic() + 20
            while psutil.pid_exists(guest_pid):
                assert time.monotonic() < deadline
    memvm_cli("ps", code=0)  # removes what the dead manager left


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [("revoke", "tokens were revoked first, and its keys"), ("reattest", "stands still until it has a new token")],
)
def test_config_tells_what_a_change_did(
    behaviour: str, told: str, guests: Mapping[str, Path], memvm_cli: MemvmCli
) -> None:
    with guest_of(guests, debug=f"off:{behaviour}") as guest:
        text = memvm_cli("config", guest.name, "set", "debug=on", code=0).text
        assert text.startswith("debug is on now, and was off: the guest")
        assert told in text
        assert (f"memvm attest {guest.name} --verifier" in text) == (behaviour == "reattest")
        assert json.loads(memvm_cli("config", "--json", guest.name, "set", "debug=off", code=0).text)["changes"] == 2


def test_config_on_the_command_line(guests: Mapping[str, Path], memvm_cli: MemvmCli) -> None:
    with guest_of(guests, debug="off:record") as guest:
        assert "debug" in memvm_cli("config", guest.name, code=0).text
        told = memvm_cli("config", guest.name, "set", "debug=on", "debug=on", "observers=off", code=0).text
        assert told.splitlines() == [
            "debug is on now, and was off: the change is in its run-time register",
            "debug was on already",
            "observers is off now, and was on: the change is in its run-time register",
        ]
        shown = memvm_cli("config", guest.name, code=0).text
        assert "changes: 2" in shown
        assert memvm_cli("config", guest.name, "set", "debug=perhaps", code=64).err
        assert memvm_cli("config", guest.name, "unset", "debug", code=64).err
    assert set(json.loads(memvm_cli("config", "--list", "--json", code=0).text)) == set(Name)
    assert "debug" in memvm_cli("config", "--list", code=0).text
