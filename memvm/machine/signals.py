"""Signals: what the guest asked for, which of them wait to be delivered, and to whom.

A signal is sent to one thread or to the guest as a whole. It waits while it is blocked; otherwise it is dropped, ends
the guest, or calls a handler, as the guest said (delivery.py makes threads call handlers). Of signals 1 to 31 at most
one of a kind waits for whoever it was sent to, of the real-time ones any number (signal(7)).
"""

from __future__ import annotations

import errno
import signal
import struct
from typing import NamedTuple

from memvm.machine.callresult import CallError

SIG_DFL, SIG_IGN = 0, 1
SIGNAL_COUNT = 64
FIRST_REAL_TIME = 32
MOST_WAITING = 1024
"""Signals that may wait for one receiver: RLIMIT_SIGPENDING."""
INFO_SIZE = 128  # sizeof(siginfo_t)
UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}
UNMASKABLE = sum(1 << (number - 1) for number in UNCATCHABLE)
"""The same as a signal set."""
SI_USER, SI_KERNEL, SI_QUEUE, SI_TIMER, SI_TKILL = 0, 128, -1, -2, -6  # include/uapi/asm-generic/siginfo.h
SA_ONSTACK, SA_RESTART, SA_NODEFER, SA_RESETHAND = 0x08000000, 0x10000000, 0x40000000, 0x80000000
SA_RESTORER = 0x04000000

_ACTION = struct.Struct("=QQQQ")  # struct kernel_sigaction: handler, flags, restorer, mask
ACTION_SIZE = _ACTION.size
_INFO = struct.Struct("=iii4xIIQ")  # number, errno, code; then sender and user, and a value
_IGNORED_BY_DEFAULT = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT}
_STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class Action(NamedTuple):
    """What a signal does: struct kernel_sigaction."""

    handler: int
    flags: int
    restorer: int
    mask: int


class Signal(NamedTuple):
    """A signal that was sent: its number, and siginfo_t as the handler gets it."""

    number: int
    info: bytes


def make_signal(number: int, code: int = SI_USER, sender: int = 0, user: int = 0, value: int = 0) -> Signal:
    """A signal that somebody sent, or a timer."""
    return Signal(number, _INFO.pack(number, 0, code, sender, user, value).ljust(INFO_SIZE, b"\0"))


def bit(number: int) -> int:
    """A signal as a set."""
    return 1 << (number - 1)


class SignalQueue:
    """The signals that wait for one receiver: a thread, or the guest as a whole."""

    def __init__(self) -> None:
        self.waiting: list[Signal] = []

    def add(self, new: Signal) -> None:
        """Let a signal wait. Raises CallError(EAGAIN) if too many do."""
        if new.number < FIRST_REAL_TIME and any(other.number == new.number for other in self.waiting):
            return
        if len(self.waiting) >= MOST_WAITING:
            raise CallError(errno.EAGAIN)
        self.waiting.append(new)

    def set(self) -> int:
        """Which signals wait."""
        return sum({bit(waiting.number) for waiting in self.waiting})

    def take(self, wanted: int) -> Signal | None:
        """Take the first of the lowest number among the `wanted` ones."""
        found = min((one for one in self.waiting if wanted & bit(one.number)), key=_number, default=None)
        if found is not None:
            self.waiting.remove(found)
        return found

    def drop(self, number: int) -> None:
        """Forget all of a number."""
        self.waiting = [one for one in self.waiting if one.number != number]


def _number(one: Signal) -> int:
    return one.number


class SignalState:
    """Dispositions (the bytes of struct kernel_sigaction), and what waits for the guest as a whole."""

    def __init__(self) -> None:
        self.actions: dict[int, bytes] = {}
        self.shared = SignalQueue()

    def action(self, number: int) -> Action:
        """What a signal does."""
        raw = self.actions.get(number)
        return Action(*_ACTION.unpack(raw)) if raw else Action(SIG_DFL, 0, 0, 0)

    def handler(self, number: int) -> int:
        """The address of the guest's handler, SIG_DFL or SIG_IGN."""
        action = self.actions.get(number)
        return int.from_bytes(action[:8], "little") if action else SIG_DFL

    def ignores(self, number: int) -> bool:
        """Whether this signal, with its present disposition, does nothing. Guests are never stopped by one."""
        handler = self.handler(number)
        return handler == SIG_IGN or (handler == SIG_DFL and (number in _IGNORED_BY_DEFAULT or number in _STOPPING))

    def ends_guest(self, number: int) -> bool:
        """Whether this signal, with its present disposition, ends the guest."""
        if number in UNCATCHABLE:
            return number == signal.SIGKILL
        return self.handler(number) == SIG_DFL and not self.ignores(number)


def signal_name(number: int) -> str:
    """SIGSEGV for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
