"""signalfd(2): signals that are read. What can be read depends on who reads: the thread's own, and the guest's."""

from __future__ import annotations

import errno
import os
import select
import struct
from typing import TYPE_CHECKING

from memvm.files.waitable import Waitable, fill
from memvm.machine.signals import SI_KERNEL, SI_TIMER, Signal, bit

if TYPE_CHECKING:
    from memvm.machine.guest import Guest

# struct signalfd_siginfo (include/uapi/linux/signalfd.h): signal, errno, code, pid, uid, fd, timer, band, overrun,
# trap, status, int, pointer, user time, system time, address, and the rest
_INFO = struct.Struct("=IiiIIiIIIIiiQQQQ48x")
# siginfo_t (sigaction(2)): signal, errno, code, then either sender and user and a value, or timer, overrun and a value
_HEAD, _SENT, _TIMED, _FAULT = (
    struct.Struct("=iii4x"),
    struct.Struct("=IIQ"),
    struct.Struct("=iiQ"),
    struct.Struct("=Q"),
)


class SignalDescriptor(Waitable):
    """One set of signals to be read."""

    shown = b"anon_inode:[signalfd]"
    is_message = True

    def __init__(self, guest: Guest, mask: int, flags: int = 0) -> None:
        super().__init__(guest.wake, os.O_RDWR | flags)
        self._guest = guest
        self.mask = mask
        guest.signal_descriptors.append(self)

    def set_mask(self, mask: int) -> None:
        """Read other signals from now on."""
        self.mask = mask
        self.changed(0)

    def sent(self, number: int) -> None:
        """A signal waits, for the guest or for one of its threads."""
        if self.mask & bit(number):
            self.changed(select.POLLIN)

    def events(self, asked: int) -> int:
        waiting = self._guest.current.signals.set() | self._guest.signals.shared.set()
        return asked & (select.POLLIN if waiting & self.mask else 0)

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        room = sum(map(len, views)) // _INFO.size
        if not room:
            raise OSError(errno.EINVAL, "a signal has 128 bytes")
        data = b""
        while room and (one := self._take()) is not None:
            data += _as_read(one)
            room -= 1
        if not data:
            raise BlockingIOError
        return fill(views, data)

    def _take(self) -> Signal | None:
        return self._guest.current.signals.take(self.mask) or self._guest.signals.shared.take(self.mask)

    def close(self) -> None:
        self._guest.signal_descriptors.remove(self)


def _as_read(one: Signal) -> bytes:
    number, error, code = _HEAD.unpack_from(one.info)
    pid = user = timer = overrun = value = address = 0
    if code == SI_TIMER:
        timer, overrun, value = _TIMED.unpack_from(one.info, _HEAD.size)
    elif 0 < code < SI_KERNEL:
        (address,) = _FAULT.unpack_from(one.info, _HEAD.size)
    else:
        pid, user, value = _SENT.unpack_from(one.info, _HEAD.size)
        value = value if code < 0 else 0
    as_int = (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)
    fields = (number, error, code, pid, user, 0, timer & 0xFFFFFFFF, 0, overrun & 0xFFFFFFFF, 0, 0, as_int)
    return _INFO.pack(*fields, value, 0, 0, address)
