"""Descriptors handed from one process to another in a message on a Unix socket (unix(7), SCM_RIGHTS).

pidfd_getfd(2) would do it in one call, but container engines forbid it by default to whoever lacks CAP_SYS_PTRACE;
nobody forbids this.
"""

from __future__ import annotations

import array
import socket
import struct

SYSCALL_SENDMSG = 46
SOL_SOCKET, SCM_RIGHTS = 1, 1  # include/uapi/asm-generic/socket.h, include/linux/socket.h

_IOVEC = struct.Struct("=QQ")
_MSGHDR = struct.Struct("=QI4xQQQQi4x")  # struct msghdr: name, iovec, control and their lengths, flags
_CMSG = struct.Struct("=QiIi4x")  # struct cmsghdr with one descriptor
_CMSG_LENGTH = 20  # without the padding
MESSAGE_SIZE = _MSGHDR.size + _IOVEC.size + _CMSG.size


def message(address: int, descriptor: int) -> bytes:
    """What sendmsg wants in memory, the struct msghdr first, to hand over a descriptor; it shall lie at `address`."""
    vector = address + _MSGHDR.size
    control = vector + _IOVEC.size
    header = _MSGHDR.pack(0, 0, vector, 1, control, _CMSG.size, 0)
    # One byte must go with it: the first one of the header serves.
    return header + _IOVEC.pack(address, 1) + _CMSG.pack(_CMSG_LENGTH, SOL_SOCKET, SCM_RIGHTS, descriptor)


def receive_descriptor(mailbox: socket.socket) -> int:
    """The descriptor of the next message. Raises OSError if none came with it."""
    room = socket.CMSG_SPACE(array.array("i").itemsize)
    _, control, _, _ = mailbox.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return int(array.array("i", data[:4])[0])
    raise OSError("no descriptor came with the message")
