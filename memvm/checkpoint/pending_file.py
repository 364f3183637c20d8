"""A file that takes its name only when it is whole.

It is written without a name (O_TMPFILE) where the file system can do that, and otherwise under the
temporary name `.NAME.memvm-XXXXXXXX` beside the target. `publish` syncs it, gives a nameless one such
a temporary name, and renames that onto the target. So the target is the old file or the new one at
every moment, and a process that is killed leaves at most a temporary name, which nobody has locked any
more: the next save of the same target removes it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from memvm.errors import HostError, SaveError
from memvm.faultpoints import FaultPoint, fire
from memvm.linux import files
from memvm.linux.own_threads import Thread
from memvm.units import format_size

_SUFFIX = re.compile(r"[0-9a-f]{8}")
_MAX_STEM = 200
"""Bytes of the target's name that a temporary name repeats, so that it stays under NAME_MAX (255)."""

_MOST_PIECES = os.sysconf("SC_IOV_MAX")

_EXPLANATIONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or save to another file system"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or save to another file system"),
    errno.EFBIG: (
        "the file would be larger than is allowed",
        "raise the limit (`ulimit -f`), or save to a file system that takes larger files",
    ),
    errno.EIO: ("the disk failed", "look at `dmesg`, and save to another disk"),
    errno.ENOENT: ("its directory does not exist", "make it with `mkdir -p`"),
    errno.ENOTDIR: ("its directory is not a directory", "choose another path"),
    errno.EACCES: ("you may not write in its directory", "choose a directory that you may write in"),
    errno.EPERM: ("that is not permitted", "choose a file and a directory that are yours"),
    errno.EROFS: ("the file system is read-only", "save to another file system"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
}


def save_error(path: Path, error: OSError, needed: int = 0) -> SaveError:
    """The error to raise when the system refused something; `needed` is the bytes of file so far."""
    what, hint = _EXPLANATIONS.get(error.errno or 0, (error.strerror or str(error), ""))
    size = f" ({format_size(needed)} needed so far)" if needed else ""
    return SaveError(f"cannot save to {path}: {what}{size}", hint=hint)


class PendingFile:
    """A new file of mode 0600 that will replace `path`. Publish or discard it.

    A symbolic link at `path` is replaced, not followed. Raises SaveError at once if `path` cannot
    become a file: its directory is missing or not writable, or something else than a file is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = path.name
        stem = os.fsdecode(os.fsencode(self._name)[:_MAX_STEM])
        self._prefix = f".{stem}.memvm-"
        self._temporary = ""
        self._directory = -1
        self.fd = -1
        try:
            _check_target(path)
            self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise save_error(path, error) from error
        try:
            self._remove_stale()
            self._create()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise save_error(path, error) from error
            raise

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        """One write, and more only if the kernel takes less than all. Returns the bytes. Raises OSError."""
        if len(pieces) > _MOST_PIECES:
            pieces = [b"".join(pieces)]
        size = sum(map(len, pieces))
        done = os.pwritev(self.fd, pieces, offset)
        if done < size:
            with memoryview(b"".join(pieces)) as view:
                while done < size:
                    done += os.pwrite(self.fd, view[done:], offset + done)
        return size

    def prepare(self, pieces: Sequence[bytes | memoryview], offset: int) -> Callable[[], int]:
        """What writes the pieces when it is called."""
        return lambda: self.write(pieces, offset)

    def reserve(self, offset: int, size: int) -> None:
        """Has space for bytes that will be written, if there is some to be had."""
        files.reserve(self.fd, offset, size)

    def start_writeback(self, offset: int, size: int) -> None:
        """Asks the kernel to begin writing a range of bytes to the disk. Raises OSError if that fails."""
        files.start_writeback(self.fd, offset, size)

    def truncate(self, length: int) -> None:
        """Gives back what was reserved beyond the file's `length` bytes. Raises OSError."""
        os.ftruncate(self.fd, length)

    def publish(self) -> None:
        """Makes the file durable, then makes it the target. Raises OSError.

        After an error the target is the old file, or, if only the sync of the directory failed, the
        new one; call `discard`.
        """
        os.fsync(self.fd)
        if not self._temporary:
            self._link()
        fire(FaultPoint.SAVE_BEFORE_RENAME)
        self._replace()
        self._temporary = ""
        fire(FaultPoint.SAVE_AFTER_RENAME)
        os.fsync(self._directory)
        self.discard()

    def _replace(self) -> None:
        try:
            old = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            old = -1
        try:
            os.replace(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        finally:
            if old >= 0:  # the old file goes with its last descriptor, and nobody need wait for that
                try:
                    Thread(target=os.close, args=(old,), name="free", daemon=True).start()
                except HostError:
                    os.close(old)

    def discard(self) -> None:
        """Lets go of the file; if it was not published, nothing is left of it. May be called again."""
        if self._temporary:
            # It has gone, or the disk failed: then the next save finds it unlocked, and removes it.
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
            self._temporary = ""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _create(self) -> None:
        unnamed = files.open_unnamed(self._directory)
        if unnamed is not None:
            self.fd = unnamed
            files.lock(self.fd)
            return
        while True:
            self._temporary = self._new_name()
            self.fd = os.open(
                self._temporary,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o600,
                dir_fd=self._directory,
            )
            # Another save may have taken it for a stale one between those two calls. Then start again.
            if files.lock(self.fd) is not False and os.fstat(self.fd).st_nlink:
                return
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._directory)
            os.close(self.fd)
            self.fd = -1

    def _link(self) -> None:
        name = self._new_name()
        files.link_unnamed(self.fd, self._directory, name)
        self._temporary = name

    def _new_name(self) -> str:
        return self._prefix + os.urandom(4).hex()

    def _remove_stale(self) -> None:
        with os.scandir(self._directory) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if name.startswith(self._prefix) and _SUFFIX.fullmatch(name[len(self._prefix) :]):
                self._remove_if_stale(name)

    def _remove_if_stale(self, name: str) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError:
            return  # gone since, or not ours: another user's, or no file at all
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode) and files.lock(fd):
                with suppress(FileNotFoundError, PermissionError):  # removed by another save, or another user's
                    os.unlink(name, dir_fd=self._directory)
        finally:
            os.close(fd)


def _check_target(path: Path) -> None:
    """Raises SaveError if a file must not replace what is at `path`, OSError if nobody can tell."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise SaveError(f"cannot save to {path}: it is a directory", hint="add a file name")
    if not stat.S_ISREG(mode):
        raise SaveError(f"cannot save to {path}: it is not an ordinary file", hint="choose another path")
