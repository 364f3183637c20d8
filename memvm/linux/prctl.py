"""prctl(2) and RLIMIT_CORE: what a process asks of the kernel for itself."""

from __future__ import annotations

import resource

from memvm.linux.libc import syscall

_SYSCALL_PRCTL = 157  # arch/x86/entry/syscalls/syscall_64.tbl
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
PR_SET_DUMPABLE = 4


def refuse_core_dumps(pid: int = 0) -> None:
    """Dump no core of this process, or of another one of the same user, whatever happens: it has a key in its memory.

    A limit of 0 keeps the kernel from writing a file, and not from giving the dump to a program (core_pattern with a
    pipe, core(5)). A limit of 1 keeps it from both: a file would be too short, and to the kernel it is the mark of such
    a program itself, whose crash is dumped to nobody (fs/coredump.c). Whose hard limit is 0 already, keeps that.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else 1
    resource.prlimit(pid, resource.RLIMIT_CORE, (limit, limit))


def refuse_inspection() -> None:
    """Keep other processes of the same user out, too: no ptrace, no /proc/PID/mem. Root is not kept out.

    Most of /proc/self belongs to root from then on. What somebody has opened before stays open: see `inspection`.
    """
    refuse_core_dumps()
    inspection(allowed=False)


def inspection(*, allowed: bool) -> None:
    """Whether other processes of the same user may look into this one.

    The answer belongs to the process's memory. fork(2) hands it on, execve(2) does not. So only a process that was
    forked by one which refuses has memory that nobody can have opened, ever.
    """
    syscall(_SYSCALL_PRCTL, PR_SET_DUMPABLE, int(allowed), 0, 0, 0)


def is_traced() -> bool:
    """Whether somebody traces this process: he was there before it refused, and need not ask any more."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return not any(line.split() == ["TracerPid:", "0"] for line in file)


def signal_at_parents_end(number: int) -> None:
    """Let the kernel send this process a signal when the thread that forked it ends.

    A parent that has ended before is not noticed: ask os.getppid() afterwards.
    """
    syscall(_SYSCALL_PRCTL, _PR_SET_PDEATHSIG, number, 0, 0, 0)
