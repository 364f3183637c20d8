"""getsockopt and setsockopt: what programs set on any socket is kept; buffers and time limits count."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from memvm.files.facts import USER
from memvm.machine.callresult import CallError
from memvm.machine.clocks import SECOND
from memvm.machine.guest import GUEST_PID, Guest
from memvm.machine.hypercalls.sockets import socket_of
from memvm.machine.hypercalls.table import Address, Call, Choice, Int, hypercall, signed

if TYPE_CHECKING:
    from memvm.files.sockets import Socket

_INT, _TIMEVAL, _CREDENTIALS = struct.Struct("=i"), struct.Struct("=qq"), struct.Struct("=iII")
_SOL_SOCKET = 1
# include/uapi/asm-generic/socket.h
_OPTIONS = {
    "REUSEADDR": 2, "TYPE": 3, "ERROR": 4, "DONTROUTE": 5, "BROADCAST": 6, "SNDBUF": 7, "RCVBUF": 8, "KEEPALIVE": 9,
    "OOBINLINE": 10, "PRIORITY": 12, "LINGER": 13, "REUSEPORT": 15, "PASSCRED": 16, "PEERCRED": 17, "RCVLOWAT": 18,
    "SNDLOWAT": 19, "RCVTIMEO": 20, "SNDTIMEO": 21, "ACCEPTCONN": 30, "PROTOCOL": 38, "DOMAIN": 39,
}  # fmt: skip
_TYPE, _ERROR, _SNDBUF, _RCVBUF, _LINGER, _PEERCRED, _DOMAIN = (
    _OPTIONS[name] for name in ("TYPE", "ERROR", "SNDBUF", "RCVBUF", "LINGER", "PEERCRED", "DOMAIN")
)
_LIMITS = {_OPTIONS["RCVTIMEO"]: 0, _OPTIONS["SNDTIMEO"]: 1}
KEPT = frozenset(_OPTIONS[name] for name in ("REUSEADDR", "BROADCAST", "KEEPALIVE", "OOBINLINE", "PASSCRED"))
"""Those that are on or off, and change nothing but what is told (PASSCRED) of a pair."""
_FIXED = {_DOMAIN: 1} | {_OPTIONS[name]: 0 for name in ("DONTROUTE", "PRIORITY", "REUSEPORT", "ACCEPTCONN", "PROTOCOL")}
_FIXED |= {_OPTIONS[name]: 1 for name in ("RCVLOWAT", "SNDLOWAT")}
_LEAST_SENT, _LEAST_RECEIVED = 4608, 2304  # SOCK_MIN_SNDBUF, SOCK_MIN_RCVBUF
_OPTION = Choice("option", **{f"SO_{name}": number for name, number in _OPTIONS.items()})
_LEVEL = Choice("level", SOL_SOCKET=_SOL_SOCKET)


@hypercall(54, "setsockopt", Int("fd"), _LEVEL, _OPTION, Address("value"), Int("size"))
def setsockopt(guest: Guest, call: Call, descriptor: int, level: int, option: int, value: int, size: int) -> int:
    """Set an option of a socket."""
    from memvm.files.sockets import DEFAULT_BUFFER

    socket, option, size = socket_of(guest, descriptor), option & 0xFFFFFFFF, signed(size, 32)
    if level & 0xFFFFFFFF != _SOL_SOCKET:
        raise CallError(errno.EOPNOTSUPP)
    if size < _INT.size:
        raise CallError(errno.EINVAL)
    (number,) = guest.memory.unpack(_INT, value)
    if option in _LIMITS:
        if size < _TIMEVAL.size:
            raise CallError(errno.EINVAL)
        seconds, microseconds = guest.memory.unpack(_TIMEVAL, value)
        if not 0 <= microseconds < 1_000_000:
            raise CallError(errno.EDOM)
        socket.limits[_LIMITS[option]] = min(max(0, seconds) * SECOND + microseconds * 1000, (1 << 62) - 1)
    elif option == _SNDBUF:
        socket.send_buffer = max(2 * min(number & 0xFFFFFFFF, DEFAULT_BUFFER), _LEAST_SENT)
    elif option == _RCVBUF:
        socket.receive_buffer = max(2 * min(number & 0xFFFFFFFF, DEFAULT_BUFFER), _LEAST_RECEIVED)
    elif option in KEPT:
        socket.options[option] = int(number != 0)
    elif option == _LINGER:
        if size < 2 * _INT.size:
            raise CallError(errno.EINVAL)
    elif option not in _FIXED:
        raise CallError(errno.ENOPROTOOPT)
    return 0


@hypercall(55, "getsockopt", Int("fd"), _LEVEL, _OPTION, Address("value"), Address("size"))
def getsockopt(guest: Guest, call: Call, descriptor: int, level: int, option: int, value: int, size: int) -> int:
    """Tell an option of a socket."""
    socket = socket_of(guest, descriptor)
    if level & 0xFFFFFFFF != _SOL_SOCKET:
        raise CallError(errno.EOPNOTSUPP)
    (room,) = guest.memory.unpack(_INT, size)
    if room < 0:
        raise CallError(errno.EINVAL)
    guest.memory.writable(value, min(room, _TIMEVAL.size))
    data = _told(socket, option & 0xFFFFFFFF)[:room]
    guest.memory.write(value, data)
    guest.memory.pack(_INT, size, len(data))
    return 0


def _told(socket: Socket, option: int) -> bytes:
    if option in _LIMITS:
        seconds, nanoseconds = divmod(socket.limits[_LIMITS[option]], SECOND)
        return _TIMEVAL.pack(seconds, nanoseconds // 1000)
    if option == _PEERCRED:
        return _CREDENTIALS.pack(GUEST_PID, USER, USER)
    if option == _LINGER:
        return bytes(2 * _INT.size)
    if option == _TYPE:
        return _INT.pack(socket.kind)
    if option == _ERROR:
        return _INT.pack(socket.take_error())
    if option in (_SNDBUF, _RCVBUF):
        return _INT.pack(socket.send_buffer if option == _SNDBUF else socket.receive_buffer)
    if option in KEPT:
        return _INT.pack(socket.options.get(option, 0))
    if option in _FIXED:
        return _INT.pack(_FIXED[option])
    raise CallError(errno.ENOPROTOOPT)
