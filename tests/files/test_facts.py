"""Whose a file of the host's is, for a guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memvm.files.facts import USER, Facts


def of(owner: int, group: int) -> Facts:
    """A file whose owner and group have these numbers on the host."""
    return Facts.of_host(os.stat_result((0o100644, 5, 6, 1, owner, group, 10, 0, 0, 0)))


def test_what_is_ours_is_the_guests(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.chown(file, os.geteuid(), os.getegid())
    facts = Facts.of_host(file.stat())
    assert (facts.owner, facts.group) == (USER, USER)


@pytest.mark.parametrize("ours", [0, USER, 65534])
def test_two_who_are_different_stay_so(ours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ours)
    monkeypatch.setattr(os, "getegid", lambda: ours)
    numbers = [0, 1, USER, 1001, 65534]
    told = [of(number, number) for number in numbers]
    assert [facts.owner for facts in told] == [facts.group for facts in told]
    assert len({facts.owner for facts in told}) == len(numbers)
    assert {facts.owner for facts in told} == {*numbers}
    assert told[numbers.index(ours)].owner == USER
