"""memvm's own call, by which a guest learns that it has been restored, and as which of how many clones.

Linux has nothing like it (virtual machines have VMGENID), so its number is one that Linux does not use. The header for
guests is guests/include/memvm.h. A guest that drew random numbers, keys or identities before it was saved asks now and
then, or before it uses one: when the id is another one, there may be more of its kind, and it draws them anew.
"""

from __future__ import annotations

import errno
import struct

from memvm.machine.callresult import CallError
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import OWN_CALLS, Address, Argument, Call, hypercall

_GENERATION = struct.Struct("=16sQII")  # struct memvm_generation of memvm.h
_ID_SIZE = 16


@hypercall(OWN_CALLS + 1, "memvm_generation", Address("generation"), Argument("size"))
def generation(guest: Guest, call: Call, address: int, size: int) -> int:
    """Random bytes that are new after every restore, how many restores there were, and which clone this is."""
    if size < _ID_SIZE:
        raise CallError(errno.EINVAL)
    answer = _GENERATION.pack(guest.generation_id, guest.generation, guest.clone, guest.clones)[:size]
    guest.memory.write(address, answer)
    return len(answer)
