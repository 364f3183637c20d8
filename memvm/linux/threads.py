"""Threads of other processes: a signal for one of them (tgkill(2)), and the CPU time that it has used (proc(5))."""

from __future__ import annotations

import errno
import os

from memvm.linux.libc import syscall

SYSCALL_TGKILL = 234  # arch/x86/entry/syscalls/syscall_64.tbl


def send_to_thread(process: int, thread: int, number: int) -> None:
    """Send a signal to one thread. Raises ProcessLookupError if it has ended."""
    syscall(SYSCALL_TGKILL, process, thread, number)


def cpu_time(thread: int) -> int:
    """Nanoseconds of CPU time that a thread has used. Raises OSError if it has ended.

    The time of a thread that runs just now may be that of its last timer interrupt. Its CPU clock can be read only by
    its own process (clock_getcpuclockid(3)).
    """
    try:
        return int(_read(f"/proc/{thread}/schedstat").split()[0])
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO: times of user and kernel in ticks
        words = _read(f"/proc/{thread}/stat").rpartition(b")")[2].split()
        return (int(words[11]) + int(words[12])) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        text = file.read(4096)
    if not text:
        raise ProcessLookupError(errno.ESRCH, f"{path} is empty")
    return text
