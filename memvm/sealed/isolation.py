"""A process that nobody of the same user can look into: the platform of a sealed guest, forked from its manager.

What keeps others out is the kernel's mark that a process's memory may not be dumped (prctl(2), PR_SET_DUMPABLE): then
ptrace, /proc/PID/mem, process_vm_readv, pidfd_getfd and /proc/PID/fd are for root alone. The mark is put on the manager
for the moment of the fork, so that the platform's memory has it from its first instant, and nobody can have opened it
before. Started by root, the platform also becomes a user whom nobody else is.

Root is not kept out, nor is the kernel.
"""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from memvm.errors import HostError
from memvm.linux.own_threads import too_many
from memvm.linux.prctl import inspection, is_traced, refuse_core_dumps

_USERS = range(61184, 65520)
"""User ids for processes that need one for themselves: DynamicUser= of systemd.exec(5) takes its own from there."""
_TRIES = 64
_STANDARD_STREAMS = 3
_FAILED = 70


class PlatformProcess:
    """The process that was forked, as its parent has it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        self._status: int | None = None
        self._waiting = threading.Lock()

    def wait(self) -> int:
        """Wait for its end; its exit status, or the negative number of the signal that ended it. Idempotent."""
        with self._waiting:
            if self._status is None:
                self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self._status

    def close(self) -> None:
        """Hang up, which ends the process and its guest, and wait for that."""
        with suppress(OSError):  # not connected any more is what was wanted
            self.connection.shutdown(socket.SHUT_RDWR)
        self.wait()
        self.connection.close()


def fork_platform(run: Callable[[socket.socket], None], keep: tuple[int, ...] = ()) -> PlatformProcess:
    """Fork a process that calls `run` with its end of a connection, and ends when that returns.

    It has the standard streams and the descriptors to `keep`, and no others. For a process with one thread. Raises
    HostError if somebody traces this one: he would trace the other one, too.
    """
    if threading.active_count() > 1:
        raise RuntimeError("a platform cannot be forked from a process with several threads")
    if is_traced():
        raise HostError(
            "a sealed guest cannot be started while its manager is being traced",
            hint="start it without strace or a debugger",
        )
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inspection(allowed=False)
    try:
        pid = os.fork()
        if pid == 0:
            _be_platform(run, theirs, keep)
    except BlockingIOError as error:
        ours.close()
        raise too_many("the platform of a sealed guest") from error
    except OSError as error:
        ours.close()
        raise HostError(f"cannot start the platform of a sealed guest: {error.strerror}") from error
    finally:
        inspection(allowed=True)
        theirs.close()
    return PlatformProcess(pid, ours)


def _be_platform(run: Callable[[socket.socket], None], connection: socket.socket, keep: tuple[int, ...]) -> None:
    """The child; never returns."""
    status = _FAILED
    try:
        refuse_core_dumps()
        if is_traced():
            raise HostError("the platform of a sealed guest is being traced")
        os.setsid()  # a Ctrl-C on the terminal is the manager's business
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        close_all_but(*range(_STANDARD_STREAMS), connection.fileno(), *keep)
        run(connection)
        status = 0
    except BaseException:  # noqa: BLE001 - this process has nobody above it; its parent sees the status
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def close_all_but(*kept: int) -> None:
    """Close all descriptors but these."""
    begin = 0
    for fd in sorted(set(kept)):
        if begin < fd:  # an empty range would be taken for all of them
            os.closerange(begin, fd)
        begin = fd + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))


def become_another_user() -> None:
    """If this process is root, become a user whom nobody else is, in all threads. Raises HostError.

    What only root may read has to be open, and imported, before.
    """
    if os.geteuid() != 0:
        return
    user = _free_user()
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise HostError(
            f"the platform of a sealed guest cannot become user {user}: {error.strerror}",
            hint="start it as an ordinary user, or give this container more user ids",
        ) from error
    inspection(allowed=False)  # another user's memory has the mark that fs.suid_dumpable says


def _free_user() -> int:
    taken = {entry.pw_uid for entry in pwd.getpwall()} | _users_of_processes()
    for user in random.SystemRandom().sample(_USERS, _TRIES):
        if user not in taken:
            return user
    raise HostError(f"no user id is free for a sealed guest, of {_USERS.start} to {_USERS.stop - 1}")


def _users_of_processes() -> set[int]:
    users = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended
                users.add(_real_user(entry))
    return users


def _real_user(process: Path) -> int:
    lines = (process / "status").read_text(errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])
