"""seccomp(2): a filter that hands every system call of a process to its supervisor.

Facts that the callers rely on (tested in tests/linux/test_seccomp.py):

- SYNC_WAKE_UP (Linux 6.6) lets guest and manager hand over on one CPU; without it a call costs a
  wake-up across CPUs when they are apart.
- The receive structure must be zero when it is passed.
- A notification is withdrawn when its thread is interrupted (a signal, a ptrace stop): the answer then
  gives ENOENT, and the same call is notified again when the thread goes on.
- The listener polls as hung up when the last process with the filter has gone.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import NamedTuple

from memvm.linux.ioctl import io_read_write, io_write

SYSCALL_SECCOMP = 317
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
AUDIT_ARCH_X86_64 = 0xC000003E  # include/uapi/linux/audit.h

_KIND = ord("!")
SECCOMP_IOCTL_NOTIF_RECV = io_read_write(_KIND, 0, 80)
SECCOMP_IOCTL_NOTIF_SEND = io_read_write(_KIND, 1, 24)
SECCOMP_IOCTL_NOTIF_ID_VALID = io_write(_KIND, 2, 8)
SECCOMP_IOCTL_NOTIF_SET_FLAGS = io_write(_KIND, 4, 8)


class Action(IntEnum):
    """SECCOMP_RET_*: what becomes of a call."""

    TRACE = 0x7FF00000
    USER_NOTIF = 0x7FC00000


class AnswerFlag(IntFlag):
    """SECCOMP_USER_NOTIF_FLAG_*."""

    NONE = 0
    CONTINUE = 1


_SYNC_WAKE_UP = 1

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_NUMBER_OFFSET, _ARCH_OFFSET, _INSTRUCTION_OFFSET = 0, 4, 8  # struct seccomp_data
_X32_BIT = 0x40000000


def filter_program(traced: Iterable[int], untraced_at: int = 0) -> bytes:
    """A BPF program: the calls in `traced` become ptrace stops, every other one a notification.

    Where the instruction pointer is `untraced_at` (behind the system call), all are notifications.

    Calls by another convention (int 0x80, x32) are notifications whatever their number, so that the
    supervisor sees and refuses them.
    """
    numbers = sorted(traced)
    code = [_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _ARCH_OFFSET)]
    code.append(_INSTRUCTION.pack(_JUMP_EQUAL, 0, len(numbers) + 2, AUDIT_ARCH_X86_64))
    code.append(_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _NUMBER_OFFSET))
    code.append(_INSTRUCTION.pack(_JUMP_AT_LEAST, len(numbers), 0, _X32_BIT))
    for position, number in enumerate(numbers):
        code.append(_INSTRUCTION.pack(_JUMP_EQUAL, len(numbers) - position, 0, number))
    code.append(_INSTRUCTION.pack(_RETURN, 0, 0, Action.USER_NOTIF))
    code.append(_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _INSTRUCTION_OFFSET))
    code.append(_INSTRUCTION.pack(_JUMP_EQUAL, 0, 2, untraced_at & 0xFFFFFFFF))
    code.append(_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _INSTRUCTION_OFFSET + 4))
    code.append(_INSTRUCTION.pack(_JUMP_EQUAL, 1, 0, untraced_at >> 32))
    code.append(_INSTRUCTION.pack(_RETURN, 0, 0, Action.TRACE))
    code.append(_INSTRUCTION.pack(_RETURN, 0, 0, Action.USER_NOTIF))
    return b"".join(code)


INSTRUCTION_SIZE = _INSTRUCTION.size

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif with struct seccomp_data
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_BLANK = bytes(_NOTIFICATION.size)


class Notification(NamedTuple):
    """One system call that waits for its answer."""

    id: int
    tid: int
    number: int
    arch: int
    instruction: int
    arguments: tuple[int, ...]


class Listener:
    """The supervisor's end of a filter: receives notifications and answers them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(_NOTIFICATION.size)

    def hand_over_on_one_cpu(self) -> bool:
        """Ask for synchronous wake-ups; False where the kernel is older than 6.6."""
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise
            return False
        return True

    def receive(self) -> Notification | None:
        """The next notification, waiting for one; None if it was withdrawn meanwhile (ENOENT)."""
        buffer = self._buffer
        buffer[:] = _BLANK
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        fields = _NOTIFICATION.unpack(buffer)
        return Notification(fields[0], fields[1], fields[3], fields[4], fields[5], fields[6:])

    def answer(self, identity: int, value: int) -> bool:
        """Answer with a result or, if negative, an errno; False if the call was withdrawn (ENOENT)."""
        if value < 0:
            return self._send(_RESPONSE.pack(identity, 0, value, AnswerFlag.NONE))
        return self._send(_RESPONSE.pack(identity, value, 0, AnswerFlag.NONE))

    def let_run(self, identity: int) -> bool:
        """Let the kernel carry the call out: only for calls all of whose arguments are plain values."""
        return self._send(_RESPONSE.pack(identity, 0, 0, AnswerFlag.CONTINUE))

    def _send(self, response: bytes) -> bool:
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SEND, response)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def is_waiting(self, identity: int) -> bool:
        """Whether the call still waits for its answer."""
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ID_VALID, struct.pack("=Q", identity))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True
