"""Files without names, locks and early writeback: what memvm/linux/files.py says of the kernel holds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memvm.linux import files


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def open_unnamed(directory: int) -> int:
    fd = files.open_unnamed(directory)
    if fd is None:
        pytest.skip("this file system has no O_TMPFILE")
    return fd


def test_unnamed_file_gets_a_name(directory: int, tmp_path: Path) -> None:
    fd = open_unnamed(directory)
    try:
        os.write(fd, b"content")
        assert not list(tmp_path.iterdir())
        files.link_unnamed(fd, directory, "name")
        assert (tmp_path / "name").read_bytes() == b"content"
        assert (tmp_path / "name").stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExistsError):
            files.link_unnamed(fd, directory, "name")
    finally:
        os.close(fd)


def test_unnamed_file_is_gone_when_it_is_closed(directory: int, tmp_path: Path) -> None:
    os.close(open_unnamed(directory))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR])
def test_file_system_without_unnamed_files(code: int, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    assert files.open_unnamed(directory) is None


def test_without_proc_no_unnamed_file(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert files.open_unnamed(directory) is None


def test_lock_is_held_by_one_open_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with open(path) as one, open(path) as other:
        assert files.lock(one.fileno()) is True
        assert files.lock(other.fileno()) is False
        one.close()
        assert files.lock(other.fileno()) is True


def test_early_writeback(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb", buffering=0) as file:
        file.write(bytes(100_000))
        assert files.start_writeback(file.fileno(), 0, 100_000) is True


def test_early_writeback_where_there_is_none() -> None:
    reading, writing = os.pipe()
    try:
        assert files.start_writeback(writing, 0, 4096) is False
    finally:
        os.close(reading)
        os.close(writing)


def test_early_writeback_of_a_closed_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.start_writeback(fd, 0, 4096)
