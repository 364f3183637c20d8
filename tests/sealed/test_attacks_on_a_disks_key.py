"""A sealed worker with an encrypted disk and a key broker: where the disk's key is, and where it must not be."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest

from memvm.cli.demo_lab import SEALED, DemoLab, Running
from tests.sealed.test_attacks_on_memory import found_in, memory_of, needs_open_processes
from tests.support import descriptors_of
from tools.build_guests import missing_libraries

TEXT = b"what nobody but the worker may read\n" * 2000
COUNTED = f"{7 * 2000} words in {len(TEXT)} bytes"
REVOKES = ("--setting", "time-limit=none:revoke")


@pytest.fixture
def lab(guests: Mapping[str, Path]) -> Iterator[DemoLab]:
    if missing := missing_libraries("worker"):
        pytest.skip(f"the worker needs {', '.join(missing)}: apt-get install nettle-dev")
    parent = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="ms", dir=parent if len(parent) < 40 else "/tmp") as folder:
        yield DemoLab(Path(folder), guests["worker"])


def secrets_of(lab: DemoLab) -> dict[str, bytes]:
    """What to look for: the halves of the disk's key as such and as text, and what is on the disk."""
    text = json.loads(kept_by_broker(lab).read_text())["key"]
    key = bytes.fromhex(text)
    halves = {"its first half": key[:32], "its second half": key[32:]}
    texts = {f"{name} as text": half.hex().encode() for name, half in halves.items()}
    return {**halves, **texts, "the text": TEXT[:36]}


def kept_by_broker(lab: DemoLab) -> Path:
    return lab.directory / "broker" / "keys" / f"{lab.disk}.json"


def started(lab: DemoLab, running: ExitStack, *sealing: str) -> Running:
    """A worker that has counted."""
    command = ("run", "--name", "right", *lab.given(), *lab.launch(sealing))
    worker = running.enter_context(lab.running("right", *command))
    assert worker.line() == COUNTED
    return worker


def processes_of(worker: Running) -> tuple[int, int, int]:
    """Manager, platform and guest of a sealed one."""
    [platform] = psutil.Process(worker.process.pid).children()
    [guest] = platform.children()
    return worker.process.pid, platform.pid, guest.pid


@pytest.mark.parametrize("sealing", [SEALED, ()], ids=["sealed", "open"])
def test_attack_34_key_not_wiped_after_revocation_of_a_disk(lab: DemoLab, sealing: tuple[str, ...]) -> None:
    """When the change is answered, key and text are gone; the worker gets the key anew, by another attestation."""
    right = (*sealing, *REVOKES)
    lab.set_up(TEXT, right)
    with ExitStack() as running:
        running.enter_context(lab.served())
        worker, wanted = started(lab, running, *right), secrets_of(lab)
        held_by = processes_of(worker)[-1] if sealing else worker.process.pid
        is_seen = os.geteuid() == 0 or not sealing
        if is_seen:
            needs_open_processes()
            assert {"its first half", "its second half"} <= found_in(memory_of(held_by), wanted)
        lab.do("config", "right", "set", "time-limit=1h")
        if is_seen:
            assert not found_in(memory_of(held_by), wanted)
        assert worker.ask() == COUNTED
        assert lab.do("broker", "log", "--state", "broker").count("given") == 2


@pytest.mark.parametrize("sealing", [SEALED, ()], ids=["sealed", "open"])
def test_attack_34_key_not_wiped_after_revocation_of_a_disk_by_ending_its_guest(
    lab: DemoLab, sealing: tuple[str, ...]
) -> None:
    """Somebody keeps the guest's memory, as root can, when the guest itself has gone: the key is not in it."""
    if sealing and os.geteuid() != 0:
        pytest.skip("of a sealed guest only root gets hold of that")
    needs_open_processes()
    right = (*sealing, "--setting", "time-limit=none:terminate")
    lab.set_up(TEXT, right)
    with ExitStack() as running:
        running.enter_context(lab.served())
        worker, wanted = started(lab, running, *right), secrets_of(lab)
        kept = running.enter_context(ram_of(processes_of(worker)[1] if sealing else worker.process.pid))
        assert {"its first half", "its second half"} <= found_in([kept.read()], wanted)
        ended = lab.memvm("config", "right", "set", "time-limit=1h")
        kept.seek(0)
        assert not found_in([kept.read()], wanted)
        assert "the guest was launched to be ended then" in ended.err


def ram_of(pid: int) -> BinaryIO:
    """The memory file of the guest that a process has."""
    memory = [path for path, name in descriptors_of(pid) if "/memfd:" in name]
    return max(memory, key=lambda path: path.stat().st_size).open("rb")
