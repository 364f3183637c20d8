"""Whatever goes wrong in a save, the old file is whole, and nothing lies beside it after the next save."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.errors import SaveError
from memvm.faultpoints import FaultPoint, arm
from memvm.linux import files, libc
from memvm.memory.pages import PageRun
from memvm.units import MIB, PAGE_SIZE
from tests.checkpoint.samples import HEADER, raw_frame, rle_frame, write_small_file

ROOT = Path(__file__).parent.parent.parent
SAVE_POINTS = [point for point in FaultPoint if point.startswith("save.") and point != FaultPoint.SAVE_TRACED]
"""Those that a file being written passes; there is no guest here."""
BEFORE_THE_RENAME = [point for point in SAVE_POINTS if point != FaultPoint.SAVE_AFTER_RENAME]
OLD, NEW = b"old state", b"new state"

SAVE = """
import sys
from pathlib import Path
from memvm.linux import files
from tests.checkpoint.samples import write_small_file

if sys.argv[2] == "named":
    files.open_unnamed = lambda directory: None
write_small_file(Path(sys.argv[1]), b"new state", filler=5)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory that holds nothing but what the test saves."""
    path = tmp_path / "saves"
    path.mkdir()
    return path


@pytest.fixture(params=["unnamed", "named"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of writing: a file without a name, and where O_TMPFILE is missing a temporary name."""
    if request.param == "named":
        monkeypatch.setattr(files, "open_unnamed", lambda directory: None)
    return str(request.param)


@pytest.fixture
def target(directory: Path, how: str) -> Path:
    """A file with the old state; it will be saved over."""
    path = directory / "guest.ckpt"
    write_small_file(path, OLD)
    return path


def state_of(path: Path) -> bytes:
    with CheckpointFile.open(path) as file:
        for chunk in range(file.index.chunk_count):
            file.decompress(chunk, file.read_frame(chunk))
        return file.state


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_new_file_replaces_the_old_one(target: Path) -> None:
    target.chmod(0o644)
    with open(target, "rb") as before:
        write_small_file(target, NEW)
        assert state_of(target) == NEW
        assert names_in(target.parent) == ["guest.ckpt"]
        assert target.stat().st_mode & 0o777 == 0o600
        assert OLD in before.read(), "who has the old file open keeps it"


@pytest.mark.parametrize("point", SAVE_POINTS)
def test_killed_at(point: FaultPoint, target: Path, how: str, time_scale: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAVE, target, how],
        cwd=ROOT,
        env={**os.environ, "MEMVM_FAULTS": f"{point}=kill"},
        check=False,
        timeout=60 * time_scale,
    )
    assert done.returncode == -signal.SIGKILL
    assert state_of(target) == (NEW if point == FaultPoint.SAVE_AFTER_RENAME else OLD)
    leftovers = set(names_in(target.parent)) - {"guest.ckpt"}
    named_at_the_time = how == "named" or point == FaultPoint.SAVE_BEFORE_RENAME
    assert len(leftovers) == (named_at_the_time and point != FaultPoint.SAVE_AFTER_RENAME)
    assert all(name.startswith(".guest.ckpt.memvm-") for name in leftovers)
    write_small_file(target, b"newest state")
    assert state_of(target) == b"newest state"
    assert names_in(target.parent) == ["guest.ckpt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("point", BEFORE_THE_RENAME)
def test_disk_fails_at(point: FaultPoint, code: int, target: Path) -> None:
    with arm(point, OSError(code, os.strerror(code))), pytest.raises(SaveError) as raised:
        write_small_file(target, NEW, filler=3)
    assert str(target) in raised.value.message
    assert "needed so far" in raised.value.message
    assert raised.value.hint
    assert state_of(target) == OLD
    assert names_in(target.parent) == ["guest.ckpt"]


def test_directory_that_cannot_be_synced_is_an_error(target: Path) -> None:
    with (
        arm(FaultPoint.SAVE_AFTER_RENAME, OSError(errno.EIO, "")),
        pytest.raises(SaveError, match="disk failed"),
    ):
        write_small_file(target, NEW)
    assert state_of(target) == NEW
    assert names_in(target.parent) == ["guest.ckpt"]


def test_interrupt_leaves_nothing(target: Path) -> None:
    with arm(FaultPoint.SAVE_BEFORE_RENAME, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        write_small_file(target, NEW)
    assert state_of(target) == OLD
    assert names_in(target.parent) == ["guest.ckpt"]


def test_leaving_without_commit_leaves_nothing(target: Path) -> None:
    with CheckpointWriter(target, HEADER) as writer:
        writer.add_chunk(rle_frame(1, 1), [PageRun(0, 1)])
    assert state_of(target) == OLD
    assert names_in(target.parent) == ["guest.ckpt"]


@pytest.fixture
def file_size_limit() -> Iterator[int]:
    """A limit of this process on the size of the files that it writes, in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    yield MIB
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_size_limit(target: Path, file_size_limit: int) -> None:
    with pytest.raises(SaveError, match=r"larger than is allowed \(1\.0 MiB needed so far\)") as raised:
        write_small_file(target, NEW, filler=2 * file_size_limit // PAGE_SIZE)
    assert "ulimit -f" in raised.value.hint
    assert state_of(target) == OLD
    assert names_in(target.parent) == ["guest.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path, time_scale: float) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "memvm-test", mount_point],
        check=False,
        capture_output=True,
        text=True,
        timeout=30 * time_scale,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield mount_point
    subprocess.run(["umount", mount_point], check=True, timeout=30 * time_scale)


def test_full_disk(small_disk: Path, how: str) -> None:
    target = small_disk / "guest.ckpt"
    write_small_file(target, OLD, filler=100)
    free = os.statvfs(small_disk).f_bfree
    with pytest.raises(SaveError, match=r"the disk is full \(\d+\.\d KiB needed so far\)") as raised:
        write_small_file(target, NEW, filler=1000)
    assert "free some space" in raised.value.hint
    assert state_of(target) == OLD
    assert names_in(small_disk) == ["guest.ckpt"]
    assert os.statvfs(small_disk).f_bfree == free


def test_full_disk_at_the_very_end(small_disk: Path, how: str) -> None:
    """There is room for the old file and all blocks of the new one, not for what follows them."""
    target = small_disk / "guest.ckpt"
    write_small_file(target, OLD)
    with CheckpointWriter(target, HEADER) as writer:
        writer.add_chunk(rle_frame(1, 1), [PageRun(0, 1)])
        filler = small_disk / "filler"
        with open(filler, "wb", buffering=0) as other, pytest.raises(OSError, match="No space left"):
            while True:
                other.write(bytes(PAGE_SIZE))
        with pytest.raises(SaveError, match="the disk is full"):
            writer.commit(os.urandom(2 * PAGE_SIZE))
    filler.unlink()
    assert state_of(target) == OLD
    assert names_in(small_disk) == ["guest.ckpt"]


def test_target_that_cannot_be_a_file(directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    (directory / "file").write_text("")
    cases = {
        directory: "it is a directory",
        directory / "..": "it is a directory",
        directory / "pipe": "not an ordinary file",
        directory / "missing" / "guest.ckpt": "its directory does not exist",
        directory / "file" / "guest.ckpt": "its directory is not a directory",
        directory / ("x" * 256): "its name is too long",
    }
    for path, message in cases.items():
        with pytest.raises(SaveError, match=message) as raised:
            CheckpointWriter(path, HEADER)
        assert str(path) in raised.value.message
        assert raised.value.hint
    assert names_in(directory) == ["file", "pipe"]


def test_directory_that_may_not_be_written(directory: Path, how: str) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    directory.chmod(0o500)
    try:
        with pytest.raises(SaveError, match="you may not write in its directory"):
            CheckpointWriter(directory / "guest.ckpt", HEADER)
    finally:
        directory.chmod(0o700)


def test_link_at_the_target_is_replaced(directory: Path, how: str) -> None:
    (directory / "elsewhere").write_text("untouched")
    link = directory / "guest.ckpt"
    link.symlink_to("elsewhere")
    write_small_file(link, NEW)
    assert not link.is_symlink()
    assert (directory / "elsewhere").read_text() == "untouched"


@pytest.mark.parametrize(
    "name", ["x" * 255, "ü" * 127, "with space\n", ".hidden", b"\xff\xfe".decode(errors="surrogateescape")]
)
def test_unusual_names(name: str, directory: Path, how: str) -> None:
    write_small_file(directory / name, NEW)
    assert names_in(directory) == [name]
    assert state_of(directory / name) == NEW


def test_relative_path_stays_where_it_was_when_the_directory_changes(
    directory: Path, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    with CheckpointWriter(Path("guest.ckpt"), HEADER) as writer:
        monkeypatch.chdir(tmp_path)
        writer.commit(NEW)
    assert names_in(directory) == ["guest.ckpt"]


def test_two_saves_of_one_target_do_not_disturb_each_other(target: Path) -> None:
    with CheckpointWriter(target, HEADER) as first, CheckpointWriter(target, HEADER) as second:
        first.commit(b"first")
        assert state_of(target) == b"first"
        second.commit(b"second")
        assert state_of(target) == b"second"
    assert names_in(target.parent) == ["guest.ckpt"]


def test_only_stale_temporary_files_are_removed(target: Path) -> None:
    directory = target.parent
    stale, alive = directory / ".guest.ckpt.memvm-0123abcd", directory / ".guest.ckpt.memvm-aaaaaaaa"
    foreign = [".guest.ckpt.memvm-notes", ".other.ckpt.memvm-0123abcd", "guest.ckpt.memvm-0123abcd"]
    for path in (stale, alive, *(directory / name for name in foreign)):
        path.write_text("")
    (directory / ".guest.ckpt.memvm-00000000").mkdir()
    os.mkfifo(directory / ".guest.ckpt.memvm-11111111")
    (directory / ".guest.ckpt.memvm-22222222").symlink_to(target)
    before = set(names_in(directory))
    with open(alive) as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        write_small_file(target, NEW)
        assert set(names_in(directory)) == before - {stale.name}
    write_small_file(target, NEW)
    assert set(names_in(directory)) == before - {stale.name, alive.name}


def test_temporary_file_that_another_save_took_for_stale_is_made_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other save comes between the making of the file and its lock."""
    monkeypatch.setattr(files, "open_unnamed", lambda directory: None)
    real_lock = files.lock
    removed: list[str] = []

    def lock(fd: int) -> bool | None:
        if not removed:
            (path,) = directory.iterdir()
            removed.append(path.name)
            path.unlink()
        return real_lock(fd)

    monkeypatch.setattr(files, "lock", lock)
    write_small_file(directory / "guest.ckpt", NEW)
    assert removed
    assert names_in(directory) == ["guest.ckpt"]
    assert state_of(directory / "guest.ckpt") == NEW


def test_directory_removed_meanwhile(directory: Path, how: str) -> None:
    with CheckpointWriter(directory / "guest.ckpt", HEADER) as writer:
        writer.add_chunk(raw_frame(bytes(PAGE_SIZE)), [PageRun(0, 1)])
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        with pytest.raises(SaveError, match="its directory does not exist"):
            writer.commit(NEW)


def test_without_early_writeback_and_reserved_space(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, *_arguments: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "refused")

    monkeypatch.setattr(libc, "syscall", refuse)
    write_small_file(target, NEW, filler=3)
    assert state_of(target) == NEW
