"""What a checkpoint keeps of what guests wait for: counters, timers, signals, epoll instances, pairs of sockets.

Others that they refer to are numbered as descriptors are: the standard streams are 0 to 2, and then comes what is open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from memvm.machine.clocks import Clock
from memvm.machine.fields import I64, U64, blob, integer, listed, text, truth

_U32 = (1 << 32) - 1
_MOST_DESCRIPTORS = 1024
_MOST_INTERESTS = 1 << 20
_MOST_REFERRED = 2 + 2048
_MOST_BUFFER = 425984  # twice net.core.wmem_max, as setsockopt(2) sets it
_MOST_MESSAGES = 1024
_MOST_RIGHTS = 253  # SCM_MAX_FD
_MOST_ERRNO = 133
_MOST_OPTION = 64


class EventState(NamedTuple):
    """A counter (eventfd)."""

    value: int
    semaphore: bool

    @classmethod
    def read(cls, value: Any) -> EventState:
        count, semaphore = listed(value, 2, "counter")
        return cls(integer(count, "count", U64 - 1), truth(semaphore, "semaphore"))


class TimerState(NamedTuple):
    """A timer that is read (timerfd). Times are ns, by the clock `runs_by`."""

    clock: int
    runs_by: int
    due: int | None
    interval: int
    expired: bool
    ticks: int

    @classmethod
    def read(cls, value: Any) -> TimerState:
        clock, runs_by, due, interval, expired, ticks = listed(value, 6, "timer")
        return cls(
            Clock(clock),
            Clock(runs_by),
            None if due is None else integer(due, "due", I64),
            integer(interval, "interval", I64 // 2),
            truth(expired, "expired"),
            integer(ticks, "ticks", I64),
        )


class SignalsState(NamedTuple):
    """Signals that are read (signalfd)."""

    mask: int

    @classmethod
    def read(cls, value: Any) -> SignalsState:
        (mask,) = listed(value, 1, "signals")
        return cls(integer(mask, "mask"))


class InterestState(NamedTuple):
    """What an epoll instance watches: the descriptor that it was given by, what that referred to, and struct
    epoll_event."""

    number: int
    target: int
    events: int
    data: int


class EpollState(NamedTuple):
    """An epoll instance; `ready` are the places of those of its interests that may be ready, in order."""

    interests: tuple[InterestState, ...]
    ready: tuple[int, ...]

    @classmethod
    def read(cls, value: Any) -> EpollState:
        interests, ready = listed(value, 2, "epoll instance")
        found = tuple(_interest(one) for one in _some(interests, _MOST_INTERESTS, "interests"))
        return cls(
            found,
            tuple(integer(one, "interest", len(found) - 1) for one in _some(ready, len(found), "ready list")),
        )


class MessageState(NamedTuple):
    """A message under way: what is left of its bytes, how many it had, and what it carries."""

    data: bytes
    received: int
    rights: tuple[int, ...] = ()


class SocketState(NamedTuple):
    """One end of a pair. Time limits are ns."""

    type: int
    number: int
    shut: int
    error: int
    refused: bool
    buffers: tuple[int, int]
    limits: tuple[int, int]
    options: tuple[tuple[int, int], ...]
    messages: tuple[MessageState, ...]

    @classmethod
    def read(cls, value: Any) -> SocketState:
        number_of, number, shut, error, refused, buffers, limits, options, messages = listed(value, 9, "socket")
        if number_of not in (1, 2, 5):
            raise ValueError("a socket of no type")
        sending, receiving = (integer(one, "buffer", _MOST_BUFFER) for one in listed(buffers, 2, "buffers"))
        to_receive, to_send = (integer(one, "limit", I64 // 2) for one in listed(limits, 2, "limits"))
        return cls(
            integer(number_of, "type", 5),
            integer(number, "socket", I64),
            integer(shut, "shut", 3),
            integer(error, "error", _MOST_ERRNO),
            truth(refused, "refused"),
            (sending, receiving),
            (to_receive, to_send),
            tuple(_option(one) for one in _some(options, _MOST_OPTION, "options")),
            tuple(_message(one) for one in _some(messages, _MOST_MESSAGES, "messages")),
        )


WaitingState = EventState | TimerState | SignalsState | EpollState | SocketState
_BY_KIND: dict[str, Callable[[Any], WaitingState]] = {
    "event": EventState.read,
    "timer": TimerState.read,
    "signals": SignalsState.read,
    "epoll": EpollState.read,
    "socket": SocketState.read,
}
KINDS = frozenset(_BY_KIND)


def kind_of(state: WaitingState) -> str:
    """Which of KINDS it is."""
    return {EventState: "event", TimerState: "timer", SignalsState: "signals", EpollState: "epoll"}.get(
        type(state), "socket"
    )


def to_fields(state: WaitingState) -> list[Any]:
    """As JSON has it."""
    if isinstance(state, SocketState):
        messages = [[text(one.data), one.received, list(one.rights)] for one in state.messages]
        return [*state[:5], *map(list, state[5:7]), list(map(list, state.options)), messages]
    if isinstance(state, EpollState):
        return [list(map(list, state.interests)), list(state.ready)]
    return list(state)


def read_waiting(kind: str, value: Any) -> WaitingState:
    """Read and check one of these KINDS. Raises ValueError."""
    return _BY_KIND[kind](value)


def check_references(states: Sequence[WaitingState | None]) -> None:
    """Whoever is referred to has to be there, and the two ends of a pair have to fit. Raises ValueError."""
    numbers = {}
    for state in states:
        referred: list[int] = []
        if isinstance(state, EpollState):
            referred = [one.target for one in state.interests]
        elif isinstance(state, SocketState):
            referred = [one for message in state.messages for one in message.rights]
            if state.number in numbers:
                raise ValueError("two sockets are the same end of a pair")
            numbers[state.number] = state.type
        if any(one >= 3 + len(states) for one in referred):
            raise ValueError("a reference to what is not open")
    if any(numbers.get(number ^ 1, kind) != kind for number, kind in numbers.items()):
        raise ValueError("the two ends of a pair do not fit")


def _some(value: Any, most: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} is not a list of at most {most}")
    return value


def _interest(value: Any) -> InterestState:
    number, target, events, data = listed(value, 4, "interest")
    return InterestState(
        integer(number, "descriptor", _MOST_DESCRIPTORS - 1),
        integer(target, "target", _MOST_REFERRED),
        integer(events, "events", _U32),
        integer(data, "data"),
    )


def _message(value: Any) -> MessageState:
    data, received, rights = listed(value, 3, "message")
    return MessageState(
        blob(data, "data", _MOST_BUFFER),
        integer(received, "received", _MOST_BUFFER),
        tuple(integer(one, "right", _MOST_REFERRED) for one in _some(rights, _MOST_RIGHTS, "rights")),
    )


def _option(value: Any) -> tuple[int, int]:
    option, number = listed(value, 2, "option")
    return integer(option, "option", _MOST_OPTION), integer(number, "value", 1)
