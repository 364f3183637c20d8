"""Guest memory as a hypercall may use it: by the guest's own rights.

A pointer from a guest is a number and no more. Every access checks that all of the range is guest RAM that the guest
itself could read or write; otherwise the call fails with EFAULT, as Linux does it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from memvm.machine.callresult import CallError
from memvm.memory.pages import page_span
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

_READABLE = bytes(value for value in range(256) if value & Prot.READ)
_WRITABLE = bytes(value for value in range(256) if value & Prot.WRITE)
_STRING_LIMIT = PAGE_SIZE  # PATH_MAX, which is the longest string that a call takes


Access = Callable[[int, int], memoryview]
"""GuestMemory.readable or GuestMemory.writable."""


class GuestMemory:
    """Checked access to guest RAM for hypercalls. Every method raises CallError(EFAULT) for a bad range."""

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram

    def _check(self, address: int, size: int, allowed: bytes) -> None:
        ram = self._ram
        if address < ram.base or address + size > ram.end:
            raise CallError(errno.EFAULT)
        first, count = page_span(address, size, ram.base)
        if ram.protection[first : first + count].translate(None, allowed):
            raise CallError(errno.EFAULT)

    def readable(self, address: int, size: int) -> memoryview:
        """The host view of a range that the guest may read; let go of it at once."""
        if not size:  # nowhere is a good place for nothing
            return memoryview(b"")
        self._check(address, size, _READABLE)
        return self._ram.readable(address, size)

    def writable(self, address: int, size: int) -> memoryview:
        """The host view of a range that the guest may write; let go of it at once."""
        if not size:
            return memoryview(bytearray())
        self._check(address, size, _WRITABLE)
        return self._ram.writable(address, size)

    def read(self, address: int, size: int) -> bytes:
        """A copy of a range."""
        return bytes(self.readable(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Store bytes."""
        self.writable(address, len(data))[:] = data

    def unpack(self, layout: struct.Struct, address: int) -> tuple[int, ...]:
        """Read a structure."""
        return layout.unpack(self.readable(address, layout.size))

    def pack(self, layout: struct.Struct, address: int, *values: object) -> None:
        """Store a structure."""
        self.write(address, layout.pack(*values))

    def string(self, address: int) -> bytes:
        """A NUL-terminated string, without the NUL; ENAMETOOLONG beyond a page."""
        text = self.beginning(address, _STRING_LIMIT)
        if len(text) == _STRING_LIMIT:
            raise CallError(errno.ENAMETOOLONG)
        return text

    def beginning(self, address: int, most: int) -> bytes:
        """A NUL-terminated string, without the NUL; not more than `most` bytes of it are looked at."""
        parts = []
        while most > 0:
            step = min(most, PAGE_SIZE - address % PAGE_SIZE)
            part, nul, _ = self.read(address, step).partition(b"\0")
            parts.append(part)
            if nul:
                break
            address, most = address + step, most - step
        return b"".join(parts)
