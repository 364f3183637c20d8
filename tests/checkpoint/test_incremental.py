"""Saves on top of a parent, and saves of a guest that is still being restored: real guests, in every way."""

from __future__ import annotations

import random
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import memvm
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.finding import MAX_FILES
from memvm.checkpoint.incremental import ROOM
from memvm.checkpoint.save import SaveReport
from memvm.errors import CheckpointError, MemvmError, SaveError
from memvm.units import MIB, PAGE_SIZE
from tests.checkpoint.lives import Life, damage, look, restored, running
from tests.checkpoint.test_save_restore import assert_continues, native_output
from tests.support import MemvmCli

ENGINES = ("auto", "mprotect")
CHANGING = ("4", "0", "25", "25", "50", "all")
"""Arguments of patterns: every page changes in every pass, and much is thrown away."""
LARGE = ("64", "0", "100", "10", "0", "plain")
"""Every page of 64 MiB changes between two lines."""


def save_on_top(life: Life, parent: Path, path: Path, **options: Any) -> tuple[SaveReport, bytes]:
    """The report, and what the guest had written at that instant."""
    report = life.guest.checkpoint(path, parent=parent, **options)
    offset = look(path).streams[1].file_offset
    assert offset is not None
    return report, life.output()[:offset]


@pytest.mark.parametrize(("engine", "live", "lazy"), list(product(ENGINES, (True, False), (True, False))))
def test_chain_of_incremental_saves_goes_on(
    engine: str, live: bool, lazy: bool, guests: dict[str, Path], tmp_path: Path
) -> None:
    with running(tmp_path / "1", guests["patterns"], *CHANGING, engine=engine) as first:
        first.await_lines(2)
        first.save(tmp_path / "c0", live)
        for number in range(1, 5):
            parent = tmp_path / f"c{number - 1}"
            report, before = save_on_top(first, parent, tmp_path / f"c{number}", live=live)
            assert report.changes_known == ("compared" if engine == "mprotect" else "noted")
            assert report.parent == str(parent)
            first.await_lines(first.output().count(b"\n") + 1)
    natively = native_output(guests["patterns"], "4", "60", *CHANGING[2:])
    with restored(tmp_path / "2", tmp_path / "c4", engine=engine, lazy=lazy) as second:
        second.await_lines(5)
        assert_continues(before + second.output(), natively)
        assert second.complaints() == ""


@pytest.mark.parametrize("live", [True, False])
def test_little_is_stored_of_a_guest_that_changes_little(live: bool, guests: dict[str, Path], tmp_path: Path) -> None:
    """A guest that waits: all but a few pages are inherited, whichever way that is known."""
    with running(tmp_path / "1", guests["counter"], "20", "0") as life:
        life.await_lines(2)
        life.save(tmp_path / "a", live)
        life.save(tmp_path / "other", live)
        for parent, known in (("other", "noted"), ("a", "compared")):
            report, _ = save_on_top(life, tmp_path / parent, tmp_path / f"on-{parent}", live=live)
            assert report.changes_known == known
            assert report.pages_inherited > 0
            # While a guest is saved live, what it writes is known by blocks of 16 pages.
            assert report.pages_data + report.pages_zero <= (12 + 2 * 16 if live and known == "noted" else 12)


@pytest.mark.parametrize("engine", ENGINES)
def test_much_changed_in_a_live_save(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    """More than is copied aside: the changed pages are guarded."""
    assert int(LARGE[0]) * MIB > ROOM
    with running(tmp_path / "1", guests["patterns"], *LARGE, engine=engine) as life:
        life.await_lines(1)
        life.save(tmp_path / "a")
        life.await_lines(life.output().count(b"\n") + 2)
        report, before = save_on_top(life, tmp_path / "a", tmp_path / "b", live=True)
        assert report.pages_data * PAGE_SIZE > ROOM
        life.await_lines(life.output().count(b"\n") + 1)
    natively = native_output(guests["patterns"], LARGE[0], "12", *LARGE[2:])
    with restored(tmp_path / "2", tmp_path / "b", engine=engine) as life:
        life.await_lines(2)
        assert_continues(before + life.output(), natively)


@pytest.mark.parametrize(("engine", "live", "parent"), list(product(ENGINES, (True, False), (True, False))))
def test_guest_that_is_still_being_restored_is_saved(
    engine: str, live: bool, parent: bool, guests: dict[str, Path], tmp_path: Path
) -> None:
    """At once, again over the file that it comes from, then killed: the last file alone, or with its parent, is it."""
    with running(tmp_path / "1", guests["patterns"], *CHANGING, engine=engine) as first:
        first.await_lines(3)
        before = first.save(tmp_path / "a")
    with restored(tmp_path / "2", tmp_path / "a", engine=engine) as second:
        if parent:
            _, more = save_on_top(second, tmp_path / "a", tmp_path / "b", live=live)
        else:
            more = second.save(tmp_path / "b", live)
            more = second.save(tmp_path / "a", live)  # where its deferred pages are
            shutil.copy(tmp_path / "a", tmp_path / "b")
            second.await_lines(2)
    natively = native_output(guests["patterns"], "4", "60", *CHANGING[2:])
    for lazy in (True, False):
        with restored(tmp_path / f"3{lazy}", tmp_path / "b", engine=engine, lazy=lazy) as third:
            third.await_lines(3)
            assert_continues(before + more + third.output(), natively)
            assert third.complaints() == ""


def test_bad_chunk_of_a_deferred_page_ends_the_save(guests: dict[str, Path], tmp_path: Path) -> None:
    """The guest, which never touches that chunk, goes on, and the file that was there stays."""
    with running(tmp_path / "1", guests["ticker"], "16", "0", "60000") as life:
        life.await_lines(1)
        life.save(tmp_path / "a", live=False)
    with Chain.open(tmp_path / "a") as chain:
        # Of the memory that it filled; the last ones are of its stack, which it may be using.
        middle = chain.index.chunk_count // 2
    damage(tmp_path / "a", middle)
    (tmp_path / "b").write_bytes(b"old")
    with restored(tmp_path / "2", tmp_path / "a") as life, pytest.raises(SaveError) as raised:
        life.guest.checkpoint(tmp_path / "b", live=False)
    assert "of guest" in raised.value.message
    assert raised.value.hint
    assert (tmp_path / "b").read_bytes() == b"old"


@pytest.fixture
def waiting(guests: dict[str, Path], tmp_path: Path) -> Any:
    """A guest with a checkpoint, `first`."""
    with running(tmp_path / "life", guests["counter"], "20", "0") as life:
        life.await_lines(1)
        life.save(tmp_path / "first")
        yield life


def refused(life: Life, parent: Path, path: Path, error: type[MemvmError], words: str) -> None:
    """The save fails with these words, stores nothing, and the guest can be saved in the right way after it."""
    names = set(path.parent.iterdir())
    for live in (True, False):
        with pytest.raises(error, match=words) as raised:
            life.guest.checkpoint(path, parent=parent, live=live)
        assert raised.value.hint
    assert set(path.parent.iterdir()) == names
    life.await_lines(life.output().count(b"\n") + 1)


def test_missing_parent_is_refused(waiting: Life, tmp_path: Path) -> None:
    refused(waiting, tmp_path / "nowhere", tmp_path / "b", CheckpointError, "nowhere")


def test_damaged_parent_is_refused(waiting: Life, tmp_path: Path) -> None:
    with open(tmp_path / "first", "r+b") as file:
        file.truncate((tmp_path / "first").stat().st_size - 5)
    refused(waiting, tmp_path / "first", tmp_path / "b", CheckpointError, "incomplete")


def test_parent_is_not_replaced(waiting: Life, tmp_path: Path) -> None:
    refused(waiting, tmp_path / "first", tmp_path / "first", SaveError, "cannot be replaced")
    (tmp_path / "linked").symlink_to("first")
    refused(waiting, tmp_path / "linked", tmp_path / "first", SaveError, "cannot be replaced")


def test_parent_of_another_guest_is_refused(waiting: Life, guests: dict[str, Path], tmp_path: Path) -> None:
    for name, ram in (("large", "128M"), ("other", "256M")):
        with running(tmp_path / "another", guests["ticker"], ram=ram) as other:
            other.save(tmp_path / name)
    refused(waiting, tmp_path / "large", tmp_path / "b", SaveError, "128.0 MiB of RAM")
    refused(waiting, tmp_path / "other", tmp_path / "b", SaveError, "another guest")


def test_parent_that_was_replaced_meanwhile_is_compared(waiting: Life, tmp_path: Path) -> None:
    """What the manager remembers is a digest: another file of that name is another file."""
    waiting.save(tmp_path / "second")
    shutil.copy(tmp_path / "first", tmp_path / "second")
    report, _ = save_on_top(waiting, tmp_path / "second", tmp_path / "b")
    assert report.changes_known == "compared"


def test_chains_have_an_end(waiting: Life, tmp_path: Path) -> None:
    path = tmp_path / "first"
    for number in range(1, MAX_FILES):
        report, _ = save_on_top(waiting, path, tmp_path / f"c{number}", live=number % 2 == 0)
        assert report.changes_known == "noted"
        path = tmp_path / f"c{number}"
    refused(waiting, path, tmp_path / "b", SaveError, "parents already")


def test_failed_save_forgets_nothing(guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it looked up is known to the next one on top of the same parent."""
    monkeypatch.setenv("MEMVM_FAULTS", "save.before_index=enospc@2")
    with running(tmp_path / "1", guests["patterns"], *CHANGING) as life:
        life.await_lines(2)
        life.save(tmp_path / "a", live=False)
        life.await_lines(life.output().count(b"\n") + 2)
        with pytest.raises(SaveError, match="full"):
            life.guest.checkpoint(tmp_path / "b", parent=tmp_path / "a")
        assert not (tmp_path / "b").exists()
        report, before = save_on_top(life, tmp_path / "a", tmp_path / "b")
        assert report.changes_known == "noted"
        life.await_lines(life.output().count(b"\n") + 1)
    natively = native_output(guests["patterns"], "4", "60", *CHANGING[2:])
    with restored(tmp_path / "2", tmp_path / "b") as life:
        life.await_lines(3)
        assert_continues(before + life.output(), natively)


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 7))])
def test_memory_stays_right_over_many_lives(seed: int, guests: dict[str, Path], tmp_path: Path) -> None:
    """Restored and saved in turn, each on top of one of the files before or of none, and all on either engine."""
    dice = random.Random(seed)
    files: list[Path] = []
    before = b""
    natively = native_output(guests["patterns"], "3", "120", *CHANGING[2:])
    for number in range(6):
        engine = dice.choice(ENGINES)
        folder = tmp_path / str(number)
        if files:
            life_of = restored(folder, files[-1], engine=engine, lazy=dice.random() < 0.7)
        else:
            life_of = running(folder, guests["patterns"], "3", *CHANGING[1:], engine=engine)
        with life_of as life:
            if dice.random() < 0.5:
                life.await_lines(dice.randint(1, 2))
            for _ in range(dice.randint(1, 3)):
                parent = dice.choice(files) if files and dice.random() < 0.8 else None
                path = tmp_path / f"{len(files)}.ckpt"
                life.guest.checkpoint(path, parent=parent, live=dice.random() < 0.6)
                files.append(path)
            offset = look(path).streams[1].file_offset
            assert offset is not None
            before += life.output()[:offset]
            assert_continues(before or natively[:1], natively)
    with restored(tmp_path / "last", files[-1]) as life:
        life.await_lines(3)
        assert_continues(before + life.output(), natively)


def test_command_says_how_changes_were_known(waiting: Life, memvm_cli: MemvmCli, tmp_path: Path) -> None:
    name = waiting.guest.name
    first, second = tmp_path / "first", tmp_path / "second"
    said = memvm_cli("checkpoint", name, second, "--live", "--parent", first, code=0).text
    assert f"on top of {first}" in said
    assert "as the kernel noted" in said
    said = memvm_cli("checkpoint", name, tmp_path / "third", "--parent", first, code=0).text
    assert "found by comparing" in said
    assert memvm.__name__ in memvm_cli("checkpoint", name, first, "--parent", first, code=74).err
