"""Socket pairs: unix(7) sockets without a name, between the guest's own threads, with what is under way in them.

Each end has a queue of the messages that the other end has sent. As in the kernel, what a socket has sent counts
against its own buffer until it is received: with a price for each message, and a stream's bytes are cut into messages
too. A message can carry descriptions (SCM_RIGHTS), which are open as long as it is under way.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from memvm.files.description import Description, drop
from memvm.files.facts import USER, Facts
from memvm.files.nodes import Budget
from memvm.files.waitable import DEVICE, Waitable, fill, joined

DEFAULT_BUFFER = 212992
"""net.core.wmem_default, and wmem_max."""
MOST_BUFFER = 2 * DEFAULT_BUFFER
MOST_RIGHTS = 253
"""Descriptions that a message may carry: SCM_MAX_FD."""
MOST_UNDER_WAY = 1024
"""Those that all of a guest's messages may: RLIMIT_NOFILE."""
MOST_MESSAGES = MOST_BUFFER // 768 + 1
"""Messages that can be under way in one direction."""
_PIECE = 32768
"""Bytes of a stream in a message, at most."""
_HEAD, _TAIL = 256, 320  # struct sk_buff, and struct skb_shared_info behind the data
_READABLE = select.POLLIN | select.POLLRDNORM
_WRITABLE = select.POLLOUT | select.POLLWRNORM | select.POLLWRBAND
SHUT_RECEIVING, SHUT_SENDING = 1, 2
_SHUT = SHUT_RECEIVING | SHUT_SENDING


class Kind(IntEnum):
    """SOCK_*."""

    STREAM = 1
    DATAGRAM = 2
    SEQUENCED = 5


class Room:
    """What all sockets of a guest share."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.under_way = 0
        """Descriptions in messages."""
        self.open: set[Socket] = set()

    def close(self) -> None:
        """Let go of what is under way, also of sockets that are nowhere but in messages in each other's queues."""
        for one in tuple(self.open):
            rights = one.carried()
            for message in one.queue:
                self.under_way -= len(message.rights)
                message.rights = ()
            for right in rights:
                drop(right)


class Message:
    """One message, or a part of a stream."""

    __slots__ = ("at", "cost", "data", "rights")

    def __init__(self, data: bytes, rights: tuple[Description, ...] = ()) -> None:
        self.data, self.rights = data, rights
        self.at = 0
        """How much of it has been received; it still costs all of it."""
        self.cost = _cost(len(data))


def _cost(size: int) -> int:
    """What the kernel reckons for so many bytes: struct sk_buff, and room for the data as it is allocated."""
    room = -(-size // 64) * 64 + _TAIL
    return _HEAD + (1 << (room - 1).bit_length() if room <= 8192 else -(-room // 4096) * 4096)


class Received(NamedTuple):
    """What was received; all of it empty at the end of a stream."""

    data: bytes
    size: int
    """Of the message, which may have been cut."""
    rights: tuple[Description, ...] = ()
    """If they were not only looked at, whoever has this drops them."""


_END = Received(b"", 0)


class Socket(Waitable):
    """One end of a pair."""

    def __init__(self, wake: Callable[[Waitable], bool], room: Room, kind: Kind, number: int) -> None:
        """`number` is twice that of the pair, and one more at its second end."""
        super().__init__(wake)
        self.kind, self.number = kind, number
        self.is_message = self.breaks_pipes = False
        if kind is Kind.STREAM:
            self.breaks_pipes = True
        else:
            self.is_message = True
        self._room = room
        room.open.add(self)
        self.peer: Socket | None = None
        """The other end, while it is open."""
        self.refused = False
        """Whether the other end of datagrams was missed already."""
        self.queue: deque[Message] = deque()
        self.sent = 0
        """What is under way to the other end costs."""
        self.shut = 0
        self.error = 0
        """What the next call is told; 0 for nothing."""
        self.send_buffer = self.receive_buffer = DEFAULT_BUFFER
        self.limits = [0, 0]
        """How long a call waits at most, in ns, to receive and to send; 0 for ever."""
        self.options: dict[int, int] = {}
        """What was set, and changes nothing between the two ends."""

    @property
    def shown(self) -> bytes:  # type: ignore[override]  # of others it is a constant
        return b"socket:[%d]" % self.number

    @property
    def _may_send(self) -> bool:
        return self.sent * 4 <= self.send_buffer

    def events(self, asked: int) -> int:
        found = select.POLLERR if self.error else 0
        if self.shut & SHUT_RECEIVING:
            found |= select.POLLRDHUP | _READABLE
        if self.shut == _SHUT:
            found |= select.POLLHUP
        if self.queue:
            found |= _READABLE
        if self._may_send:
            found |= _WRITABLE
        return found & (asked | select.POLLERR | select.POLLHUP)

    def waiting(self) -> int:
        """Bytes that wait to be received: of datagrams, those of the first."""
        sizes = [len(message.data) - message.at for message in self.queue]
        return sum(sizes[:1] if self.kind is Kind.DATAGRAM else sizes)

    def time_limit(self, events: int) -> int:
        return self.limits[bool(events & select.POLLOUT)]

    def take_error(self) -> int:
        """The error that the next call would be told; it is told once."""
        error, self.error = self.error, 0
        return error

    # Sending.

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        return self.send(views)

    def send(self, views: list[memoryview], rights: tuple[Description, ...] = ()) -> int:
        """Send a message, or as much of a stream as there is room for; how many bytes.

        Raises BlockingIOError instead of waiting, and OSError. Carried descriptions are users of themselves then.
        """
        if self.kind is not Kind.STREAM and (error := self.take_error()):
            raise OSError(error, os.strerror(error))
        size = sum(map(len, views))
        if self.kind is not Kind.STREAM and size > self.send_buffer - 32:
            raise OSError(errno.EMSGSIZE, "a message that is too long")
        peer = self._receiver()
        if self.kind is not Kind.STREAM:
            return self._put(peer, joined(views, size), rights)
        done = 0
        data = memoryview(joined(views, self.send_buffer))
        while done < len(data):
            try:
                done += self._put(peer, bytes(data[done : done + _PIECE]), rights)
            except BlockingIOError:
                if done:
                    break
                raise
            rights = ()
        return done

    def _receiver(self) -> Socket:
        peer = self.peer
        if self.kind is Kind.DATAGRAM and peer is None:
            was, self.refused = self.refused, True
            error = errno.ENOTCONN if was else errno.ECONNREFUSED
            raise OSError(error, "the other end is closed")
        if self.shut & SHUT_SENDING or peer is None or peer.shut & SHUT_RECEIVING:
            raise BrokenPipeError(errno.EPIPE, "nobody receives it")
        return peer

    def _put(self, peer: Socket, data: bytes, rights: tuple[Description, ...]) -> int:
        if self.sent >= self.send_buffer:
            raise BlockingIOError
        if self._room.under_way + len(rights) > MOST_UNDER_WAY:
            raise OSError(errno.ETOOMANYREFS, "too many descriptors are under way")
        peer.take_in(Message(data, rights))
        peer.changed(_READABLE | select.POLLRDBAND)
        return len(data)

    def take_in(self, message: Message) -> None:
        """Put a message at the end of the queue, whatever its length. Raises OSError(ENOBUFS)."""
        try:
            self._room.budget.take(message.cost)
        except OSError:
            raise OSError(errno.ENOBUFS, "too much is under way") from None
        for one in message.rights:
            one.users += 1
        self._room.under_way += len(message.rights)
        self.queue.append(message)
        if self.peer is not None:
            self.peer.sent += message.cost

    # Receiving.

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        size = sum(map(len, views))
        if not size:
            return 0
        received = self.receive(size)
        for one in received.rights:  # who only reads does not get them
            drop(one)
        return fill(views, received.data)

    def receive(self, size: int, *, peek: bool = False) -> Received:
        """A message, cut to `size` bytes, or as much of a stream as there is; `peek` leaves it there.

        Raises BlockingIOError instead of waiting, and OSError.
        """
        if (self.kind is not Kind.STREAM or not self.queue) and (error := self.take_error()):
            raise OSError(error, os.strerror(error))
        if not self.queue:
            if not self.shut & SHUT_RECEIVING or (self.kind is Kind.DATAGRAM and self.nonblocking):
                raise BlockingIOError
            return _END
        if self.kind is Kind.STREAM:
            return self._receive_bytes(size, peek)
        message = self.queue[0]
        if not peek:
            self._remove()
        return Received(message.data[:size], len(message.data), message.rights)

    def _receive_bytes(self, size: int, peek: bool) -> Received:
        parts: list[memoryview] = []
        rights: tuple[Description, ...] = ()
        for message in tuple(self.queue):
            if not size or (message.rights and parts):
                break
            parts.append(memoryview(message.data)[message.at : message.at + size])
            size -= len(parts[-1])
            rights = message.rights
            if not peek:
                message.at += len(parts[-1])
                message.rights = ()
                self._room.under_way -= len(rights)
                if message.at == len(message.data):
                    self._remove()
            if rights:
                break
        data = b"".join(parts)
        return Received(data, len(data), rights)

    def _remove(self) -> None:
        message = self.queue.popleft()
        self._room.budget.take(-message.cost)
        self._room.under_way -= len(message.rights)
        sender = self.peer
        if sender is not None:
            sender.sent -= message.cost
            if sender._may_send:
                sender.changed(_WRITABLE)

    # The end of it.

    def shut_down(self, what: int) -> None:
        """Receive no more, or send no more, or both; the other end is told, but not one of datagrams."""
        self.shut |= what
        if self.peer is not None and self.kind is not Kind.DATAGRAM:
            if what & SHUT_RECEIVING:
                self.peer.shut |= SHUT_SENDING
            if what & SHUT_SENDING:
                self.peer.shut |= SHUT_RECEIVING
            self.peer.changed(0)
        self.changed(0)

    def carried(self) -> list[Description]:
        return [one for message in self.queue for one in message.rights]

    def close(self) -> None:
        self._room.open.discard(self)
        peer, self.peer = self.peer, None
        unread = bool(self.queue)
        for message in self.queue:
            self._room.budget.take(-message.cost)
            self._room.under_way -= len(message.rights)
        self.queue.clear()
        if peer is not None:
            peer.peer, peer.sent = None, 0
            if self.kind is not Kind.DATAGRAM:
                peer.shut = _SHUT
                if unread:
                    peer.error = errno.ECONNRESET
            peer.changed(0)

    def facts(self) -> Facts:
        return Facts(DEVICE, self.number + 1, 0o140777, 1, USER, USER, 0, 0, 0, 0, 0, 0)

    def seek(self, offset: int, whence: int) -> int:
        raise OSError(errno.ESPIPE, "has no position")


def make_pair(
    wake: Callable[[Waitable], bool], room: Room, kind: Kind, number: int, flags: int
) -> tuple[Socket, Socket]:
    """Both ends of a pair with this number."""
    first, second = Socket(wake, room, kind, 2 * number), Socket(wake, room, kind, 2 * number + 1)
    first.peer, second.peer = second, first
    for end in (first, second):
        end.nonblocking = bool(flags & os.O_NONBLOCK)
    return first, second
