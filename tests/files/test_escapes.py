"""No path leads a guest out of what it was given: by `..`, links of every kind, /proc, renames between, odd files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memvm.files.description import Description
from memvm.files.given import given_tree
from memvm.files.host_view import HostView
from memvm.files.nodes import Budget
from memvm.files.specs import Access, ViewSpec
from memvm.files.tree import Tree
from tests.files.conftest import SECRET
from tests.support import MemvmCli

SWAP = """
import os, sys
os.chdir(sys.argv[1])
while True:
    os.rename("door", "aside")
    os.rename("trap", "door")
    os.rename("door", "trap")
    os.rename("aside", "door")
"""


def read(tree: Tree, path: str, base: bytes = b"/") -> bytes:
    opened = tree.open(base, os.fsencode(path), os.O_RDONLY, 0)
    try:
        return contents(opened)
    finally:
        opened.close()


def contents(opened: Description) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: opened.read([memoryview(buffer)])])


def refused(tree: Tree, path: str, base: bytes = b"/") -> str:
    with pytest.raises(OSError) as caught:
        read(tree, path, base)
    return errno.errorcode[caught.value.errno or 0]


def test_what_is_given_is_there(tree: Tree) -> None:
    assert read(tree, "/g/file") == b"given"
    assert read(tree, "sub/deep/file", b"/g") == b"deep"
    assert read(tree, "../../file", b"/g/sub/deep") == b"given"


@pytest.mark.parametrize(
    "path",
    [
        *("/g/../secret", "/g/../../secret", "/g/sub/../../secret", "/../secret", "/g/./../given/../secret"),
        *("/g/..//..//../secret", "/g/sub/deep/../../../secrets/inside", "/secret", "//secret", "secret"),
    ],
)
def test_dots(path: str, tree: Tree) -> None:
    assert refused(tree, path) == "ENOENT"


def test_dots_at_the_root_stay_there(tree: Tree) -> None:
    assert read(tree, "/../../../g/file") == b"given"
    assert tree.directory(b"/g", b"../../..") == b"/"


def test_links(tree: Tree, given: Path) -> None:
    outside = given.parent
    for name, target in {
        "absolute": str(outside / "secret"),
        "relative": "../secret",
        "deeper": "sub/../../secret",
        "folder": str(outside / "secrets"),
        "up": "..",
        "proc": "/proc/self/root" + str(outside / "secret"),
        "fd": "/proc/self/fd/0",
        "loop": "loop",
    }.items():
        (given / name).symlink_to(target)
    (given / "chain").symlink_to("absolute")
    for path in (
        "absolute",
        "relative",
        "deeper",
        "folder/inside",
        "up/secret",
        "up/given/file",
        "proc",
        "fd",
        "chain",
    ):
        assert refused(tree, f"/g/{path}") == "ENOENT"
    assert refused(tree, "/g/loop") == "ELOOP"
    assert read(tree, "/g/up/g/file") == b"given"  # `..` of the guest's own tree


def test_links_are_followed_in_the_guests_tree(tree: Tree, given: Path) -> None:
    (given / "to-root").symlink_to("/g/sub")
    (given / "sub" / "back").symlink_to("../file")
    assert read(tree, "/g/to-root/deep/file") == b"deep"
    assert read(tree, "/g/to-root/back") == b"given"
    assert read(tree, "/g/to-root/../file") == b"given"


def test_links_that_the_guest_makes(tree: Tree, given: Path) -> None:
    def link(name: bytes, target: Path | bytes) -> None:
        tree.change(b"/g", name, lambda view, inside: view.make_link(inside, os.fsencode(target)))

    if not tree.place(b"/g").view.writable:
        with pytest.raises(OSError, match="read-only"):
            link(b"l", given.parent / "secret")
        return
    link(b"l", given.parent / "secret")
    link(b"m", b"../../../../.." + os.fsencode(given.parent / "secret"))
    link(b"n", os.fsencode(given.parent))
    for path in ("/g/l", "/g/m", "/g/n/secret"):
        assert refused(tree, path) == "ENOENT"
    with pytest.raises(OSError):
        tree.open(b"/g", b"n/made", os.O_WRONLY | os.O_CREAT, 0o600)
    assert not (given.parent / "made").exists()


def test_names_outside_cannot_be_linked_renamed_or_removed(tree: Tree, given: Path) -> None:
    before = sorted(path.name for path in given.parent.iterdir())
    for path in (b"../secret", b"/secret", b"/g/../secret", os.fsencode(given.parent / "secret")):
        with pytest.raises(OSError):
            tree.pair((b"/g", path), (b"/g", b"mine"), lambda view, old, new: view.add_name(old, new))
        with pytest.raises(OSError):
            tree.pair((b"/g", path), (b"/g", b"mine"), lambda view, old, new: view.rename(old, new, replace=True))
        with pytest.raises(OSError):
            tree.pair((b"/g", b"file"), (b"/g", path), lambda view, old, new: view.rename(old, new, replace=True))
        with pytest.raises(OSError):
            tree.change(b"/g", path, lambda view, inside: view.remove(inside))
    assert sorted(path.name for path in given.parent.iterdir()) == before
    assert (given.parent / "secret").read_bytes() == SECRET


def test_a_view_refuses_what_a_tree_never_asks(given: Path) -> None:
    """The kernel holds also if the tree did not."""
    (given / "link").symlink_to("../secret")
    view = HostView(os.open(given, os.O_PATH | os.O_DIRECTORY), writable=True)
    try:
        for path in (
            b"../secret",
            os.fsencode(given.parent / "secret"),
            b"sub/../../secret",
            b"link",
            b"/proc/self/exe",
        ):
            for act in (view.facts, view.names, lambda path: view.open(path, os.O_RDWR, 0, path)):
                if path == b"link" and act == view.facts:
                    assert view.facts(path).is_link
                    continue
                with pytest.raises(OSError) as caught:
                    act(path)
                assert caught.value.errno in (errno.EXDEV, errno.ELOOP, errno.ENOTDIR)
        with pytest.raises(OSError):
            view.make_directory(b"../made", 0o700)
        with pytest.raises(OSError):
            view.remove(b"../secret")
        with pytest.raises(OSError):
            view.rename(b"file", b"../moved", replace=True)
    finally:
        view.close()
    assert (given.parent / "secret").exists()


def test_odd_files_are_not_opened(tree: Tree, given: Path) -> None:
    """A pipe would have the manager wait, and a socket is somebody's door."""
    os.mkfifo(given / "pipe")
    assert refused(tree, "/g/pipe") == "ENXIO"
    with pytest.raises(OSError):
        tree.open(b"/g", b"pipe", os.O_WRONLY, 0)


def test_a_directory_that_becomes_a_link_between_two_looks(given: Path, time_scale: float) -> None:
    """Somebody swaps `door`, a directory, for a link out, as fast as it goes, while a guest opens what is behind it."""
    (given / "door").mkdir()
    (given / "door" / "inside").write_bytes(b"given")
    (given / "trap").symlink_to(given.parent / "secrets")
    tree = given_tree([ViewSpec(Access.READ, str(given), "/g")], Budget())
    found: set[bytes] = set()
    with subprocess.Popen([sys.executable, "-c", SWAP, given]) as swapping:
        try:
            deadline = time.monotonic() + 20 * time_scale
            tries = 0
            while tries < 3000 or (not found and time.monotonic() < deadline):
                tries += 1
                try:
                    found.add(read(tree, "/g/door/inside"))
                except OSError:
                    continue
        finally:
            swapping.kill()
            tree.close()
    assert found == {b"given"}


def test_a_program_that_tries(busybox: Path, given: Path, memvm_cli: MemvmCli) -> None:
    (given / "link").symlink_to(given.parent / "secret")
    secret = given.parent / "secret"
    ways = ["", "/g/../..", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../..", "/proc/self/fd/0/../.."]
    ways += ["/proc/self/../..", "/dev/fd/../..", "/proc/self/exe/.."]
    script = f"""
        for path in /g/link {" ".join(f"{way}{secret}" for way in ways)}; do
            read -r line < $path && echo "read $path: $line"
        done
        cd /g/sub/deep && cd ../../../../.. && pwd && echo *
    """
    result = memvm_cli("run", "--rw", f"{given}:/g", "--", busybox, "ash", "-c", script, code=0)
    assert SECRET.decode() not in result.text
    assert result.text.splitlines()[-2:] == ["/", "dev g proc tmp"]
