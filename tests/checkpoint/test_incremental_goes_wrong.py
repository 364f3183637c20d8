"""Saves on top of a parent, failed suspends before them, and merges, killed or failing at each fault point.

The parent is whole whatever happens, and so is the old file until the new one is; the guest goes on, or is gone with
its manager; nothing is left; and the next save on top of the parent has all that changed. At random and on guests
whose every page is known, the same happens in test_random_lives.py.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from memvm.checkpoint.merge import merge
from memvm.errors import GuestStateError, MemvmError
from memvm.faultpoints import FaultPoint
from memvm.manager.client import running as running_guests
from memvm.units import MIB
from tests.checkpoint.lives import PATIENCE, SCALE, Life, await_end, look, restored, running
from tests.checkpoint.test_incremental import CHANGING, ENGINES
from tests.checkpoint.test_save_goes_wrong import SMALL_BLOCK, names
from tests.checkpoint.test_save_restore import assert_continues, native_output
from tests.support import MemvmCli

POINTS = [point for point in FaultPoint if point.startswith("save.") and point != FaultPoint.SAVE_TRACED]
SUSPEND_POINTS = [*POINTS, *(point for point in FaultPoint if point.startswith("suspend."))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_whole(files: Path, before: dict[str, bytes], target: str, replaced: bool) -> None:
    """All files are as before, but for the target if its new version has the name already."""
    after = contents(files)
    assert {name: after[name] for name in before if name != target} == {
        name: data for name, data in before.items() if name != target
    }
    assert (after[target] != before[target]) == replaced


@pytest.fixture
def files(guests: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with a parent, a, and a file on top of it, b."""
    folder = tmp_path / "files"
    folder.mkdir()
    with running(tmp_path / "first", guests["patterns"], *CHANGING) as life:
        life.await_lines(1)
        life.save(folder / "a")
        life.await_lines(life.output().count(b"\n") + 1)
        life.guest.checkpoint(folder / "b", parent=folder / "a")
    return folder


def assert_next_save_is_right(life: Life, files: Path, parent: str, guests: dict[str, Path], before: bytes) -> None:
    """It runs, is saved on top of the parent, and goes on from there; nothing else is left in the folder."""
    life.await_lines(life.output().count(b"\n") + 1)
    there = set(names(files)) - {name for name in names(files) if name.startswith(".")}
    life.guest.checkpoint(files / "b", parent=files / parent)
    assert set(names(files)) == there | {"b"}
    offset = look(files / "b").streams[1].file_offset
    assert offset is not None
    before += life.output()[:offset]
    natively = native_output(guests["patterns"], CHANGING[0], "60", *CHANGING[2:])
    with restored(files.parent / "last", files / "b") as last:
        last.await_lines(3)
        assert_continues(before + last.output(), natively)
        assert last.complaints() == ""


@pytest.mark.parametrize(("point", "live"), [(point, number % 2 == 0) for number, point in enumerate(POINTS)])
def test_manager_is_killed(
    point: FaultPoint, live: bool, files: Path, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a guest is saved that was restored from the parent and changed since."""
    offset = look(files / "a").streams[1].file_offset
    printed = (tmp_path / "first" / "out").read_bytes()[:offset]
    old = contents(files)
    monkeypatch.setenv("MEMVM_FAULTS", f"{point}=kill")
    with restored(tmp_path / "killed", files / "a", lazy=live) as life:
        life.await_lines(1)
        pid = life.guest.status().guest_pid
        with pytest.raises(GuestStateError, match="ended"):
            life.guest.checkpoint(files / "b", live=live, parent=files / "a", block_size=SMALL_BLOCK)
        assert life.guest.wait(PATIENCE * SCALE).code == 128 + signal.SIGKILL
        await_end(pid)
    monkeypatch.delenv("MEMVM_FAULTS")
    assert running_guests() == []
    assert_whole(files, old, "b", replaced=point == FaultPoint.SAVE_AFTER_RENAME)
    with restored(tmp_path / "again", files / "a") as life:
        assert_next_save_is_right(life, files, "a", guests, printed)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("point", "live"), [(point, number % 2 == 0) for number, point in enumerate(POINTS)])
def test_save_fails(
    point: FaultPoint, live: bool, engine: str, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second save of a guest, on top of its first, which fires each point once."""
    monkeypatch.setenv("MEMVM_FAULTS", f"{point}=eio@2")
    files = tmp_path / "files"
    files.mkdir()
    (files / "b").write_bytes(b"old")
    with running(tmp_path / "life", guests["patterns"], *CHANGING, engine=engine) as life:
        life.await_lines(1)
        life.save(files / "a", live=False, block_size=64 * MIB)
        life.await_lines(life.output().count(b"\n") + 1)
        old = contents(files)
        with pytest.raises(MemvmError):
            life.guest.checkpoint(files / "b", live=live, parent=files / "a")
        assert_whole(files, old, "b", replaced=point == FaultPoint.SAVE_AFTER_RENAME)
        assert_next_save_is_right(life, files, "a", guests, b"")


@pytest.mark.parametrize("point", SUSPEND_POINTS)
def test_suspend_fails_before_a_save_on_top(
    point: FaultPoint, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed while it was being suspended is known to the next save."""
    count = 2 if point.startswith("save.") else 1
    monkeypatch.setenv("MEMVM_FAULTS", f"{point}=eio@{count}")
    files = tmp_path / "files"
    files.mkdir()
    (files / "c").write_bytes(b"old")
    with running(tmp_path / "life", guests["patterns"], *CHANGING) as life:
        life.await_lines(1)
        life.save(files / "a", live=False, block_size=64 * MIB)
        life.await_lines(life.output().count(b"\n") + 1)
        old = contents(files)
        with pytest.raises(MemvmError):
            life.guest.suspend(files / "c")
        assert_whole(files, old, "c", replaced=point in (FaultPoint.SAVE_AFTER_RENAME, FaultPoint.SUSPEND_SAVED))
        assert_next_save_is_right(life, files, "a", guests, b"")


@pytest.mark.parametrize("point", POINTS)
def test_merge_fails_or_is_killed(point: FaultPoint, files: Path, memvm_cli: MemvmCli) -> None:
    (files / "merged").write_bytes(b"old")
    old = contents(files)
    for action, code in (("eio", 74), ("kill", -signal.SIGKILL)):
        (files / "merged").write_bytes(b"old")
        faults = {"MEMVM_FAULTS": f"{point}={action}"}
        memvm_cli("merge", files / "b", files / "merged", env=faults, code=code)
        assert_whole(files, old, "merged", replaced=point == FaultPoint.SAVE_AFTER_RENAME)
    whole = merge(files / "b", files / "merged", lambda _done, _total: None)
    assert names(files) == ["a", "b", "merged"]
    (files / "a").unlink()
    assert look(files / "merged").ram.pages_data == whole.pages_data
