"""Changes in memory on top of a directory of the host's: what the guest sees, and what the host keeps."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memvm.files.given import given_tree
from memvm.files.nodes import Budget
from memvm.files.specs import Access, ViewSpec
from memvm.files.tree import Tree
from memvm.units import MIB
from tests.files.test_escapes import read


@pytest.fixture
def layered(given: Path) -> Iterator[Tree]:
    made = given_tree([ViewSpec(Access.LAYER, str(given), "/g")], Budget(most=2 * MIB))
    yield made
    made.close()


def write(tree: Tree, path: str, data: bytes, flags: int = os.O_CREAT | os.O_TRUNC) -> None:
    opened = tree.open(b"/", os.fsencode(path), os.O_WRONLY | flags, 0o644)
    try:
        assert opened.write([memoryview(data)]) == len(data)
    finally:
        opened.close()


def names(tree: Tree, path: bytes) -> list[bytes]:
    place = tree.place(path)
    return sorted(entry.name for entry in place.view.names(place.inside))


def test_a_changed_file_is_a_copy_with_the_same_identity(layered: Tree, given: Path) -> None:
    before = layered.facts(b"/", b"/g/file", follow=True)
    write(layered, "/g/file", b"!", 0)
    after = layered.facts(b"/", b"/g/file", follow=True)
    assert read(layered, "/g/file") == b"!iven"
    assert (given / "file").read_bytes() == b"given"
    assert (after.device, after.inode, after.size) == (before.device, before.inode, before.size)


def test_what_is_new_is_listed_with_what_was_there(layered: Tree, given: Path) -> None:
    write(layered, "/g/sub/new", b"new")
    assert names(layered, b"/g/sub") == [b"deep", b"new"]
    assert read(layered, "/g/sub/deep/file") == b"deep"
    assert [path.name for path in (given / "sub").iterdir()] == ["deep"]


def test_what_is_removed_is_gone_and_can_come_back_as_something_else(layered: Tree, given: Path) -> None:
    layered.change(b"/", b"/g/file", lambda view, inside: view.remove(inside))
    assert names(layered, b"/g") == [b"sub"]
    with pytest.raises(FileNotFoundError):
        read(layered, "/g/file")
    layered.change(b"/", b"/g/file", lambda view, inside: view.make_directory(inside, 0o755))
    assert names(layered, b"/g/file") == []
    assert (given / "file").read_bytes() == b"given"


def test_a_directory_made_where_one_was_removed_is_empty(layered: Tree) -> None:
    layered.change(b"/", b"/g/sub/deep/file", lambda view, inside: view.remove(inside))
    layered.change(b"/", b"/g/sub/deep", lambda view, inside: view.remove_directory(inside))
    layered.change(b"/", b"/g/sub/deep", lambda view, inside: view.make_directory(inside, 0o755))
    assert names(layered, b"/g/sub/deep") == []


def test_a_directory_of_the_hosts_is_not_renamed_but_a_file_is(layered: Tree) -> None:
    def rename(old: bytes, new: bytes) -> None:
        layered.pair((b"/g", old), (b"/g", new), lambda view, a, b: view.rename(a, b, replace=True))

    with pytest.raises(OSError) as caught:
        rename(b"sub", b"other")
    assert caught.value.errno == errno.EXDEV
    rename(b"file", b"sub/moved")
    assert read(layered, "/g/sub/moved") == b"given"
    assert names(layered, b"/g") == [b"sub"]


def test_the_budget_is_kept(layered: Tree, given: Path) -> None:
    with pytest.raises(OSError) as caught:
        write(layered, "/g/large", bytes(3 * MIB))
    assert caught.value.errno == errno.ENOSPC
    budget = layered.place(b"/g").view.budget  # type: ignore[attr-defined]
    before = budget.used
    for _ in range(10):
        write(layered, "/g/large", bytes(MIB))
        layered.change(b"/", b"/g/large", lambda view, inside: view.remove(inside))
    assert budget.used == before - 512 - len("large")  # what the first try left of it
    (given / "huge").write_bytes(bytes(3 * MIB))
    with pytest.raises(OSError) as caught:
        write(layered, "/g/huge", b"x", 0)
    assert caught.value.errno == errno.ENOSPC
    opened = layered.open(b"/g", b"sparse", os.O_CREAT | os.O_RDWR, 0o600)
    with pytest.raises(OSError):
        opened.truncate(1 << 40)
    opened.close()


def test_a_file_without_a_name_stays_as_long_as_it_is_open(layered: Tree) -> None:
    opened = layered.open(b"/g", b"brief", os.O_CREAT | os.O_RDWR, 0o600)
    opened.write([memoryview(b"here")])
    layered.change(b"/g", b"brief", lambda view, inside: view.remove(inside))
    assert opened.contents(0, 10) == b"here"
    assert opened.facts().links == 0
    opened.close()
