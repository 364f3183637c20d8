"""Socket calls with a struct msghdr: several buffers, and descriptors that are carried along (SCM_RIGHTS)."""

from __future__ import annotations

import errno
import select
import struct
from typing import TYPE_CHECKING, NamedTuple

from memvm.files.facts import USER
from memvm.machine.callresult import CallError, CallResult, NotYet
from memvm.machine.clocks import SECOND
from memvm.machine.guest import GUEST_PID, Guest
from memvm.machine.hypercalls.blocking import TIMESPEC, wait_until_ready
from memvm.machine.hypercalls.pieces import Piece, vectors
from memvm.machine.hypercalls.sockets import (
    CMSG_CLOEXEC,
    CTRUNC,
    DONTWAIT,
    FLAGS,
    PEEK,
    TRUNC,
    WAITFORONE,
    check_destination,
    receive,
    send,
    socket_of,
)
from memvm.machine.hypercalls.table import Address, Call, Int, hypercall

if TYPE_CHECKING:
    from memvm.files.description import Description
    from memvm.files.sockets import Received

_HEADER = struct.Struct("=QI4xQQQQi4x")  # struct msghdr: name, its size, buffers, how many, control data, size, flags
_SEVERAL = _HEADER.size + 8  # struct mmsghdr: a header, and the result
_CONTROL = struct.Struct("=Qii")  # struct cmsghdr: size, level, type
_INT = struct.Struct("=i")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred
_SOL_SOCKET, _SCM_RIGHTS, _SCM_CREDENTIALS, SO_PASSCRED = 1, 1, 2, 16
_NAME_SIZE_AT, _CONTROL_SIZE_AT, _FLAGS_AT = 8, 40, 48
_MOST_CONTROL = 1 << 16
_MOST_MESSAGES = 1024  # UIO_MAXIOV


class _Header(NamedTuple):
    name: int
    name_size: int
    buffers: int
    pieces_count: int
    control: int
    control_size: int
    flags: int

    @classmethod
    def at(cls, guest: Guest, address: int) -> _Header:
        return cls(*guest.memory.unpack(_HEADER, address))

    def pieces(self, guest: Guest) -> list[Piece]:
        return vectors(guest, self.buffers, self.pieces_count, errno.EMSGSIZE)


@hypercall(46, "sendmsg", Int("fd"), Address("message"), FLAGS)
def sendmsg(guest: Guest, call: Call, descriptor: int, address: int, flags: int) -> CallResult:
    """Send from several buffers, and descriptors with it."""
    return _send(guest, call, descriptor, address, flags)


def _send(guest: Guest, call: Call, descriptor: int, address: int, flags: int) -> CallResult:
    socket = socket_of(guest, descriptor)
    header = _Header.at(guest, address)
    check_destination(socket, header.name if header.name_size else 0)
    pieces = header.pieces(guest)
    return send(guest, call, descriptor, pieces, flags, _rights(guest, header.control, header.control_size))


def _rights(guest: Guest, control: int, size: int) -> tuple[Description, ...]:
    """What a message is to carry. Raises CallError."""
    from memvm.files.sockets import MOST_RIGHTS

    if size > _MOST_CONTROL:
        raise CallError(errno.ENOBUFS)
    raw = guest.memory.read(control, size)
    found: list[Description] = []
    at = 0
    while at + _CONTROL.size <= size:
        length, level, kind = _CONTROL.unpack_from(raw, at)
        if not _CONTROL.size <= length <= size - at:
            raise CallError(errno.EINVAL)
        data = raw[at + _CONTROL.size : at + length]
        at += -(-length // 8) * 8
        if level != _SOL_SOCKET:
            continue
        if kind == _SCM_RIGHTS:
            numbers = struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
            if len(found) + len(numbers) > MOST_RIGHTS:
                raise CallError(errno.EINVAL)
            found += [guest.files.get(number).stream for number in numbers]
        elif kind == _SCM_CREDENTIALS:
            _check_credentials(data)
        else:
            raise CallError(errno.EINVAL)
    return tuple(found)


def _check_credentials(data: bytes) -> None:
    """A guest is nobody but itself."""
    if len(data) != _CREDENTIALS.size:
        raise CallError(errno.EINVAL)
    if _CREDENTIALS.unpack(data) != (GUEST_PID, USER, USER):
        raise CallError(errno.EPERM)


@hypercall(47, "recvmsg", Int("fd"), Address("message"), FLAGS)
def recvmsg(guest: Guest, call: Call, descriptor: int, address: int, flags: int) -> CallResult:
    """Receive into several buffers, and the descriptors that came with it."""
    return _receive(guest, call, descriptor, address, flags)


def _receive(guest: Guest, call: Call, descriptor: int, address: int, flags: int) -> CallResult:
    socket = socket_of(guest, descriptor)
    header = _Header.at(guest, address)
    pieces = header.pieces(guest)
    guest.memory.writable(address, _HEADER.size)
    if header.control and header.control_size:
        guest.memory.writable(header.control, min(header.control_size, _MOST_CONTROL))
    received = receive(guest, call, descriptor, pieces, flags)
    if isinstance(received, NotYet):
        return received
    result, message = received
    told = TRUNC if socket.is_message and message.size > len(message.data) else 0
    used, cut = _tell_rights(guest, header, message, flags, credentials=bool(socket.options.get(SO_PASSCRED)))
    told |= CTRUNC if cut else 0
    told |= flags & CMSG_CLOEXEC
    guest.memory.pack(_INT, address + _NAME_SIZE_AT, 0)
    guest.memory.write(address + _CONTROL_SIZE_AT, used.to_bytes(8, "little"))
    guest.memory.pack(_INT, address + _FLAGS_AT, told)
    return result


def _tell_rights(
    guest: Guest, header: _Header, message: Received, flags: int, *, credentials: bool
) -> tuple[int, bool]:
    """Give what came along to the guest: how many bytes of control data that took, and whether there was more."""
    from memvm.files.description import drop

    room = min(header.control_size, _MOST_CONTROL) if header.control else 0
    data, cut = b"", False
    if credentials:
        raw = _CREDENTIALS.pack(GUEST_PID, USER, USER)
        cut = room < _CONTROL.size + len(raw)
        if not cut:
            data = _padded(_CONTROL.pack(_CONTROL.size + len(raw), _SOL_SOCKET, _SCM_CREDENTIALS) + raw)[:room]
    numbers: list[int] = []
    most = max(0, room - len(data) - _CONTROL.size) // _INT.size
    for one in message.rights:
        if len(numbers) < most and not cut:
            try:
                numbers.append(guest.files.add(one, bool(flags & CMSG_CLOEXEC)))
            except CallError:  # no descriptor is free
                cut = True
        else:
            cut = True
        if not flags & PEEK:
            drop(one)
    if numbers:
        raw = struct.pack(f"={len(numbers)}i", *numbers)
        data += _padded(_CONTROL.pack(_CONTROL.size + len(raw), _SOL_SOCKET, _SCM_RIGHTS) + raw)[: room - len(data)]
    if data:
        guest.memory.write(header.control, data)
    return len(data), cut


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 8) * 8, b"\0")


@hypercall(307, "sendmmsg", Int("fd"), Address("messages"), Int("count"), FLAGS)
def sendmmsg(guest: Guest, call: Call, descriptor: int, address: int, count: int, flags: int) -> CallResult:
    """Send several messages; how many, if it was one at least."""
    socket = socket_of(guest, descriptor)
    for number in range(call.progress, min(count & 0xFFFFFFFF, _MOST_MESSAGES)):
        at = address + number * _SEVERAL
        one = Call(call.number, call.arguments, call.thread)
        try:
            result = _send(guest, one, descriptor, at, flags | DONTWAIT)
            guest.memory.pack(_INT, at + _HEADER.size, result)
        except CallError as error:
            if error.errno == errno.EAGAIN and not call.progress:
                return wait_until_ready(guest, call, socket, select.POLLOUT, nonblocking=bool(flags & DONTWAIT))
            if call.progress:
                break
            raise
        call.progress += 1
    return call.progress


@hypercall(299, "recvmmsg", Int("fd"), Address("messages"), Int("count"), FLAGS, Address("timeout"))
def recvmmsg(
    guest: Guest, call: Call, descriptor: int, address: int, count: int, flags: int, timeout: int
) -> CallResult:
    """Receive several messages; how many, if it was one at least. The time is looked at when one has come."""
    socket = socket_of(guest, descriptor)
    seconds, nanoseconds = guest.memory.unpack(TIMESPEC, timeout) if timeout else (0, 0)
    if seconds < 0 or not 0 <= nanoseconds < SECOND:
        raise CallError(errno.EINVAL)
    if call.deadline is None and timeout:
        call.deadline = guest.clocks.monotonic() + seconds * SECOND + nanoseconds
    for number in range(call.progress, min(count & 0xFFFFFFFF, _MOST_MESSAGES)):
        at = address + number * _SEVERAL
        one = Call(call.number, call.arguments, call.thread)
        try:
            result = _receive(guest, one, descriptor, at, flags & ~WAITFORONE | DONTWAIT)
            guest.memory.pack(_INT, at + _HEADER.size, result)
        except CallError as error:
            once = call.progress and flags & WAITFORONE
            if error.errno == errno.EAGAIN and not once and not flags & DONTWAIT and not socket.nonblocking:
                return wait_until_ready(guest, call, socket, select.POLLIN)
            if call.progress:
                break
            raise
        call.progress += 1
        if call.deadline is not None and guest.clocks.monotonic() >= call.deadline:
            break
    return call.progress
