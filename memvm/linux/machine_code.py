"""A few instructions that Python has no function for, as machine code in a page of this process's own.

Raises OSError where a process may not make code (SELinux's execmem, for instance): callers do without.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import NamedTuple

from memvm.linux.libc import libc

_CODE = """
pair:
    53                        push rbx
    4154                      push r12
    4883ec08                  sub rsp, 0x8
    4889fb                    mov rbx, rdi
    4989f4                    mov r12, rsi
    0faee8                    lfence
    0f31                      rdtsc
    48c1e220                  shl rdx, 0x20
    4809d0                    or rax, rdx
    488903                    mov [rbx], rax
    bf01000000                mov edi, 0x1
    488d7310                  lea rsi, [rbx+0x10]
    41ffd4                    call r12
    0faee8                    lfence
    0f31                      rdtsc
    48c1e220                  shl rdx, 0x20
    4809d0                    or rax, rdx
    48894308                  mov [rbx+0x8], rax
    4883c408                  add rsp, 0x8
    415c                      pop r12
    5b                        pop rbx
    c3                        ret
cmpxchg:
    89f0                      mov eax, esi
    f00fb117                  lock cmpxchg [rdi], edx
    c3                        ret
"""


class ClockPair(NamedTuple):
    """What two clocks show at one instant: the processor's counter (RDTSC), and CLOCK_MONOTONIC in ns."""

    counter: int
    monotonic: int
    doubt: int
    """How much the counter went on while the clock was read."""


def assembled(listing: str) -> tuple[bytes, dict[str, int]]:
    """The bytes of a listing (in each line a label with a colon, or an instruction's bytes in hexadecimal and words
    for people), and where in them each label is."""
    code, places = bytearray(), {}
    for line in listing.split("\n"):
        first = line.split(maxsplit=1)[0] if line else ""
        if first.endswith(":"):
            places[first[:-1]] = len(code)
        else:
            code += bytes.fromhex(first)
    return bytes(code), places


class CodePage:
    """A listing's instructions in a page of their own that may be executed, as long as this object lives."""

    def __init__(self, listing: str) -> None:
        """Raises OSError where a process may not make code."""
        code, self._places = assembled(listing)
        flags, rights = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags, rights)
        self._page.write(code)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._page))

    def address(self, label: str) -> int:
        """Where the instructions after a label are."""
        return self._base + self._places[label]


class MachineCode:
    """The instructions, ready to be executed."""

    def __init__(self) -> None:
        self._page = CodePage(_CODE)
        word = ctypes.c_uint32
        self._pair = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(self._page.address("pair"))
        self._compare = ctypes.CFUNCTYPE(word, ctypes.c_void_p, word, word)(self._page.address("cmpxchg"))
        self._clock = ctypes.cast(libc.clock_gettime, ctypes.c_void_p)
        self._room = (ctypes.c_uint64 * 4)()

    def read_clocks(self) -> ClockPair:
        """Read both clocks, a few times, and take the best. Not for two threads at once."""
        return min((self._read_once() for _ in range(5)), key=lambda pair: pair.doubt)

    def _read_once(self) -> ClockPair:
        self._pair(ctypes.addressof(self._room), self._clock)
        before, after, seconds, nanoseconds = self._room
        return ClockPair((before + after) // 2, seconds * 1_000_000_000 + nanoseconds, after - before)

    def compare_and_exchange(self, address: int, expected: int, new: int) -> int:
        """Store `new` in the 32-bit word at an address of this process if it is `expected`; what it was.

        Atomic, also for other processes that have the memory (CMPXCHG).
        """
        return int(self._compare(address, expected, new))
