"""epoll(7): instances with interests in other descriptions, and the list of those that may be ready.

It works as the kernel's does. An interest comes onto the ready list when something has changed that it asks for, and
when it is made or changed and its events hold. A wait takes interests off the list, asks each what holds now, and
tells it if that is something; level-triggered ones go back to the end of the list.

What is the manager's own tells of its changes (Waitable.changed). Those of the host's pipes and terminals come from
an epoll instance of the host's, in which they are all edge-triggered: it says when, and this one decides what that
means.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from memvm.files.description import Description
from memvm.files.nodes import Budget
from memvm.files.waitable import Waitable, watch

ONCE, EDGES, EXCLUSIVE, WAKEUP = select.EPOLLONESHOT, select.EPOLLET, select.EPOLLEXCLUSIVE, 1 << 29
_OF_THE_INTEREST = ONCE | EDGES | EXCLUSIVE | WAKEUP
"""Bits that are no events."""
_ALWAYS = select.EPOLLERR | select.EPOLLHUP
_WITH_EXCLUSIVE = (
    select.EPOLLIN | select.EPOLLOUT | _ALWAYS | WAKEUP | EDGES | EXCLUSIVE
)  # EPOLLEXCLUSIVE_OK_BITS: fs/eventpoll.c
_READABLE = select.EPOLLIN | select.EPOLLRDNORM
_DEEPEST = 4
"""How many instances may be nested below one: EP_MAX_NESTS."""
INTEREST_COST = 512
"""Bytes that one is taken to cost."""


class Found(NamedTuple):
    """What a wait tells: struct epoll_event."""

    events: int
    data: int


class Interest:
    """What an instance wants to know of a description, under the number that it was given by."""

    __slots__ = ("data", "epoll", "events", "exclusive", "host_fd", "number", "target")

    def __init__(self, epoll: Epoll, number: int, target: Description, events: int, data: int) -> None:
        self.epoll, self.number, self.target = epoll, number, target
        self.events, self.data = events, data
        self.exclusive = bool(events & EXCLUSIVE)
        self.host_fd = target.edges_fd if target.can_be_watched else None
        """The descriptor of which the host tells when it changes."""

    def now(self) -> int:
        """Which of its events hold."""
        return self.target.events(self.events) & self.events

    def notice(self, events: int) -> bool:
        """Its description has changed."""
        if not self.events & ~_OF_THE_INTEREST or (events and not events & self.events):
            return False
        return self.epoll.may_be_ready(self)

    def look(self) -> None:
        """The host has something to tell of its description; at once, so that what happens comes in order."""
        self.epoll.collect()

    def end(self) -> None:
        """Its description is closed."""
        self.epoll.remove(self)


class Epoll(Waitable):
    """One instance."""

    shown = b"anon_inode:[eventpoll]"
    is_late = True

    def __init__(self, wake: Callable[[Waitable], bool], budget: Budget) -> None:
        """Each interest takes from the `budget`."""
        super().__init__(wake)
        self._budget = budget
        self.interests: dict[tuple[int, Description], Interest] = {}
        self.ready: dict[Interest, None] = {}
        """Those that may be, the longest first."""
        self._edges: select.epoll | None = None
        self._by_host_fd: dict[int, list[Interest]] = {}
        self._late: list[Waitable] = []
        """Targets that have to be asked what has happened."""

    # What epoll_ctl(2) does. All raise OSError.

    def add(self, number: int, target: Description, events: int, data: int) -> Interest:
        """A new interest; the same pair of number and description cannot have two."""
        if events & EXCLUSIVE and (isinstance(target, Epoll) or events & ~_WITH_EXCLUSIVE):
            raise OSError(errno.EINVAL, "cannot be exclusive")
        one = self.insert(number, target, (events & ~WAKEUP) | _ALWAYS, data)
        target.collect()
        if one.now():
            self.may_be_ready(one)
        return one

    def insert(self, number: int, target: Description, events: int, data: int) -> Interest:
        """A new interest, of which nobody is told yet. Raises OSError."""
        if isinstance(target, Epoll):
            self._check_nesting(target)
        if (number, target) in self.interests:
            raise FileExistsError(errno.EEXIST, "is watched already")
        self._budget.take(INTEREST_COST)
        one = Interest(self, number, target, events, data)
        if one.host_fd is not None:
            self._by_host_fd.setdefault(one.host_fd, []).append(one)
            self._tell_host(one.host_fd)
        if isinstance(target, Waitable) and target.is_late:
            self._late.append(target)
        self.interests[number, target] = one
        watch(target, one)
        return one

    def modify(self, number: int, target: Description, events: int, data: int) -> None:
        """Other events of interest; also for one that was wanted once and has been told."""
        one = self.interest(number, target)
        target.collect()
        if (events | one.events) & EXCLUSIVE:
            raise OSError(errno.EINVAL, "what is exclusive stays as it is")
        one.events, one.data = (events & ~WAKEUP) | _ALWAYS, data
        if one.host_fd is not None:
            self._tell_host(one.host_fd)
        if one.now():
            self.may_be_ready(one)

    def interest(self, number: int, target: Description) -> Interest:
        """The one that there is."""
        try:
            return self.interests[number, target]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "is not watched") from None

    def remove(self, one: Interest) -> None:
        """No more of this."""
        del self.interests[one.number, one.target]
        self.ready.pop(one, None)
        one.target.watches.remove(one)
        if one.host_fd is not None:
            self._by_host_fd[one.host_fd].remove(one)
            self._tell_host(one.host_fd)
        if isinstance(one.target, Waitable) and one.target.is_late:
            self._late.remove(one.target)
        self._budget.take(-INTEREST_COST)

    def _check_nesting(self, target: Epoll) -> None:
        if target is self:
            raise OSError(errno.EINVAL, "cannot watch itself")
        if self in target.below() or target.depth() + 1 + self._height() > _DEEPEST:
            raise OSError(errno.ELOOP, "instances watch each other, or too many in a row")

    def _inner(self) -> Iterator[Epoll]:
        return (target for _, target in self.interests if isinstance(target, Epoll))

    def below(self) -> set[Epoll]:
        """The instances that it watches, itself or through others."""
        found: set[Epoll] = set()
        left = [self]
        while left:
            for inner in left.pop()._inner():
                if inner not in found:
                    found.add(inner)
                    left.append(inner)
        return found

    def depth(self) -> int:
        """How many instances are below each other here, at most; they are few (see _DEEPEST)."""
        return max((1 + inner.depth() for inner in set(self._inner())), default=0)

    def _height(self) -> int:
        outer = {one.epoll for one in self.watches if isinstance(one, Interest)}
        return max((1 + other._height() for other in outer), default=0)

    # What happens, and who is told.

    def may_be_ready(self, one: Interest) -> bool:
        """Put an interest on the ready list, and tell who waits; whether a call was woken."""
        self.ready.setdefault(one)
        return self.changed(_READABLE)

    def _tell_host(self, fd: int) -> None:
        """Have the host tell of what anybody here wants to know of its descriptor."""
        wanted = 0
        for one in self._by_host_fd[fd]:
            wanted |= one.events & ~_OF_THE_INTEREST
        if self._edges is None:
            self._edges = select.epoll()
        if not self._by_host_fd[fd]:
            del self._by_host_fd[fd]
            self._edges.unregister(fd)
            return
        try:
            self._edges.register(fd, wanted | EDGES)
        except FileExistsError:
            self._edges.modify(fd, wanted | EDGES)

    def collect(self, unless: Collection[Description] = ()) -> None:
        for late in self._late:
            late.collect(unless)
        if self._edges is not None:
            for fd, events in self._edges.poll(0):
                for one in self._by_host_fd.get(fd, ()):
                    if one.target not in unless:
                        one.notice(events)

    def wait(self, most: int) -> list[Found]:
        """What is ready now: up to so many."""
        self.collect()
        found: list[Found] = []
        for one in tuple(self.ready):
            if len(found) == most:
                break
            del self.ready[one]
            events = one.now()
            if not events:
                continue
            found.append(Found(events, one.data))
            if one.events & ONCE:
                one.events &= _OF_THE_INTEREST
            elif not one.events & EDGES:
                self.ready[one] = None
        return found

    def events(self, asked: int) -> int:
        for one in tuple(self.ready):
            if one.now():
                return asked & _READABLE
            del self.ready[one]
        return 0

    def host_waits(self, events: int) -> Mapping[int, int]:
        told = (one._edges for one in (self, *self.below()))
        return {edges.fileno(): select.POLLIN for edges in told if edges is not None}

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def close(self) -> None:
        for one in tuple(self.interests.values()):
            self.remove(one)
        if self._edges is not None:
            self._edges.close()
