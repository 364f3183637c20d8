"""Attacks on who carries out what a change of a setting means: stopped and killed, he makes no change without it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

import memvm
from memvm.errors import GuestStateError, MemvmError, SettingRefused
from memvm.machine.config import RunState
from memvm.manager.client import connect
from tests.sealed.conftest import secret
from tests.sealed.lab import SealedLab, ask, ready
from tests.sealed.test_attacks_on_memory import (
    found_in,
    have_ended,
    memory_of,
    needs_open_processes,
    platform_and_guest,
)
from tests.support import stop

PATIENCE = 0.2
"""Seconds to wait for an answer that cannot come."""


def asked_in_vain(guest: memvm.Guest) -> None:
    """A change, a save and a question, none of which is answered while nobody carries anything out."""
    with connect(guest.name, PATIENCE) as client, pytest.raises(MemvmError):
        client.request("set", timeout=PATIENCE, name="time-limit", value="1h")
    with connect(guest.name, PATIENCE) as client, pytest.raises(MemvmError):
        client.request("status", timeout=PATIENCE)


def until(condition: Callable[[], bool], time_scale: float) -> None:
    deadline = time.monotonic() + 30 * time_scale
    while not condition():
        assert time.monotonic() < deadline


def test_attack_16_enforcer_stopped_before_it_acts_for_a_sealed_guest(lab: SealedLab) -> None:
    """The platform is stopped: nothing is changed. When it goes on, it does what it was asked, and notes it."""
    with lab.launched("--setting=time-limit=none:record") as guest:
        platform, inside = (psutil.Process(pid) for pid in platform_and_guest(ready(guest)))
        try:
            stop(platform.pid)
            asked_in_vain(guest)
            assert inside.is_running()
        finally:
            platform.resume()
        until(lambda: guest.config().changes == 1, lab.cli.time_scale)
        assert '"after":"3600s"' in guest.config().log[0]
        assert ask(guest)


@pytest.mark.parametrize("behaviour", ["terminate", "revoke"])
def test_attack_16_enforcer_killed_before_it_acts_for_a_sealed_guest(lab: SealedLab, behaviour: str) -> None:
    """The platform is killed while it is asked for a change: the guest goes with it, and its secret is nowhere."""
    with lab.launched(f"--setting=time-limit=none:{behaviour}") as guest:
        platform, inside = (psutil.Process(pid) for pid in platform_and_guest(ready(guest)))
        stop(platform.pid)
        with connect(guest.name, PATIENCE) as client, suppress(MemvmError):
            client.request("set", timeout=PATIENCE, name="time-limit", value="1h")
        platform.kill()
        assert "its platform ended by signal 9" in guest.wait(30 * lab.cli.time_scale).reason
        assert have_ended([platform, inside], 30 * lab.cli.time_scale)


def test_attack_16_enforcer_stopped_before_it_acts_and_its_manager_killed(lab: SealedLab) -> None:
    """What is stopped does not notice; when it goes on, it ends its guest, and changes nothing."""
    needs_open_processes()
    with lab.launched("--setting=time-limit=none:record") as guest:
        platform, inside = (psutil.Process(pid) for pid in platform_and_guest(ready(guest)))
        stop(platform.pid)
        asked_in_vain(guest)
        assert not found_in(memory_of(guest.pid), {"the secret": secret()[:32]})
        os.kill(guest.pid, signal.SIGKILL)
        guest.wait(30 * lab.cli.time_scale)
        assert platform.is_running() and inside.is_running()
        platform.resume()
        assert have_ended([platform, inside], 30 * lab.cli.time_scale)
    lab.cli("ps", code=0)  # removes what the manager could not


@pytest.mark.parametrize("behaviour", ["terminate", "revoke", "reattest"])
def test_attack_16_enforcer_stopped_before_it_acts_by_its_own_guest(lab: SealedLab, behaviour: str) -> None:
    """The guest's process is stopped from outside, as if it were to be kept from hearing of a change."""
    with lab.launched(f"--setting=time-limit=none:{behaviour}") as guest:
        inside = psutil.Process(platform_and_guest(ready(guest))[1])
        inside.suspend()
        if behaviour == "terminate":
            with pytest.raises((SettingRefused, GuestStateError)):
                guest.change_setting("time-limit", "1h")
            assert "time-limit" in guest.wait(30 * lab.cli.time_scale).reason
            assert have_ended([inside], 30 * lab.cli.time_scale)
            return
        guest.change_setting("time-limit", "1h")
        assert guest.config().changes == 1
        inside.resume()
        if behaviour == "reattest":
            assert guest.status().state is RunState.PAUSED
            with pytest.raises(SettingRefused, match="token"):
                guest.resume()
        else:
            assert ask(guest)


def test_attack_14_debug_switched_on_after_launch_by_words_of_the_protocol(lab: SealedLab) -> None:
    """Whatever the manager asks its platform for: the setting was launched so that a change is refused."""
    with lab.launched() as guest, connect(ready(guest).name) as client:
        for name in ("debug", "observers", "cloning"):
            with pytest.raises(SettingRefused, match="launched so that a change is refused"):
                client.request("set", name=name, value="on")
        with pytest.raises(SettingRefused, match="launched so that a change is refused"):
            client.request("set", name="checkpoint", value="free")
        assert guest.config().changes == 0
