"""The stub: the few bytes of program from which every guest process is made.

The stub is an ELF file of one page (stub_image.py), executed from a memory file. It waits in a read that returns only
if its manager dies; then it exits. The manager seizes it, and from then on makes it call what the manager wants:
registers are set to a `syscall; int3` in the stub's page, and the trap says that the call is done. That page stays in
the guest, read-only. A guest that jumps there makes hypercalls like any others.

What remains of the process when it becomes a guest: the stub's page, the clock page, guest RAM, and one descriptor of
its userfaultfd (so that a manager that dies cannot let a waiting thread go on with zero pages before it is killed).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import socket
import struct
from collections import deque
from typing import Any

from memvm.errors import HostError
from memvm.linux import memfd, passing, ptrace, seccomp
from memvm.linux.own_threads import too_many
from memvm.linux.prctl import PR_SET_DUMPABLE, refuse_core_dumps
from memvm.linux.userfaultfd import SYSCALL_USERFAULTFD, UFFD_USER_MODE_ONLY
from memvm.machine.layout import CLOCK_BASE, RAM_BASE, STUB_BASE
from memvm.machine.stub_image import (
    CLOCK_FD,
    INJECT_ADDRESS,
    MAIL_FD,
    PIPE_FD,
    RAM_FD,
    SERVICE_ADDRESS,
    SERVICE_MADVISE,
    stub_image,
)
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

# System call numbers: arch/x86/entry/syscalls/syscall_64.tbl
_MMAP, _MPROTECT, _MUNMAP, _PRCTL, _CLOSE_RANGE = 9, 10, 11, 157, 436
_MAP_FIXED_NOREPLACE, _MAP_NORESERVE = 0x100000, 0x4000
_CLONE = 56
_CLONE_FLAGS = 0x50F00  # CLONE_VM, _FS, _FILES, _SIGHAND, _THREAD, _SYSVSEM: include/uapi/linux/sched.h
_CLONE_UNTRACED = 0x800000
_CLONE_PARENT = 0x8000
_PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 15, 38
_O_CLOEXEC = 0o2000000
_ADDRESS_LIMIT = 0x7FFF_FFFF_F000
_LAST_DESCRIPTOR = 0xFFFFFFFF

_FILTER_ARGUMENTS = struct.Struct("=H6xQ16s")  # struct sock_fprog, then the thread's name
_NAME_OFFSET = 16

_SIGNALS = [int(number) for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
_RESTART = (1 << 64) - 513  # -ERESTARTNOINTR: include/linux/errno.h
_SYSCALL_SIZE = 2


class Stub:
    """One guest process, with all its threads that are traced.

    Calls are injected into one of them, `vcpu`, which must stand still; the others may run.
    Every method must be called from the thread that made it: it is the tracer.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.vcpu = 0
        """The thread into which calls are injected, by its kernel id."""
        self.pidfd = -1
        self.wait_status: int | None = None
        """How the process ended, once a wait has said so."""
        self._alone = True
        """Whether there has been one thread only."""
        self._others: deque[tuple[int, int]] = deque()
        """Threads, with what a wait said of them, that were not waited for then."""
        self._keep_alive = -1
        self._mailbox: socket.socket | None = None
        self._uffd_number = -1

    def start(self, ram: GuestRam, clock_fd: int | None = None, *, isolated: bool = False) -> None:
        """Start the process, seize it, and replace its memory by guest RAM, with no access rights yet.

        `clock_fd` is the memory file of the clock page, if there shall be one. An `isolated` one can be looked into by
        nobody of the same user, not even by who was quick.
        """
        try:
            self._spawn(ram, clock_fd)
            if isolated:
                self._isolate()
        except BlockingIOError as error:
            raise too_many("the guest's process") from error
        except (OSError, ptrace.ThreadGone) as error:
            raise HostError(
                f"cannot start a guest process: {error or 'it ended at once'}",
                hint="'memvm doctor' says what this machine forbids (ptrace, executable memory files, limits)",
            ) from error
        refuse_core_dumps(self.pid)
        self.call(_MUNMAP, 0, STUB_BASE)
        self.call(_MUNMAP, STUB_BASE + PAGE_SIZE, _ADDRESS_LIMIT - STUB_BASE - PAGE_SIZE)
        flags = mmap.MAP_SHARED | _MAP_FIXED_NOREPLACE | _MAP_NORESERVE
        self.call(_MMAP, RAM_BASE, ram.size, 0, flags, RAM_FD, 0)
        if clock_fd is not None:
            flags = mmap.MAP_SHARED | _MAP_FIXED_NOREPLACE
            self.call(_MMAP, CLOCK_BASE, PAGE_SIZE, mmap.PROT_READ, flags, CLOCK_FD, 0)
        # Until `seal` the kernel reads arguments from the first page of guest RAM, which is still empty.
        self.call(_MPROTECT, RAM_BASE, PAGE_SIZE, mmap.PROT_READ)

    def _spawn(self, ram: GuestRam, clock_fd: int | None) -> None:
        program = memfd.create_executable("memvm-stub", stub_image())
        wait_end, self._keep_alive = os.pipe()
        self._mailbox, mail_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        # above the numbers that they become in the child, so that none overwrites another
        originals = [program, wait_end, ram.fd, mail_end.fileno()]
        if clock_fd is not None:
            originals.append(clock_fd)
        image, *sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in originals]
        try:
            self.pid = os.posix_spawn(
                f"/proc/self/fd/{image}",
                ["memvm-guest"],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, source, PIPE_FD + at) for at, source in enumerate(sources)],
                setsid=True,  # a Ctrl-C on the terminal is the manager's business
                setsigmask=[],
                setsigdef=_SIGNALS,
            )
        finally:
            mail_end.close()
            for fd in (program, wait_end, image, *sources):
                os.close(fd)
        self.vcpu = self.pid
        self.pidfd = os.pidfd_open(self.pid)
        options = ptrace.Option.EXITKILL | ptrace.Option.TRACESYSGOOD
        options |= ptrace.Option.TRACESECCOMP | ptrace.Option.TRACECLONE
        ptrace.seize(self.pid, options)
        ptrace.interrupt(self.pid)
        self.wait()

    def _isolate(self) -> None:
        """Have the process fork, and go on with the child.

        The stub was born by execve, so that for a moment everybody of this user could open its memory. The child's
        memory is another one, and refuses from its first instant (linux/prctl.py). Our tracing goes on to it, as
        PTRACE_O_TRACECLONE has it; the kernel asks nobody for that.
        """
        self.call(_PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0)
        self._alone = False
        child = self._clone(_CLONE_PARENT)
        self._alone = True
        first, first_pidfd = self.pid, self.pidfd
        self.pid = self.vcpu = child
        self.pidfd = os.pidfd_open(child)
        signal.pidfd_send_signal(first_pidfd, signal.SIGKILL)
        os.close(first_pidfd)
        while True:
            found, status = ptrace.wait(first)
            if found == first and not os.WIFSTOPPED(status):
                return

    def call(self, number: int, *arguments: int) -> int:
        """Make the process call the kernel; returns the result, or raises OSError.

        Once the filter is in place only calls that it makes ptrace stops can be made so (the stop is passed over
        in _end_call). Registers are lost: whoever interrupts a guest saves them first. Raises ThreadGone if the
        process dies meanwhile.
        """
        self._begin_call(number, arguments)
        return self._end_call(number)

    def call_in_between(self, number: int, *arguments: int) -> int:
        """Like `call`, for a guest that stands still somewhere: it has its registers again afterwards."""
        saved = ptrace.get_registers(self.vcpu)
        try:
            return self.call(number, *arguments)
        finally:
            ptrace.set_registers(self.vcpu, saved)

    def start_service(self) -> int:
        """Make the process, which stands still, start the service thread; its kernel id. Raises OSError."""
        saved, mask = ptrace.get_registers(self.vcpu), ptrace.get_signal_mask(self.vcpu)
        ptrace.set_signal_mask(self.vcpu, (1 << 64) - 1)  # the new thread has the mask of this one
        try:
            self._begin_call(_CLONE, (_CLONE_FLAGS | _CLONE_UNTRACED,), SERVICE_ADDRESS)
            return self._end_call(_CLONE)
        finally:
            ptrace.set_signal_mask(self.vcpu, mask)
            ptrace.set_registers(self.vcpu, saved)

    def call_instead(self, entry: Any, number: int, *arguments: int) -> int:
        """Make the process, which stands before a call of its own with the registers `entry`, make this one instead.

        That is one stop, where `call` needs two, and a third of the price. The filter looks at the new number too,
        and lets it pass if it is one that it makes ptrace stops (seccomp(2), SECCOMP_RET_TRACE). Afterwards the
        process stands behind the call, its registers lost. Raises OSError, and ThreadGone if it dies meanwhile.
        """
        self._change_call(entry, number, arguments)
        self.wait()
        return _result(number, int(ptrace.get_registers(self.vcpu).rax))

    def make_vcpu(self, entry: Any = None) -> int:
        """Give the process one more thread, which is traced and stands still; its kernel id. Raises OSError.

        The thread that calls are injected into makes it: in place of a call of its own, if it stands before one with
        the registers `entry`, and has lost its registers afterwards.

        A clone gives up before it has done anything if a signal waits (ERESTARTNOINTR, copy_process in kernel/fork.c):
        a kick, say. An injected one is begun again by the kernel; in place of another call, it is made anew here.
        """
        self._alone = False
        return self._clone(_CLONE_FLAGS, entry)

    def _clone(self, flags: int, entry: Any = None) -> int:
        if entry is None:
            self._begin_call(_CLONE, (flags,))
        else:
            self._change_call(entry, _CLONE, (flags,))
        made, begun = 0, True
        while True:
            status = self.wait()
            event = ptrace.stop_event(status)
            if event == ptrace.StopEvent.CLONE:
                made = ptrace.event_message(self.vcpu)
            elif event == ptrace.StopEvent.NONE and os.WSTOPSIG(status) & 0x7F == signal.SIGTRAP:
                if int(ptrace.get_registers(self.vcpu).rax) != _RESTART:
                    break
                begun = False
                self._begin_call(_CLONE, (flags,), int(entry.rip) - _SYSCALL_SIZE)
                continue
            begun = begun or event == ptrace.StopEvent.SECCOMP
            if entry is None or not begun:
                ptrace.resume(self.vcpu)  # signals that stop it are dropped
            else:
                ptrace.resume_to_syscall_exit(self.vcpu)
        _result(_CLONE, int(ptrace.get_registers(self.vcpu).rax))
        self._wait_for(made)
        return made

    def wait(self) -> int:
        """Wait until `vcpu` stops; the wait status. Raises ThreadGone if it ended, and keeps how the process did."""
        return self._wait_for(self.vcpu)

    def _wait_for(self, tid: int) -> int:
        early = next((one for one in self._others if one[0] == tid), None)
        if early is not None:
            self._others.remove(early)
            return early[1]
        while self.wait_status is None:
            found, status = self._wait()
            if found == tid and os.WIFSTOPPED(status):
                return status
            if found == tid:
                raise ptrace.ThreadGone
            if found:
                self._others.append((found, status))
        raise ptrace.ThreadGone

    def wait_any(self) -> tuple[int, int]:
        """Wait until any thread stops, or ends; its kernel id and the wait status.

        Raises ThreadGone if the process has ended, and keeps how.
        """
        if self._others:
            return self._others.popleft()
        while self.wait_status is None:
            found, status = self._wait()
            if found:
                return found, status
        raise ptrace.ThreadGone

    def _wait(self) -> tuple[int, int]:
        """One wait. The process's end is kept, and found to be of thread 0."""
        # The first thread's end is told after that of all others: so never wait for that one thread alone.
        found, status = ptrace.wait(self.pid) if self._alone else ptrace.wait_any()
        if found == self.pid and not os.WIFSTOPPED(status):
            self.wait_status = status
            return 0, status
        return found, status

    def _begin_call(self, number: int, arguments: tuple[int, ...], at: int = INJECT_ADDRESS) -> None:
        registers = ptrace.get_registers(self.vcpu)
        registers.rip = at
        registers.orig_rax = (1 << 64) - 1
        registers.rax = number
        _set_arguments(registers, arguments)
        ptrace.set_registers(self.vcpu, registers)
        ptrace.resume(self.vcpu)

    def _change_call(self, entry: Any, number: int, arguments: tuple[int, ...]) -> None:
        registers = type(entry).from_buffer_copy(entry)
        registers.orig_rax = number
        _set_arguments(registers, arguments)
        ptrace.set_registers(self.vcpu, registers)
        ptrace.resume_to_syscall_exit(self.vcpu)

    def _end_call(self, number: int) -> int:
        while True:  # stops of the filter are on the way
            status = self.wait()
            if os.WSTOPSIG(status) == signal.SIGTRAP and ptrace.stop_event(status) == ptrace.StopEvent.NONE:
                break
            ptrace.resume(self.vcpu)
        return _result(number, int(ptrace.get_registers(self.vcpu).rax))

    def _fetch(self, ram: GuestRam, number: int) -> int:
        """A descriptor of the process, for use here. Raises OSError."""
        assert self._mailbox is not None
        ram.copy_in(0, [passing.message(RAM_BASE, number)])
        self.call(passing.SYSCALL_SENDMSG, MAIL_FD, RAM_BASE, 0)
        return passing.receive_descriptor(self._mailbox)

    def open_userfaultfd(self, ram: GuestRam) -> int:
        """A userfaultfd of the guest's memory, usable from here. Raises OSError where there is none."""
        self._uffd_number = self.call(SYSCALL_USERFAULTFD, _O_CLOEXEC | UFFD_USER_MODE_ONLY)
        return self._fetch(ram, self._uffd_number)

    def open_write_notes(self, ram: GuestRam) -> int:
        """A second userfaultfd, on which nobody ever waits, so that the process need not keep it. Raises OSError."""
        return self._fetch(ram, self.call(SYSCALL_USERFAULTFD, _O_CLOEXEC | UFFD_USER_MODE_ONLY))

    def seal(self, ram: GuestRam, name: str, traced: frozenset[int]) -> seccomp.Listener:
        """Put the filter in place and close all descriptors but the userfaultfd's: now it is a guest.

        Guest RAM must still be empty. `traced` must have mprotect, which is called through the filter from here on.
        """
        # The service thread has no tracer: what it calls cannot be a stop.
        program = seccomp.filter_program(traced | {passing.SYSCALL_SENDMSG, _CLONE}, SERVICE_MADVISE)
        length = len(program) // seccomp.INSTRUCTION_SIZE
        arguments = _FILTER_ARGUMENTS.pack(length, RAM_BASE + _FILTER_ARGUMENTS.size, name.encode()[:15])
        ram.copy_in(0, [arguments, program])
        self.call(_PRCTL, _PR_SET_NAME, RAM_BASE + _NAME_OFFSET)
        self.call(_PRCTL, _PR_SET_NO_NEW_PRIVS, 1)
        mode, flags = seccomp.SECCOMP_SET_MODE_FILTER, seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER
        number = self.call(seccomp.SYSCALL_SECCOMP, mode, flags, RAM_BASE)
        listener = seccomp.Listener(self._fetch(ram, number))
        try:
            self.call(_MPROTECT, RAM_BASE, PAGE_SIZE, 0)
            ram.discard(0, 1)
            listener.hand_over_on_one_cpu()
            self._close_descriptors(listener)
        except BaseException:
            os.close(listener.fd)
            raise
        return listener

    def _close_descriptors(self, listener: seccomp.Listener) -> None:
        kept = self._uffd_number
        ranges = [(0, kept - 1), (kept + 1, _LAST_DESCRIPTOR)] if kept > 0 else [(0, _LAST_DESCRIPTOR)]
        for first, last in ranges:
            self._call_past(listener, _CLOSE_RANGE, first, last)
        os.close(self._keep_alive)
        self._keep_alive = -1
        self._close_mailbox()

    def _close_mailbox(self) -> None:
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox = None

    def _call_past(self, listener: seccomp.Listener, number: int, *arguments: int) -> None:
        """A call whose arguments are plain values, made after the filter is in place."""
        self._begin_call(number, arguments)
        notification = listener.receive()
        if notification is None or not listener.let_run(notification.id):
            raise ptrace.ThreadGone
        self._end_call(number)

    def kill(self) -> None:
        """End the process, at once."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Release the descriptors; the process must have ended and been waited for."""
        for fd in (self.pidfd, self._keep_alive):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self._keep_alive = -1
        self._close_mailbox()


def _set_arguments(registers: Any, arguments: tuple[int, ...]) -> None:
    values = (*arguments, 0, 0, 0, 0, 0, 0)
    registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9 = values[:6]


def _result(number: int, value: int) -> int:
    if value <= (1 << 64) - 4096:
        return value
    errno = (1 << 64) - value
    raise OSError(errno, f"injected system call {number}: {os.strerror(errno)}")
