"""Every pointer of every call in the table, pointed at places where a guest has no business: EFAULT, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memvm.machine.hypercalls.families import TABLE
from memvm.machine.hypercalls.table import Address, Buffer, Entry, Text
from tests.machine.conftest import CProgram
from tests.support import MemvmCli

# The pages of programs/calls.c
READ_WRITE, NOTHING, READ_ONLY, NO_RIGHT, LAST = (0x1000_0000 + page * 0x1000 for page in (0, 1, 2, 3, 5))
# And what it has open.
EPOLL, EVENT, TIMER, SOCKET = 20, 21, 22, 23

UNREADABLE = {
    "nothing there": NOTHING,
    "no right": NO_RIGHT,
    "first page": 8,
    "the stub": 0x1F0000,
    "below RAM": 0x1FFFFF,
    "behind RAM": 0x7000_0000_0000,
    "not canonical": 0x8000_0000_0000,
    "kernel": 0xFFFF_8880_0000_0000,
    "wraps": 0xFFFF_FFFF_FFFF_FFFF,
}
UNWRITABLE = UNREADABLE | {"read only": READ_ONLY}

IN, OUT = "in", "out"
"""Where a call reads, and where it writes."""
MAYBE_IN, MAYBE_OUT = "maybe in", "maybe out"
"""The same for pointers that may be null."""

# The arguments that make each call look at each of its pointers.
POINTERS: dict[str, list[tuple[int | str, ...]]] = {
    "read": [(0, OUT, 8)],
    "write": [(1, IN, 8)],
    "readv": [(0, IN, 1)],
    "writev": [(1, IN, 1)],
    "fstat": [(0, OUT)],
    "newfstatat": [(0, IN, READ_WRITE, 0x1000), (0, READ_WRITE + 100, OUT, 0x1000)],
    "poll": [(IN, 1, 0), (OUT, 1, 0)],
    "ppoll": [(OUT, 1, READ_WRITE + 100, 0, 8), (READ_WRITE, 0, MAYBE_IN, 0, 8), (READ_WRITE, 0, 0, MAYBE_IN, 8)],
    "select": [(1, MAYBE_OUT, 0, 0, READ_WRITE + 100), (0, 0, 0, 0, MAYBE_IN)],
    "pselect6": [(1, MAYBE_OUT, 0, 0, READ_WRITE + 100, 0), (0, 0, 0, 0, MAYBE_IN, 0), (0, 0, 0, 0, 0, MAYBE_IN)],
    "mincore": [(READ_WRITE, 0x1000, OUT)],
    "arch_prctl": [(0x1003, OUT)],
    "prctl": [(15, IN), (16, OUT)],
    "rt_sigaction": [(10, MAYBE_IN, 0, 8), (10, 0, MAYBE_OUT, 8)],
    "rt_sigprocmask": [(0, MAYBE_IN, 0, 8), (0, 0, MAYBE_OUT, 8)],
    "rt_sigpending": [(OUT, 8)],
    "rt_sigsuspend": [(IN, 8)],
    "rt_sigtimedwait": [(IN, 0, 0, 8), (READ_WRITE + 100, 0, MAYBE_IN, 8)],
    "rt_sigqueueinfo": [(1000, 10, IN)],
    "rt_tgsigqueueinfo": [(1000, 1000, 10, IN)],
    "getitimer": [(0, OUT)],
    "setitimer": [(0, MAYBE_IN, 0), (0, 0, MAYBE_OUT)],
    "timer_create": [(1, MAYBE_IN, READ_WRITE), (1, 0, OUT)],
    "timer_settime": [(0, 0, MAYBE_IN, 0)],
    "sigaltstack": [(MAYBE_IN, 0), (0, MAYBE_OUT)],
    "getresuid": [(OUT, READ_WRITE, READ_WRITE), (READ_WRITE, OUT, READ_WRITE), (READ_WRITE, READ_WRITE, OUT)],
    "getresgid": [(OUT, READ_WRITE, READ_WRITE), (READ_WRITE, OUT, READ_WRITE), (READ_WRITE, READ_WRITE, OUT)],
    "uname": [(OUT,)],
    "getcwd": [(OUT, 100)],
    "readlink": [(IN, READ_WRITE, 10)],
    "readlinkat": [(0, IN, READ_WRITE, 10)],
    "sysinfo": [(OUT,)],
    "getrlimit": [(7, OUT)],
    "setrlimit": [(7, IN)],
    "prlimit64": [(0, 7, MAYBE_IN, 0), (0, 7, 0, MAYBE_OUT)],
    "getrusage": [(0, OUT)],
    "getrandom": [(OUT, 16, 0)],
    "memvm_generation": [(OUT, 64)],
    "memvm_bind_key": [(1, IN)],
    "memvm_wipe_with_tokens": [(OUT, 64)],
    "memvm_bind_data": [(IN, 48)],
    "clock_gettime": [(1, OUT)],
    "clock_getres": [(1, MAYBE_OUT)],
    "gettimeofday": [(MAYBE_OUT, 0), (0, MAYBE_OUT)],
    "time": [(MAYBE_OUT,)],
    "times": [(MAYBE_OUT,)],
    "nanosleep": [(IN, 0)],
    "clock_nanosleep": [(1, 0, IN, 0)],
    "getcpu": [(MAYBE_OUT, 0), (0, MAYBE_OUT)],
    "sched_getaffinity": [(0, 8, OUT)],
    "sched_setaffinity": [(0, 8, IN)],
    "sched_getparam": [(0, MAYBE_OUT)],
    "sched_setscheduler": [(0, 0, MAYBE_IN)],
    "futex": [(READ_WRITE + 100, 0, 7, MAYBE_IN, 0, 0)],
    "get_robust_list": [(0, OUT, READ_WRITE), (0, READ_WRITE, OUT)],
    "clone": [(0x110F00, 0, OUT, 0, 0)],
    "clone3": [(IN, 88)],
    "ioctl": [(0, 0x5421, IN)],
    "open": [(IN, 0, 0)],
    "stat": [(IN, READ_WRITE)],
    "lstat": [(IN, READ_WRITE)],
    "access": [(IN, 0)],
    "chdir": [(IN,)],
    "openat": [(0, IN, 0, 0)],
    "faccessat": [(0, IN, 0)],
    "faccessat2": [(0, IN, 0, 0)],
    "statx": [(0, IN, 0, 0, READ_WRITE), (0, READ_WRITE + 100, 0x1000, 0, OUT)],
    "execve": [(IN, 0, 0)],
    "creat": [(IN, 0)],
    "truncate": [(IN, 0)],
    "statfs": [(IN, READ_WRITE)],
    "fstatfs": [(0, OUT)],
    "pipe": [(OUT,)],
    "pipe2": [(OUT, 0)],
    "preadv": [(0, IN, 1, 0)],
    "pwritev": [(1, IN, 1, 0)],
    "mkdir": [(IN, 0)],
    "mkdirat": [(0, IN, 0)],
    "rmdir": [(IN,)],
    "unlink": [(IN,)],
    "unlinkat": [(0, IN, 0)],
    "rename": [(IN, READ_WRITE), (READ_WRITE, IN)],
    "renameat": [(0, IN, 0, READ_WRITE), (0, READ_WRITE, 0, IN)],
    "renameat2": [(0, IN, 0, READ_WRITE, 0), (0, READ_WRITE, 0, IN, 0)],
    "link": [(IN, READ_WRITE), (READ_WRITE, IN)],
    "linkat": [(0, IN, 0, READ_WRITE, 0), (0, READ_WRITE, 0, IN, 0)],
    "symlink": [(IN, READ_WRITE), (READ_WRITE, IN)],
    "symlinkat": [(IN, 0, READ_WRITE), (READ_WRITE, 0, IN)],
    "chmod": [(IN, 0)],
    "fchmodat": [(0, IN, 0)],
    "chown": [(IN, 1000, 1000)],
    "lchown": [(IN, 1000, 1000)],
    "fchownat": [(0, IN, 1000, 1000, 0)],
    "utimensat": [(0, MAYBE_IN, READ_WRITE + 200, 0), (0, READ_WRITE, MAYBE_IN, 0)],
    "epoll_ctl": [(EPOLL, 1, EVENT, IN)],
    "epoll_wait": [(EPOLL, OUT, 1, 0)],
    "epoll_pwait": [(EPOLL, OUT, 1, 0, 0, 8), (EPOLL, READ_WRITE, 1, 0, MAYBE_IN, 8)],
    "epoll_pwait2": [
        (EPOLL, OUT, 1, READ_WRITE + 100, 0, 8),
        (EPOLL, READ_WRITE, 1, MAYBE_IN, 0, 8),
        (EPOLL, READ_WRITE, 1, READ_WRITE + 100, MAYBE_IN, 8),
    ],
    "timerfd_settime": [(TIMER, 0, IN, 0), (TIMER, 0, READ_WRITE + 100, MAYBE_OUT)],
    "timerfd_gettime": [(TIMER, OUT)],
    "signalfd": [(0xFFFF_FFFF, IN, 8)],
    "signalfd4": [(0xFFFF_FFFF, IN, 8, 0)],
    "socketpair": [(1, 1, 0, OUT)],
    "clock_settime": [(0, IN)],
    "capget": [(IN, READ_WRITE)],
    "capset": [(IN, READ_WRITE)],
    "sched_rr_get_interval": [(0, OUT)],
    "sendto": [(SOCKET, IN, 8, 0, 0, 0)],
    "recvfrom": [(SOCKET, OUT, 8, 0x40, 0, 0)],
    "sendmsg": [(SOCKET, IN, 0)],
    "recvmsg": [(SOCKET, OUT, 0x40)],
    "sendmmsg": [(SOCKET, IN, 1, 0)],
    "recvmmsg": [(SOCKET, OUT, 1, 0x40, 0), (SOCKET, READ_WRITE, 1, 0x40, MAYBE_IN)],
    "getsockname": [(SOCKET, OUT, READ_WRITE), (SOCKET, READ_WRITE + 100, OUT)],
    "getpeername": [(SOCKET, OUT, READ_WRITE), (SOCKET, READ_WRITE + 100, OUT)],
    "setsockopt": [(SOCKET, 1, 9, IN, 4)],
    "getsockopt": [(SOCKET, 1, 3, OUT, READ_WRITE), (SOCKET, 1, 3, READ_WRITE + 100, OUT)],
}
# Calls whose addresses are no pointers to data, are only remembered, or that are refused whatever they say; positions
# in files, which need a regular one: programs/descriptors.c has those; directories: programs/tree.c; timers:
# programs/handlers.c; and disks, which have to be there: programs/disk.c.
NOT_LOOKED_AT = {
    "timer_gettime",
    "mmap", "munmap", "mprotect", "mremap", "brk", "madvise",
    "msync", "mlock", "munlock", "set_tid_address", "set_robust_list", "rseq", "membarrier",
    "socket", "connect", "accept", "accept4", "bind", "getgroups", "wait4",
    "setgroups", "chroot", "mount", "umount2", "sethostname", "setdomainname", "settimeofday",
    "memvm_token", "memvm_disk_info", "memvm_disk_read", "memvm_disk_write",
    "memvm_broker_challenge", "memvm_broker_key",
    "sendfile", "splice", "copy_file_range", "pread64", "pwrite64", "fallocate", "getdents64", "mknod", "mknodat",
    "getxattr", "lgetxattr", "fgetxattr", "setxattr", "fsetxattr", "listxattr", "llistxattr", "flistxattr",
}  # fmt: skip


def has_pointers(entry: Entry) -> bool:
    return any(isinstance(argument, Address | Buffer | Text) for argument in entry.arguments)


def cases(entry: Entry) -> Iterator[tuple[str, str]]:
    """A line for programs/calls.c, and what it is about."""
    for arguments in POINTERS[entry.name]:
        [kind] = [argument for argument in arguments if isinstance(argument, str)]
        bad = dict(UNREADABLE if kind in (IN, MAYBE_IN) else UNWRITABLE)
        if kind in (IN, OUT):
            bad["null"] = 0
        for what, address in bad.items():
            values = [address if argument == kind else argument for argument in arguments]
            values += [0] * (6 - len(values))
            line = " ".join(f"{int(value):x}" for value in (entry.number, *values))
            yield line, f"{entry.name}{tuple(map(str, arguments))}: {what}"


def test_every_call_with_a_pointer_is_tested_here() -> None:
    with_pointers = {entry.name for entry in TABLE.values() if has_pointers(entry)}
    assert with_pointers - set(POINTERS) - NOT_LOOKED_AT == set()
    assert (set(POINTERS) | NOT_LOOKED_AT) - {entry.name for entry in TABLE.values()} == set()
    assert set(POINTERS) & NOT_LOOKED_AT == set()


@pytest.mark.parametrize("engine", ["userfaultfd", "mprotect"])
def test_a_bad_pointer_is_efault(engine: str, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    all_cases = [case for entry in TABLE.values() if entry.name in POINTERS for case in cases(entry)]
    given = "".join(f"{line}\n" for line, _ in all_cases).encode()
    result = memvm_cli("run", "--engine", engine, "--", c_program("calls"), stdin=given, code=0)
    answers = result.text.splitlines()
    wrong = [(what, got) for (_, what), got in zip(all_cases, answers, strict=True) if got != "EFAULT"]
    assert wrong == []


def test_a_buffer_that_runs_over_the_end_of_memory_is_efault(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    lines = [
        f"1 1 {LAST + 0x1000 - 4:x} 8 0 0 0",  # write(2) of 8 bytes, 4 of which are there
        f"3f {LAST + 0x1000 - 389:x} 0 0 0 0 0",  # uname(2): 390 bytes
        f"13e {LAST + 0x1000 - 4:x} 8 0 0 0 0",  # getrandom(2)
        f"59 {LAST:x} {READ_WRITE:x} 10 0 0 0",  # readlink(2) of a path that never ends
        f"9d f {LAST + 0x1000 - 4:x} 0 0 0 0",  # prctl(PR_SET_NAME) of a name that is cut off
    ]
    result = memvm_cli("run", "--", c_program("calls"), stdin="\n".join(lines).encode(), code=0)
    assert result.text.splitlines() == ["EFAULT"] * 3 + ["ENAMETOOLONG", "EFAULT"]
