"""The run-time directory: which guests run, under which names, and where their managers listen.

    $MEMVM_RUNTIME_DIR, or $XDG_RUNTIME_DIR/memvm, or /tmp/memvm-UID        mode 0700, ours, no symlink
        NAME.lock       locked (flock(2)) for as long as the manager lives; says in JSON who it is
        NAME.sock       its control socket
        rehearsal-PID/  such a directory inside this one, as long as a process tries out being a manager;
                        "owner" in it is locked, as NAME.lock is, and tells what dead ones left

The lock is the truth. The kernel drops it however the manager ends, so a lock file that can be locked is
what a dead manager left, and whoever looks removes it. The directory itself is locked, briefly, around
every look and every reservation; so a lock file that is held is held by a manager and never by somebody
who only looks. An owner that goes removes its files without the directory's lock: whoever opened the
lock file just before, and gets the lock, sees that the name stands for another inode, or none, by then.

Nothing here is found by path twice: all names are resolved relative to one open descriptor of the
directory. Socket addresses are limited to 107 bytes (unix(7)), hence /proc/self/fd/N/NAME.sock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from memvm.errors import ControlError, GuestStateError, HostError, NoSuchGuest, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_STEM = 48
"""Characters of a program's name that go into a guest's name; the rest is left to the counter."""
_BACKLOG = 64
_REHEARSAL = re.compile(r"rehearsal-[0-9]+")
_OWNER = "owner"


class Entry(NamedTuple):
    """A running guest as its lock file tells of it; `started` is in seconds of the Unix clock."""

    name: str
    pid: int
    program: str
    started: float


def location() -> Path:
    """Where the run-time directory is, or will be."""
    if chosen := os.environ.get("MEMVM_RUNTIME_DIR"):
        return Path(chosen).absolute()
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and _is_our_directory(session):
        return Path(session).absolute() / "memvm"
    # Not $TMPDIR: it differs between sessions of one user, who would not find their guests.
    return Path(f"/tmp/memvm-{os.geteuid()}")


def _is_our_directory(path: str) -> bool:
    # Under sudo the variable may still name another user's directory.
    try:
        found = os.stat(path)  # noqa: PTH116 - one stat for both questions
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def check_name(name: str) -> str:
    """`name`, if a guest may be called so. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a guest cannot be called {name!r}",
            hint="use up to 64 letters, digits, dots, dashes and underscores, with a letter or digit first",
        )
    return name


class RunDir:
    """The run-time directory, open. A context manager; close() is idempotent."""

    def __init__(self, path: Path | None = None) -> None:
        """Open it, or another one, and make it if need be. Raises HostError if it is not safe to use."""
        self.path = path or location()
        self._fd = _open_private_directory(self.path)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; what is in the directory stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def entries(self) -> list[Entry]:
        """The running guests, by name. What dead managers left is removed."""
        with self._locked():
            self._clear_rehearsals()
            names = sorted(
                entry.name.removesuffix(".lock") for entry in os.scandir(self._fd) if entry.name.endswith(".lock")
            )
            entries = [self._look(name) for name in names if _NAME.fullmatch(name)]
        return [entry for entry in entries if entry is not None]

    @contextmanager
    def rehearsal(self) -> Iterator[Path]:
        """A run-time directory inside this one, in which nobody looks, as long as the context."""
        name = f"rehearsal-{os.getpid()}"
        with self._locked():
            self._clear_rehearsals()  # also one of a process that had our number
            os.mkdir(name, 0o700, dir_fd=self._fd)
            owner = os.open(f"{name}/{_OWNER}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
            fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield self.path / name
        finally:
            os.close(owner)
            with self._locked():
                self._clear_rehearsals()

    def reserve(self, name: str | None, program: str) -> Reservation:
        """Take a name for a guest: `name`, or that of the program's file, with a number if it is taken.

        Raises UsageError if the name makes no sense, and GuestStateError if it is taken.
        """
        stem = stem_for(program)
        wanted = chain([stem], (f"{stem}-{n}" for n in count(2))) if name is None else iter([check_name(name)])
        try:
            with self._locked():
                for candidate in wanted:
                    fd = self._take(candidate)
                    if fd is not None:
                        return self._occupy(candidate, fd, program)
        except OSError as error:
            raise HostError(
                f"{self.path}: no guest can be entered there: {error.strerror}",
                hint="is there room on that file system? MEMVM_RUNTIME_DIR names another directory",
            ) from error
        raise GuestStateError(
            f"a guest called {name!r} is running already",
            hint="choose another name, or `memvm kill` that one",
        )

    def connect(self, name: str, timeout: float | None) -> socket.socket:
        """A connection to the manager of a guest; `timeout` in seconds is that of its calls.

        Raises NoSuchGuest, ControlError, and UsageError if no guest could have that name.
        """
        check_name(name)
        with self._locked():
            entry = self._look(name)
        if entry is None:
            names = ", ".join(entry.name for entry in self.entries())
            raise NoSuchGuest(
                f"no running guest is called {name!r}",
                hint=f"these run: {names}" if names else "no guest is running; `memvm run` starts one",
            )
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(f"/proc/self/fd/{self._fd}/{name}.sock")
        except OSError as error:
            connection.close()
            if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
                raise NoSuchGuest(f"guest {name!r} is just ending") from None
            raise ControlError(f"the manager of guest {name!r} cannot be reached: {error.strerror}") from error
        return connection

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The directory's own lock; never held while waiting for anything else."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)  # and with it goes the lock

    def _look(self, name: str) -> Entry | None:
        """Who runs under that name; leftovers of a dead one are removed. Only under the directory's lock."""
        try:
            fd = os.open(f"{name}.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        try:
            if not _try_lock(fd):
                return _parse_entry(name, os.read(fd, 1 << 16))
            if self._is_current(name, fd):
                self._remove(name)
            return None
        finally:
            os.close(fd)

    def _clear_rehearsals(self) -> None:
        """Remove those that are over, or whose process is dead. Only under the directory's lock."""
        for entry in list(os.scandir(self._fd)):
            if _REHEARSAL.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                self._clear_rehearsal(entry.name)

    def _clear_rehearsal(self, name: str) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            if not _is_owned(fd):
                for left in os.listdir(fd):  # noqa: PTH208 - the directory that is open
                    os.unlink(left, dir_fd=fd)
                os.rmdir(name, dir_fd=self._fd)
        finally:
            os.close(fd)

    def _take(self, name: str) -> int | None:
        """The locked descriptor of a name's lock file; None if somebody runs under that name."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            fd = os.open(f"{name}.lock", flags, 0o600, dir_fd=self._fd)
            if not _try_lock(fd):
                os.close(fd)
                return None
            if self._is_current(name, fd):
                return fd
            os.close(fd)  # its owner removed it between our open and our lock

    def _is_current(self, name: str, fd: int) -> bool:
        try:
            named = os.stat(f"{name}.lock", dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def _occupy(self, name: str, fd: int, program: str) -> Reservation:
        """Say who we are and listen, before anybody can look."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            about = {"pid": os.getpid(), "program": program, "started": time.time()}
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(about).encode(), 0)
            with suppress(FileNotFoundError):
                os.unlink(f"{name}.sock", dir_fd=self._fd)
            listener.bind(f"/proc/self/fd/{self._fd}/{name}.sock")
            os.chmod(f"/proc/self/fd/{self._fd}/{name}.sock", 0o600)  # noqa: PTH101 - not a path of ours
            listener.listen(_BACKLOG)
            return Reservation(name, os.dup(self._fd), fd, listener)
        except OSError:
            listener.close()
            self._remove(name)
            os.close(fd)
            raise

    def _remove(self, name: str) -> None:
        _remove_files(self._fd, name)


class Reservation:
    """A name that is ours until release(), and the socket that listens under it."""

    def __init__(self, name: str, directory: int, lock: int, listener: socket.socket) -> None:
        self.name = name
        self.listener = listener
        self._directory = directory
        self._lock = lock

    def release(self) -> None:
        """Remove the files, then give the name back; idempotent."""
        self.listener.close()
        if self._lock >= 0:
            _remove_files(self._directory, self.name)
            os.close(self._directory)
            os.close(self._lock)  # last: until here nobody takes the name
            self._lock = -1


def _open_private_directory(path: Path) -> int:
    elsewhere = "MEMVM_RUNTIME_DIR names another directory to use"
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        what = "is a symbolic link" if path.is_symlink() else f"cannot be used: {error.strerror}"
        raise HostError(f"the run-time directory {path} {what}", hint=elsewhere) from error
    found = os.fstat(fd)
    problem = ""
    if found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, not to user {os.geteuid()}"
    elif stat.S_IMODE(found.st_mode) != 0o700:
        problem = f"has mode {stat.S_IMODE(found.st_mode):04o}, so that others could speak to your guests"
        elsewhere = f"chmod 700 {path}"
    if problem:
        os.close(fd)
        raise HostError(f"the run-time directory {path} {problem}", hint=elsewhere)
    return fd


def stem_for(program: str) -> str:
    """What the names of guests begin with that run this program, or come from a file of this name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(program).name).lstrip("._-")[:_MAX_STEM] or "guest"


def _is_owned(directory: int) -> bool:
    """Whether the process still lives that rehearses there."""
    try:
        owner = os.open(_OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(owner)
    finally:
        os.close(owner)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse_entry(name: str, text: bytes) -> Entry:
    try:
        about = json.loads(text)
        return Entry(name, int(about["pid"]), str(about["program"]), float(about["started"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ControlError(
            f"the lock file of guest {name!r} makes no sense",
            hint="another version of memvm may have written it",
        ) from None


def _remove_files(directory: int, name: str) -> None:
    for suffix in (".sock", ".lock"):
        with suppress(FileNotFoundError):
            os.unlink(name + suffix, dir_fd=directory)
