"""Guests that are suspended to a file while they run, and come back: nothing is lost, and what they used is known.

A suspend that goes wrong leaves the guest as it was.
"""

from __future__ import annotations

import random
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

import memvm
from memvm.checkpoint.chain import Chain
from memvm.errors import GuestStateError, MemvmError, SaveError
from memvm.faultpoints import FaultPoint
from memvm.manager.client import running as running_guests
from memvm.units import KIB, MIB
from tests.checkpoint.lives import PATIENCE, SCALE, Gate, Life, await_end, look, restored, running
from tests.checkpoint.test_save_goes_wrong import (
    ONE_MORE,
    SLOW,
    SMALL_BLOCK,
    SMALLEST_BLOCK,
    EndMeanwhile,
    GivenUp,
    SaveAgain,
    assert_goes_on,
    gate,
    give_up,
    names,
    patterns,
    small_disk,
)
from tests.checkpoint.test_save_restore import PATTERN_MODES, assert_continues, engine, native_output

__all__ = ["engine", "gate", "small_disk"]


def suspend(life: Life, path: Path, **options: Any) -> bytes:
    """Suspend the guest; returns all that it had written."""
    life.guest.suspend(path, **options)
    assert life.guest.wait().code == 0
    written = life.output()
    assert look(path).streams[1].file_offset == len(written)
    return written


@pytest.mark.parametrize("lazy", [True, False])
def test_output_and_memory_go_on(engine: str, lazy: bool, guests: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("4", "0", "25", "25", "50", "all")
    with running(tmp_path / "1", guests["patterns"], *arguments, engine=engine) as first:
        first.await_lines(3)
        before = suspend(first, tmp_path / "a")
        assert f"suspended to {tmp_path / 'a'}" in first.guest.wait().reason
        assert running_guests() == []
    with restored(tmp_path / "2", tmp_path / "a", engine=engine, lazy=lazy) as second:
        second.await_lines(5)
        assert_continues(before + second.output(), native_output(guests["patterns"], "4", "40", *arguments[2:]))
        assert second.complaints() == ""


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 11))])
def test_memory_stays_right_over_many_lives(seed: int, engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    dice = random.Random(seed)
    arguments = ["3", "0", "25", "25", "50", dice.choice(PATTERN_MODES[1:])]
    natively = native_output(guests["patterns"], "3", "100", *arguments[2:])
    before, path = b"", tmp_path / "a"

    def live_on(life: Life) -> bytes:
        life.await_lines(dice.randint(1, 3))
        bounds: dict[str, Any] = dice.choice([{}, {"time": 0.0}, {"time": 0.03}, {"data": dice.randint(0, 6 * MIB)}])
        return suspend(life, path, block_size=dice.choice((64 * KIB, MIB)), level=dice.choice((-5, 1)), **bounds)

    with running(tmp_path / "0", guests["patterns"], *arguments, engine=engine) as life:
        before += live_on(life)
    for number in range(1, 6):
        with restored(tmp_path / f"{number}", path, engine=engine, lazy=dice.random() < 0.7) as life:
            before += live_on(life)
            assert life.complaints() == ""
    assert_continues(before, natively)
    assert look(path).generation == 5


def test_a_paused_guest_is_suspended(guests: dict[str, Path], tmp_path: Path) -> None:
    with patterns(guests, tmp_path) as life:
        life.guest.pause()
        suspend(life, tmp_path / "a")
    with restored(tmp_path / "again", tmp_path / "a") as life:
        assert_goes_on(life)


def test_bounds_stop_the_guest(guests: dict[str, Path], tmp_path: Path) -> None:
    bounds: dict[str, Any]
    for bounds in ({"time": 0.0}, {"data": 0}):
        with patterns(guests, tmp_path) as life:
            report = life.guest.suspend(tmp_path / "a", **bounds)
            assert report.rounds == 0
            assert report.bytes_again == 0
    with patterns(guests, tmp_path) as life:
        for bounds in ({"time": -1.0}, {"time": 1e6}, {"data": -1}, {"level": 99}, {"block_size": 1}):
            with pytest.raises(memvm.UsageError):
                life.guest.suspend(tmp_path / "a", **bounds)
        assert_goes_on(life)


def test_what_was_given_back_does_not_come_again(guests: dict[str, Path], tmp_path: Path) -> None:
    """A guest that maps and unmaps all the time has in the file only what it had in the end."""
    with running(tmp_path / "life", guests["patterns"], "4", "0", "0", "25", "50", "mmap") as life:
        life.await_lines(1)
        report = life.guest.suspend(tmp_path / "a", block_size=64 * KIB)
    inspected = look(tmp_path / "a")
    assert inspected.ram.pages_data + inspected.ram.pages_zero == report.bytes_raw // 4096


@pytest.mark.parametrize("how", ["suspend", "live"])
def test_used_pages_are_known_and_together(
    how: str, engine: str, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a graph of 64 MiB, a guest walks about in 4. Its save goes on when it has come by most of them."""
    arguments = ("64", "0", "5000", "4")
    gate = Gate(tmp_path / "gate")
    point = FaultPoint.SUSPEND_ROUND if how == "suspend" else FaultPoint.SAVE_TRACED
    monkeypatch.setenv("MEMVM_FAULTS", f"{point}=hold={gate}@1")
    with running(tmp_path / "life", guests["walk"], *arguments, engine=engine) as life:
        life.await_lines(1)
        with gate.shut_for_lines(life, 2):
            if how == "suspend":
                suspend(life, tmp_path / "a")
            else:
                life.save(tmp_path / "a", live=True)
    used = set(range(1024))
    with Chain.open(tmp_path / "a") as chain:
        heap = min(first for first, _ in _largest_runs(chain))
        found = {page - heap for page in chain.active.pages}
        assert len(found & used) >= 0.9 * len(used), "recall"
        assert len(found & used) >= 0.8 * len(found), "precision"
        first = [page for page in chain.active.pages if 0 <= page - heap < 1024]
        written = sum(chain.active.kinds[chain.active.pages.index(page)] >> 1 for page in first)
        # A live save hears of no write to a page that it has stored already.
        least = 0.3 if (how, engine) == ("suspend", "userfaultfd") else 0
        assert written >= least * len(first), "a walk writes to each page that it comes by"


def _largest_runs(chain: Chain) -> list[tuple[int, int]]:
    runs = chain.index.united_runs()
    most = max(run.count for run in runs)
    return [(run.first, run.count) for run in runs if run.count == most]


# What goes wrong.


def test_suspend_is_given_up(
    engine: str, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMVM_FAULTS", SLOW)
    (tmp_path / "files").mkdir()
    with patterns(guests, tmp_path, engine=engine) as life:
        with pytest.raises(GivenUp):
            life.guest.suspend(tmp_path / "files" / "a", block_size=SMALLEST_BLOCK, progress=give_up)
        assert names(tmp_path / "files") == []
        assert_goes_on(life)
        suspend(life, tmp_path / "files" / "a")
    assert names(tmp_path / "files") == ["a"]


def test_second_save_at_once_is_refused(gate: Gate, guests: dict[str, Path], tmp_path: Path) -> None:
    with patterns(guests, tmp_path) as life:
        save_again = SaveAgain(life, tmp_path / "b", gate)
        life.guest.suspend(tmp_path / "a", progress=save_again)
    assert "is being saved already" in save_again.refusal
    assert not (tmp_path / "b").exists()


def test_guest_is_killed_during_a_suspend(
    engine: str, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            life.guest.suspend(tmp_path / "files" / "a", block_size=SMALLEST_BLOCK, progress=kill)
        killers[0].join()
        assert life.guest.wait(PATIENCE * SCALE).code == 137
    assert names(tmp_path / "files") == []


def test_guest_ends_by_itself_during_a_suspend(
    engine: str, gate: Gate, guests: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    with running(tmp_path / "life", guests["patterns"], *ONE_MORE, engine=engine, pause_after_calls=1) as life:
        life.stand_at_line(1)
        with pytest.raises(GuestStateError, match="ended"):
            life.guest.suspend(tmp_path / "files" / "a", progress=EndMeanwhile(life, gate))
        assert life.guest.wait(PATIENCE * SCALE).code == 0
        assert life.output().count(b"\n") == 2
    assert names(tmp_path / "files") == []


@pytest.mark.parametrize(
    "point", [point for point in FaultPoint if point.startswith(("save.", "suspend.")) and point != "save.traced"]
)
def test_manager_is_killed_during_a_suspend(
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
            life.guest.suspend(files / "a", block_size=SMALL_BLOCK)
        assert life.guest.wait(PATIENCE * SCALE).code == 137
        await_end(pid)
    monkeypatch.delenv("MEMVM_FAULTS")
    assert running_guests() == []
    renamed = point in (FaultPoint.SAVE_AFTER_RENAME, FaultPoint.SUSPEND_SAVED)
    assert ((files / "a").read_bytes() == old) == (not renamed)
    with restored(tmp_path / "again", files / "a") as life:
        assert_goes_on(life)
        suspend(life, files / "a")
    assert names(files) == ["a"]


@pytest.mark.parametrize("point", [FaultPoint.SUSPEND_ROUND, FaultPoint.SUSPEND_STOPPED])
def test_guest_runs_on_after_a_failure(
    point: FaultPoint, engine: str, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMVM_FAULTS", f"{point}=eio@1")
    (tmp_path / "files").mkdir()
    with patterns(guests, tmp_path, engine=engine) as life:
        with pytest.raises(MemvmError):
            life.guest.suspend(tmp_path / "files" / "a")
        assert names(tmp_path / "files") == []
        assert_goes_on(life)
        suspend(life, tmp_path / "files" / "a")


def test_file_may_not_grow(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with patterns(guests, tmp_path, engine=engine) as life:
        life.save(files / "a")
        old = (files / "a").read_bytes()
        resource.prlimit(life.guest.pid, resource.RLIMIT_FSIZE, (1 * MIB, resource.RLIM_INFINITY))
        for seconds in (30.0, 0.0):  # while the guest runs, and while it stands still
            with pytest.raises(SaveError, match="larger than is allowed"):
                life.guest.suspend(files / "a", block_size=SMALL_BLOCK, time=seconds)
            assert names(files) == ["a"]
            assert (files / "a").read_bytes() == old
            assert_goes_on(life)
        resource.prlimit(life.guest.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        suspend(life, files / "a")


def test_disk_is_full(guests: dict[str, Path], small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "a").write_bytes(b"old")
    with patterns(guests, tmp_path) as life:
        with pytest.raises(SaveError, match="the disk is full"):
            life.guest.suspend(small_disk / "a")
        assert names(small_disk) == ["a"]
        assert (small_disk / "a").read_bytes() == b"old"
        assert_goes_on(life)
