"""Saves that fail, are given up or are killed: the guest goes on or is gone, and the old file is whole."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import memvm
from memvm.errors import GuestStateError, SaveError
from memvm.faultpoints import FaultPoint
from memvm.machine.config import EngineChoice, GuestConfig, RunOptions
from memvm.machine.machine import Machine
from memvm.machine.paging import Paging
from memvm.manager.client import running as running_guests
from memvm.memory.engine import FaultEngine
from memvm.memory.pages import PageRun
from memvm.memory.ram import GuestRam
from memvm.memory.snapshot import Snapshot
from memvm.units import KIB, MIB, PAGE_SIZE
from tests.checkpoint.lives import PATIENCE, SCALE, Gate, Life, await_end, restored, running

SMALL_BLOCK = 256 * KIB
SLOW = "save.block_write=stall=0.1"
"""Makes sixteen writes of a save take about a second."""
SMALLEST_BLOCK = 64 * KIB
"""For saves that end early: with these, one that went on would take seconds."""
MEMORY = ("4", "0", "10", "0", "0", "plain")
"""Arguments of patterns: incompressible memory, so that it makes sixteen small blocks."""
ONE_MORE = ("4", "2", *MEMORY[2:])
"""The same, and the guest ends with its second line."""


@contextmanager
def patterns(guests: dict[str, Path], folder: Path, **options: Any) -> Iterator[Life]:
    with running(folder / "life", guests["patterns"], *MEMORY, **options) as life:
        life.await_lines(1)
        yield life


def assert_goes_on(life: Life) -> None:
    """It runs, its memory is right, and it can be saved."""
    life.await_lines(life.output().count(b"\n") + 2)
    assert b"should be" not in life.output()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class GivenUp(Exception):
    pass


def give_up(_done: int, _total: int) -> None:
    raise GivenUp


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("engine", ["auto", "mprotect"])
def test_save_is_given_up(
    engine: str, live: bool, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMVM_FAULTS", SLOW)
    (tmp_path / "files").mkdir()
    with patterns(guests, tmp_path, engine=engine) as life:
        with pytest.raises(GivenUp):
            life.guest.checkpoint(tmp_path / "files" / "a", live=live, block_size=SMALLEST_BLOCK, progress=give_up)
        assert names(tmp_path / "files") == []
        assert_goes_on(life)
        life.save(tmp_path / "files" / "a", live)
        assert names(tmp_path / "files") == ["a"]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Where saves are held before they write their first block."""
    gate = Gate(tmp_path / "gate")
    monkeypatch.setenv("MEMVM_FAULTS", f"save.block_write=hold={gate}")
    gate.shut()
    return gate


class SaveAgain:
    """A progress of a save that tries to save the guest another time, and then opens the gate for the first one."""

    def __init__(self, life: Life, path: Path, gate: Gate) -> None:
        self._life, self._path, self._gate = life, path, gate
        self.refusal = ""

    def __call__(self, _done: int, _total: int) -> None:
        if not self.refusal:
            with pytest.raises(GuestStateError) as raised:
                self._life.guest.checkpoint(self._path)
            self.refusal = raised.value.message
            self._gate.open()


@pytest.mark.parametrize("live", [True, False])
def test_second_save_at_once_is_refused(live: bool, gate: Gate, guests: dict[str, Path], tmp_path: Path) -> None:
    with patterns(guests, tmp_path) as life:
        save_again = SaveAgain(life, tmp_path / "b", gate)
        life.guest.checkpoint(tmp_path / "a", live=live, progress=save_again)
        assert "is being saved already" in save_again.refusal
        assert not (tmp_path / "b").exists()
        assert_goes_on(life)
    with restored(tmp_path / "again", tmp_path / "a") as life:
        assert_goes_on(life)


class EndMeanwhile:
    """A progress of a save that lets a guest that stands still go on to its end, and opens the gate then."""

    def __init__(self, life: Life, gate: Gate) -> None:
        self._life, self._gate = life, gate
        self._pid = life.guest.status().guest_pid

    def __call__(self, _done: int, _total: int) -> None:
        if self._pid:
            self._life.guest.resume()
            await_end(self._pid)
            self._pid = 0
            self._gate.open()


@pytest.mark.parametrize("engine", ["auto", "mprotect"])
def test_guest_ends_by_itself_during_a_live_save(
    engine: str, gate: Gate, guests: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    with running(tmp_path / "life", guests["patterns"], *ONE_MORE, engine=engine, pause_after_calls=1) as life:
        life.stand_at_line(1)
        with pytest.raises(GuestStateError, match="ended"):
            life.guest.checkpoint(tmp_path / "files" / "a", live=True, progress=EndMeanwhile(life, gate))
        assert life.guest.wait(PATIENCE * SCALE).code == 0
        assert life.output().count(b"\n") == 2
    assert names(tmp_path / "files") == []


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("engine", ["auto", "mprotect"])
def test_guest_is_killed_during_a_save(
    engine: str, live: bool, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMVM_FAULTS", SLOW)
    (tmp_path / "files").mkdir()
    killers: list[threading.Thread] = []

    def kill(_done: int, _total: int) -> None:
        if not killers:
            killers.append(threading.Thread(target=life.guest.kill))
            killers[0].start()

    with patterns(guests, tmp_path, engine=engine) as life:
        with pytest.raises(GuestStateError, match="ended"):
            life.guest.checkpoint(tmp_path / "files" / "a", live=live, block_size=SMALLEST_BLOCK, progress=kill)
        killers[0].join()
        assert life.guest.wait(PATIENCE * SCALE).code == 137
    assert names(tmp_path / "files") == []


@pytest.mark.parametrize("point", [point for point in FaultPoint if point.startswith("save.")])
def test_manager_is_killed_during_a_save(
    point: FaultPoint, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file is whole, or the new one is; the guest is gone; the next commands clean the rest."""
    files = tmp_path / "files"
    files.mkdir()
    with patterns(guests, tmp_path) as life:
        life.save(files / "a")
    old = (files / "a").read_bytes()
    monkeypatch.setenv("MEMVM_FAULTS", f"{point}=kill")
    with patterns(guests, tmp_path) as life:
        pid = life.guest.status().guest_pid
        with pytest.raises(GuestStateError, match="ended"):
            life.guest.checkpoint(files / "a", live=point == FaultPoint.SAVE_TRACED, block_size=SMALL_BLOCK)
        assert life.guest.wait(PATIENCE * SCALE).code == 137
        await_end(pid)
    monkeypatch.delenv("MEMVM_FAULTS")
    assert running_guests() == []
    assert ((files / "a").read_bytes() == old) == (point != FaultPoint.SAVE_AFTER_RENAME)
    with restored(tmp_path / "again", files / "a") as life:
        assert_goes_on(life)
        life.save(files / "a")
    assert names(files) == ["a"]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("engine", ["auto", "mprotect"])
def test_file_may_not_grow(engine: str, live: bool, guests: dict[str, Path], tmp_path: Path) -> None:
    """A limit on the size of files, put on the running manager, as a disk that is too small for the file."""
    files = tmp_path / "files"
    files.mkdir()
    with patterns(guests, tmp_path, engine=engine) as life:
        life.save(files / "a", live)
        old = (files / "a").read_bytes()
        resource.prlimit(life.guest.pid, resource.RLIMIT_FSIZE, (1 * MIB, resource.RLIM_INFINITY))
        with pytest.raises(SaveError, match="larger than is allowed") as raised:
            life.guest.checkpoint(files / "a", live=live, block_size=SMALL_BLOCK)
        assert raised.value.hint
        assert names(files) == ["a"]
        assert (files / "a").read_bytes() == old
        resource.prlimit(life.guest.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert_goes_on(life)
        life.save(files / "a", live)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "memvm-test", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not let root mount: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("live", [True, False])
def test_disk_is_full(live: bool, guests: dict[str, Path], small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "a").write_bytes(b"old")
    with patterns(guests, tmp_path) as life:
        with pytest.raises(SaveError, match="the disk is full"):
            life.guest.checkpoint(small_disk / "a", live=live)
        assert names(small_disk) == ["a"]
        assert (small_disk / "a").read_bytes() == b"old"
        assert os.statvfs(small_disk).f_bfree >= 250, "the space is free again"
        assert_goes_on(life)
        life.save(tmp_path / "a", live)


def test_impossible_options_are_refused(guests: dict[str, Path], tmp_path: Path) -> None:
    with patterns(guests, tmp_path) as life:
        for level, block_size in ((23, 1 * MIB), (-101, 1 * MIB), (1, 1), (1, 1 << 40)):
            with pytest.raises(memvm.UsageError):
                life.guest.checkpoint(tmp_path / "a", level=level, block_size=block_size)
        with pytest.raises(SaveError, match="directory"):
            life.guest.checkpoint(tmp_path / "nowhere" / "a")
        assert not (tmp_path / "a").exists()
        assert_goes_on(life)


def test_fault_is_answered_after_the_save_has_ended(guests: dict[str, Path]) -> None:
    """The guest wrote, the save ended, and only then was it looked at what the guest waits for."""
    config = GuestConfig(str(guests["kv"]), ("kv",), ram_size=64 * MIB)
    for engine in (EngineChoice.AUTO, EngineChoice.MPROTECT):
        machine = Machine.launch(config, RunOptions(name="late", engine=engine))
        try:
            Paging(machine.ram, machine.engine).write(0, 0)
        finally:
            machine.close()


class _QuietEngine(FaultEngine):
    """Guards nothing: the test itself is the guest, and says what it writes."""

    name = "quiet"
    poisons = False
    guards_while_running = True
    grain = 1

    def nothing(self, *_arguments: Any, **_more: Any) -> None:
        """What this engine does."""

    start = defer = defer_no_more = place = place_zeros = poison = nothing
    begin_guarding = guard = unguard = end_guarding = heal = stop = nothing
    begin_tracing = hide = reveal = end_tracing = nothing


def test_memory_touched_while_a_live_save_prepares_is_saved() -> None:
    """Also where it lies between pages that were found before, and nobody noted the write."""
    ram = GuestRam(0x1_0000_0000, 1 * MIB)
    try:
        for page in (0, 9, 200):
            ram.write(ram.base + page * PAGE_SIZE, b"old")
        snapshot = Snapshot(ram, _QuietEngine(ram))
        snapshot.prepare()
        for page in (5, 100, 255):
            ram.write(ram.base + page * PAGE_SIZE, b"new")
        assert snapshot.instant() == [PageRun(page, 1) for page in (0, 5, 9, 100, 200, 255)]
        snapshot.end()
    finally:
        ram.close()
