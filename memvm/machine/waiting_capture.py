"""Takes apart for a checkpoint what guests wait for, and makes it again from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memvm.errors import CheckpointError
from memvm.files.description import Description
from memvm.files.epoll import Epoll
from memvm.files.eventfd import EventFd
from memvm.files.pipes import Pipe
from memvm.files.sockets import Kind, Message, Socket
from memvm.files.waitable import Waitable
from memvm.machine.signal_descriptor import SignalDescriptor
from memvm.machine.timer_descriptor import TimerDescriptor
from memvm.machine.waiting_state import (
    EpollState,
    EventState,
    InterestState,
    MessageState,
    SignalsState,
    SocketState,
    TimerState,
    WaitingState,
)

if TYPE_CHECKING:
    from memvm.machine.guest import Guest


def waiting_state(one: Waitable, indices: Mapping[Description, int]) -> WaitingState:
    """What is to be kept of one; `indices` has the places of all others."""
    if isinstance(one, EventFd):
        return EventState(one.count, one.semaphore)
    if isinstance(one, TimerDescriptor):
        return TimerState(one.clock, one.runs_by, one.due, one.interval, one.expired, one.ticks)
    if isinstance(one, SignalDescriptor):
        return SignalsState(one.mask)
    if isinstance(one, Epoll):
        interests = list(one.interests.values())
        places = {interest: place for place, interest in enumerate(interests)}
        return EpollState(
            tuple(InterestState(each.number, indices[each.target], each.events, each.data) for each in interests),
            tuple(places[interest] for interest in one.ready),
        )
    assert isinstance(one, Socket)
    return SocketState(
        int(one.kind),
        one.number,
        one.shut,
        one.error,
        one.refused,
        (one.send_buffer, one.receive_buffer),
        (one.limits[0], one.limits[1]),
        tuple(one.options.items()),
        tuple(
            MessageState(each.data[each.at :], each.at, tuple(indices[right] for right in each.rights))
            for each in one.queue
        ),
    )


def make_waitable(state: WaitingState, guest: Guest) -> Waitable:
    """The same again, but for what it refers to others by."""
    if isinstance(state, EventState):
        return EventFd(guest.wake, state.value, semaphore=state.semaphore)
    if isinstance(state, TimerState):
        timer = TimerDescriptor(guest.wake, guest.timers, guest.clocks, state.clock)
        timer.runs_by, timer.due, timer.interval = state.runs_by, state.due, state.interval
        timer.expired, timer.ticks = state.expired, state.ticks
        return timer
    if isinstance(state, SignalsState):
        return SignalDescriptor(guest, state.mask)
    if isinstance(state, EpollState):
        return Epoll(guest.wake, guest.budget)
    socket = Socket(guest.wake, guest.sockets, Kind(state.type), state.number)
    socket.shut, socket.error, socket.refused = state.shut, state.error, state.refused
    (socket.send_buffer, socket.receive_buffer), socket.limits = state.buffers, list(state.limits)
    socket.options = dict(state.options)
    return socket


def connect(states: Sequence[WaitingState | None], made: Sequence[Description], guest: Guest) -> None:
    """Bring together again what was `made`: ends of pairs, messages under way, interests. Raises CheckpointError."""
    everything = [*guest.files.streams, *made]
    ends = {one.number: one for one in made if isinstance(one, Socket)}
    for number, end in ends.items():
        end.peer = ends.get(number ^ 1)
    epolls: list[tuple[Epoll, EpollState]] = []
    try:
        for one, state in zip(made, states, strict=True):
            if isinstance(one, Socket) and isinstance(state, SocketState):
                for saved in state.messages:
                    rights = tuple(everything[index] for index in saved.rights)
                    message = Message(bytes(saved.received) + saved.data, rights)
                    message.at = saved.received
                    one.take_in(message)
            if isinstance(one, Epoll) and isinstance(state, EpollState):
                for each in state.interests:
                    one.insert(each.number, everything[each.target], each.events, each.data)
                epolls.append((one, state))
    except OSError as error:
        raise CheckpointError(f"what the guest waits for makes no sense: {error.strerror}") from error
    pipes = [one for one in made if isinstance(one, Pipe)]
    for epoll, state in epolls:
        # What the host tells at first is news only of streams: they are others now.
        epoll.collect(unless=pipes)
        interests, since = list(epoll.interests.values()), list(epoll.ready)
        since += [one for one in interests if not one.target.can_be_watched]  # such as a file in a terminal's place
        epoll.ready = dict.fromkeys([interests[place] for place in state.ready] + since)
