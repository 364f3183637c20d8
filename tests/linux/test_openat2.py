"""What memvm relies on in openat2: nothing is opened that is not beneath the directory, and links are told apart."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memvm.linux.openat2 import open_beneath


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """An open directory with a file, links to it and out of it, and a neighbour."""
    (tmp_path / "outside").write_bytes(b"outside")
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "file").write_bytes(b"inside")
    (inside / "link").symlink_to("sub")
    (inside / "out").symlink_to("../outside")
    fd = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def failure(directory: int, path: bytes, flags: int = os.O_RDONLY) -> str:
    with pytest.raises(OSError) as caught:
        os.close(open_beneath(directory, path, flags))
    return errno.errorcode[caught.value.errno or 0]


def test_a_file_beneath_is_opened_and_the_descriptor_is_not_inherited(directory: int) -> None:
    fd = open_beneath(directory, b"sub/file", os.O_RDONLY)
    assert os.read(fd, 10) == b"inside"
    assert not os.get_inheritable(fd)
    os.close(fd)
    os.close(open_beneath(directory, b".", os.O_PATH))


def test_what_would_lead_out_is_exdev(directory: int, tmp_path: Path) -> None:
    for path in (b"..", b"../outside", b"sub/../../outside", os.fsencode(tmp_path / "outside"), b"/"):
        assert failure(directory, path) == "EXDEV"
    assert failure(directory, b"../made", os.O_WRONLY | os.O_CREAT) == "EXDEV"


def test_a_link_is_eloop_on_the_way_and_at_the_end(directory: int) -> None:
    assert failure(directory, b"link/file") == "ELOOP"
    assert failure(directory, b"link") == "ELOOP"
    assert failure(directory, b"link", os.O_RDONLY | os.O_DIRECTORY) == "ELOOP"
    assert failure(directory, b"out") == "ELOOP"


def test_a_link_at_the_end_can_be_looked_at(directory: int) -> None:
    fd = open_beneath(directory, b"out", os.O_PATH | os.O_NOFOLLOW)
    assert os.readlink(b"", dir_fd=fd) == b"../outside"
    os.close(fd)


def test_a_magic_link_is_not_followed() -> None:
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    try:
        for path in (b"exe", b"root/etc", b"cwd/x", b"fd/0"):
            assert failure(proc, path) == "ELOOP"
    finally:
        os.close(proc)
