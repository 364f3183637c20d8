"""The guest's address map. It is the same for every guest, so a restored one finds every address where it was.

    0x0000_0000          nothing: null pointers fault
    STUB_BASE            one page of memvm's code, `syscall; int3`, read-only: where calls are injected
    CLOCK_BASE           one page that the guest's vDSO computes the time from, read-only: see clock_page.py
    RAM_BASE             guest RAM, `size` bytes of the memory file
      PIE_BASE             position-independent programs (others lie where they were linked, here or above)
      end of the image     heap, grows up (brk)
      ...                  mmap area, filled from the top down
      stack - GUARD        unallocated, so that a stack overflow faults
      end - stack size     stack, fixed size, grows down inside
    RAM_BASE + size      nothing

RAM_BASE is below 0x400000, where linkers put programs, and on a 2 MiB border, where lld puts them. Whatever of guest
RAM is not allocated has no access rights.
"""

from __future__ import annotations

from memvm.units import KIB, MIB

STUB_BASE = 0x1F0000
CLOCK_BASE = 0x1F1000
RAM_BASE = 0x200000
PIE_BASE = 0x400000
STACK_GUARD = 1 * MIB
MIN_RAM = 2 * MIB + 512 * KIB
MAX_RAM = 1 << 44


def stack_size(ram_size: int) -> int:
    """8 MiB, as Linux gives by default, or a sixteenth of a small RAM."""
    return min(8 * MIB, max(128 * KIB, ram_size // 16 // (64 * KIB) * (64 * KIB)))
