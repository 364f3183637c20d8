"""The guest's futexes: queues of calls that wait for a word of guest memory, by its address.

Kernel and manager differ in where the queues are, and in nothing else (futex(2)): a wait looks at the word and joins
the queue under one lock, and waking needs that lock too. What the manager changes in a word it changes atomically,
since other threads may change it meanwhile. Queues are saved with the calls that wait in them (Call.place).
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from typing import NamedTuple

from memvm.linux.machine_code import MachineCode
from memvm.machine.callresult import CallError
from memvm.machine.guest_memory import GuestMemory
from memvm.machine.hypercalls.table import Call
from memvm.machine.thread import GuestThread

WAITERS, OWNER_DIED, TID_MASK = 0x80000000, 0x40000000, 0x3FFFFFFF  # include/uapi/linux/futex.h
ANY = 0xFFFFFFFF
"""The bits of a wait that any wake ends."""
_WORD = struct.Struct("=I")
_MOST_TRIES = 100_000


Change = Callable[[int], int]


class Place(NamedTuple):
    """Where a call waits."""

    address: int
    bits: int
    ticket: int
    """Ascending in the order of joining."""


class Futexes:
    """All queues of one guest. The machine's lock is held."""

    def __init__(self, memory: GuestMemory, woken: list[GuestThread]) -> None:
        """`woken` gets the threads whose waits have ended."""
        self._memory, self._woken = memory, woken
        self._queues: dict[int, list[Call]] = {}
        self._ticket = 0
        self._code: MachineCode | None = None

    def word(self, address: int) -> int:
        """The word at an address. Raises CallError(EINVAL, EFAULT)."""
        if address % _WORD.size:
            raise CallError(errno.EINVAL)
        return self._memory.unpack(_WORD, address)[0]

    def join(self, call: Call, address: int, bits: int) -> None:
        """Have a call wait."""
        self._ticket += 1
        call.place = Place(address, bits, self._ticket)
        self._queues.setdefault(address, []).append(call)

    def adopt(self, calls: list[Call]) -> None:
        """Take over the calls that waited in a checkpoint."""
        for call in sorted(calls, key=_ticket):
            place = _place(call)
            self._queues.setdefault(place.address, []).append(call)
            self._ticket = place.ticket

    def leave(self, call: Call) -> None:
        """Have a call wait no more, which nobody has woken."""
        if call.place is not None:
            address = call.place[0]
            queue = self._queues[address]
            queue.remove(call)
            if not queue:
                del self._queues[address]
            call.place = None

    def waiting(self, address: int) -> list[Call]:
        """The calls that wait for a word, longest first."""
        return list(self._queues.get(address, ()))

    def wake(self, address: int, most: int, bits: int = ANY) -> int:
        """Wake up to so many; how many those were."""
        count = 0
        for call in self.waiting(address):
            if count >= most:
                break
            if _place(call).bits & bits:
                self.wake_one(call)
                count += 1
        return count

    def wake_one(self, call: Call) -> None:
        """Wake one that waits."""
        self.leave(call)
        call.woken = True
        self._woken.append(call.thread)

    def move(self, address: int, target: int, most: int) -> int:
        """Let up to so many wait for another word; how many those were."""
        moved = self.waiting(address)[:most]
        for call in moved:
            bits = _place(call).bits
            self.leave(call)
            self.join(call, target, bits)
        return len(moved)

    def exchange(self, address: int, expected: int, new: int) -> int:
        """Store `new` in a word, atomically, if it is `expected`; what it was. Raises CallError."""
        if address % _WORD.size:
            raise CallError(errno.EINVAL)
        if self._code is None:
            try:
                self._code = MachineCode()
            except OSError as error:  # this process may not make code
                raise CallError(errno.ENOSYS) from error
        view = self._memory.writable(address, _WORD.size)
        return self._code.compare_and_exchange(
            ctypes.addressof(ctypes.c_char.from_buffer(view)), expected & ANY, new & ANY
        )

    def change(self, address: int, function: Change) -> int:
        """Change a word by a function of what it was, atomically; what it was. Raises CallError."""
        old = self.word(address)
        for _ in range(_MOST_TRIES):
            was = self.exchange(address, old, function(old) & ANY)
            if was == old:
                return old
            old = was
        raise CallError(errno.EAGAIN)


def _ticket(call: Call) -> int:
    return _place(call).ticket


def _place(call: Call) -> Place:
    assert call.place is not None
    return Place(*call.place)
