"""Guests with several threads: all are saved and restored together, whatever each of them does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from memvm.checkpoint.inspect import inspect
from tests.checkpoint.lives import change_state, restored, running

ENGINES = ("userfaultfd", "mprotect")


def rounds(count: int) -> bytes:
    return b"".join(b"round %d\n" % number for number in range(1, count + 1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["threads", "threads-musl"])
def test_no_wait_is_lost_over_several_lives(engine: str, name: str, guests: dict[str, Path], tmp_path: Path) -> None:
    if name not in guests:
        pytest.skip("no musl-gcc here")
    chance, path = random.Random(name + engine), tmp_path / "a"
    with running(tmp_path / "0", guests[name], "4", "0", "256", engine=engine) as life:
        life.await_lines(2)
        before = life.save(path, live=True)
    for number in range(1, 6):
        with restored(tmp_path / f"{number}", path, engine=engine, lazy=chance.random() < 0.7) as life:
            life.await_lines(chance.randrange(4))
            before += life.save(path, live=chance.random() < 0.7)
            assert life.complaints() == ""
    assert before == rounds(before.count(b"\n"))


def test_traces_and_incremental_saves_with_many_threads(guests: dict[str, Path], tmp_path: Path) -> None:
    with running(tmp_path / "0", guests["threads"], "6", "0", "512") as life:
        life.await_lines(1)
        first = life.guest
        first.checkpoint(tmp_path / "a", live=True)
        for batch in first.trace(access="rw", seconds=0.3):
            assert all(event.vcpu for event in batch.events if event.instruction)
        before = life.save(tmp_path / "b", parent=tmp_path / "a")
        life.await_lines(before.count(b"\n") + 2)
    with restored(tmp_path / "1", tmp_path / "b") as life:
        life.await_lines(3)
        before += life.output()
    assert before == rounds(before.count(b"\n"))


def test_a_file_whose_threads_make_no_sense_is_refused(guests: dict[str, Path], tmp_path: Path) -> None:
    with running(tmp_path / "0", guests["threads"], "2", "0") as life:
        life.await_lines(1)
        life.save(tmp_path / "a")

    def twice(fields: dict[str, Any]) -> None:
        fields["threads"][0]["tid"] = fields["tid"]

    change_state(tmp_path / "a", tmp_path / "b", twice)
    with pytest.raises(Exception, match="two threads have the same id"):
        inspect(tmp_path / "b", False, lambda done, total: None)
