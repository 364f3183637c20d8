"""Calls on sockets: pairs of them, between the guest's own threads. There is no network, of any family."""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
from typing import TYPE_CHECKING

from memvm.machine.callresult import BLOCKED, CallError, CallResult, NotYet
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.blocking import failed, wait_until_ready
from memvm.machine.hypercalls.pieces import MOST, Piece, views_of
from memvm.machine.hypercalls.table import Address, Argument, Buffer, Call, Choice, Flags, Int, hypercall, signed
from memvm.machine.signals import make_signal

if TYPE_CHECKING:
    from memvm.files.description import Description
    from memvm.files.sockets import Received, Socket

_INT = 0xFFFFFFFF
_AF_UNIX, _AF_MOST = 1, 46
_KINDS = {1: "STREAM", 2: "DATAGRAM", 3: "DATAGRAM", 5: "SEQUENCED"}  # SOCK_RAW is taken for SOCK_DGRAM there
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_PAIR, _LENGTH = struct.Struct("=ii"), struct.Struct("=I")
_UNNAMED = struct.pack("=H", _AF_UNIX)
# include/linux/socket.h
PEEK, TRUNC, DONTWAIT, WAITALL, NOSIGNAL = 0x2, 0x20, 0x40, 0x100, 0x4000
CTRUNC, WAITFORONE, CMSG_CLOEXEC = 0x8, 0x10000, 0x40000000
_OUT_OF_BAND, _END_OF_RECORD, _OF_ERRORS = 0x1, 0x80, 0x2000
FLAGS = Flags(
    "flags", MSG_OOB=1, MSG_PEEK=PEEK, MSG_TRUNC=TRUNC, MSG_DONTWAIT=DONTWAIT, MSG_EOR=_END_OF_RECORD,
    MSG_WAITALL=WAITALL, MSG_NOSIGNAL=NOSIGNAL, MSG_WAITFORONE=WAITFORONE, MSG_CMSG_CLOEXEC=CMSG_CLOEXEC,
)  # fmt: skip
_FAMILY = Choice("family", AF_UNIX=1, AF_INET=2, AF_INET6=10, AF_NETLINK=16)
_TYPE = Flags("type", SOCK_NONBLOCK=_NONBLOCK, SOCK_CLOEXEC=_CLOEXEC)


@hypercall(41, "socket", Argument("domain"), Address("type"), Argument("protocol"))
def no_sockets(guest: Guest, call: Call, *_arguments: int) -> int:
    """There is no network, of any family; pairs are all."""
    raise CallError(errno.EAFNOSUPPORT)


@hypercall(53, "socketpair", _FAMILY, _TYPE, Int("protocol"), Address("pair"))
def socketpair(guest: Guest, call: Call, family: int, kind: int, protocol: int, address: int) -> int:
    """Two sockets that are connected with each other: streams, datagrams, or sequenced packets."""
    from memvm.files.sockets import Kind, make_pair

    flags, kind = kind & _INT & ~15, kind & 15
    if flags & ~(_NONBLOCK | _CLOEXEC):
        raise CallError(errno.EINVAL)
    guest.memory.writable(address, _PAIR.size)
    if family & _INT != _AF_UNIX:
        raise CallError(errno.EAFNOSUPPORT)
    if protocol & _INT not in (0, _AF_UNIX):
        raise CallError(errno.EPROTONOSUPPORT)
    if kind not in _KINDS:
        raise CallError(errno.ESOCKTNOSUPPORT)
    guest.pipes += 1
    ends = make_pair(guest.wake, guest.sockets, Kind[_KINDS[kind]], guest.pipes, flags)
    numbers = guest.files.add_all(ends, bool(flags & _CLOEXEC))
    guest.memory.pack(_PAIR, address, *numbers)
    return 0


def socket_of(guest: Guest, descriptor: int) -> Socket:
    """The socket that a descriptor refers to. Raises CallError(EBADF, ENOTSOCK)."""
    from memvm.files.sockets import Socket

    stream = guest.files.get(descriptor).stream
    if not isinstance(stream, Socket):
        raise CallError(errno.ENOTSOCK)
    return stream


@hypercall(44, "sendto", Int("fd"), Buffer("buf", "size"), Argument("size"), FLAGS, Address("to"), Argument("to_size"))
def sendto(
    guest: Guest, call: Call, descriptor: int, buffer: int, size: int, flags: int, address: int, _size: int
) -> CallResult:
    """Send a message, or bytes of a stream; waits while the other end is full."""
    check_destination(socket_of(guest, descriptor), address)
    return send(guest, call, descriptor, [(buffer, min(size, MOST))], flags, ())


def check_destination(socket: Socket, address: int) -> None:
    """A socket of a pair sends to the other one: nobody has an address. Raises CallError."""
    from memvm.files.sockets import Kind

    if address and socket.kind is Kind.STREAM:
        raise CallError(errno.EISCONN)
    if address and socket.kind is Kind.DATAGRAM:
        raise CallError(errno.ECONNREFUSED)


def send(
    guest: Guest, call: Call, descriptor: int, pieces: list[Piece], flags: int, rights: tuple[Description, ...]
) -> CallResult:
    """Send what is in the pieces. Raises CallError."""
    socket = socket_of(guest, descriptor)
    if flags & _OUT_OF_BAND:
        raise CallError(errno.EOPNOTSUPP)
    size = sum(size for _, size in pieces)
    while True:
        # A stream takes no more at a time than fits into its buffer; a message that does not is refused.
        until = min(size, call.progress + socket.send_buffer)
        try:
            views = views_of(pieces, call.progress, until, guest.memory.readable)
            call.progress += socket.send(views, () if call.progress else rights)
        except BlockingIOError:
            return wait_until_ready(guest, call, socket, select.POLLOUT, nonblocking=bool(flags & DONTWAIT))
        except OSError as error:
            if error.errno == errno.EPIPE and socket.breaks_pipes and not (call.progress or flags & NOSIGNAL):
                guest.send(make_signal(signal.SIGPIPE), call.thread)
            return failed(call, error.errno or errno.EIO)
        except CallError as error:
            return failed(call, error.errno)
        if socket.is_message or call.progress >= size:
            return call.progress


@hypercall(
    45, "recvfrom", Int("fd"), Buffer("buf", "result"), Argument("size"), FLAGS, Address("from"), Address("from_size")
)
def recvfrom(
    guest: Guest, call: Call, descriptor: int, buffer: int, size: int, flags: int, address: int, length: int
) -> CallResult:
    """Receive a message, or bytes of a stream; who sent it has no address."""
    from memvm.files.description import drop

    received = receive(guest, call, descriptor, [(buffer, min(size, MOST))], flags)
    if received is BLOCKED:
        return received
    result, message = received
    if not flags & PEEK:
        for one in message.rights:
            drop(one)
    if address and length:
        guest.memory.pack(_LENGTH, length, 0)
    return result


def receive(
    guest: Guest, call: Call, descriptor: int, pieces: list[Piece], flags: int
) -> NotYet | tuple[int, Received]:
    """Receive into the pieces: the call's result, and what came, whose rights are the caller's. Raises CallError."""
    from memvm.files.sockets import Received
    from memvm.files.waitable import fill

    socket = socket_of(guest, descriptor)
    if flags & _OUT_OF_BAND:
        raise CallError(errno.EINVAL)
    if flags & _OF_ERRORS:
        raise CallError(errno.EAGAIN)
    size = sum(size for _, size in pieces)
    peek = bool(flags & PEEK)
    wait_for_all = flags & WAITALL and not socket.is_message and not peek
    nothing = Received(b"", 0)
    while True:
        try:
            views = views_of(pieces, call.progress, size, guest.memory.writable)
            message = socket.receive(size - call.progress, peek=peek)
        except BlockingIOError:
            waits = wait_until_ready(guest, call, socket, select.POLLIN, nonblocking=bool(flags & DONTWAIT))
            return BLOCKED if waits is BLOCKED else (waits, nothing)
        except OSError as error:
            return failed(call, error.errno or errno.EIO), nothing
        except CallError as error:
            return failed(call, error.errno), nothing
        fill(views, message.data)
        call.progress += len(message.data)
        if not wait_for_all or call.progress >= size or message.rights or not message.size:
            cut = flags & TRUNC and socket.is_message
            return (message.size if cut else call.progress), message


@hypercall(48, "shutdown", Int("fd"), Choice("how", SHUT_RD=0, SHUT_WR=1, SHUT_RDWR=2))
def shutdown(guest: Guest, call: Call, descriptor: int, how: int) -> int:
    """Receive no more, send no more, or both."""
    socket = socket_of(guest, descriptor)
    if how & _INT > 2:
        raise CallError(errno.EINVAL)
    socket.shut_down((how & _INT) + 1)
    return 0


@hypercall(51, "getsockname", Int("fd"), Address("name"), Address("size"))
@hypercall(52, "getpeername", Int("fd"), Address("name"), Address("size"))
def no_name(guest: Guest, call: Call, descriptor: int, address: int, size: int) -> int:
    """Neither end has a name: the family is all."""
    socket = socket_of(guest, descriptor)
    if call.number == 52 and socket.refused:
        raise CallError(errno.ENOTCONN)
    (room,) = guest.memory.unpack(_LENGTH, size)
    if signed(room, 32) < 0:
        raise CallError(errno.EINVAL)
    guest.memory.write(address, _UNNAMED[:room])
    guest.memory.pack(_LENGTH, size, len(_UNNAMED))
    return 0


@hypercall(42, "connect", Int("fd"), Address("name"), Int("size"))
@hypercall(43, "accept", Int("fd"), Address("name"), Address("size"))
@hypercall(49, "bind", Int("fd"), Address("name"), Int("size"))
@hypercall(50, "listen", Int("fd"), Int("backlog"))
@hypercall(288, "accept4", Int("fd"), Address("name"), Address("size"), _TYPE)
def no_connections(guest: Guest, call: Call, descriptor: int, *_arguments: int) -> int:
    """A pair is connected, with itself."""
    socket_of(guest, descriptor)
    raise CallError({42: errno.EISCONN, 49: errno.EACCES}.get(call.number, errno.EINVAL))
