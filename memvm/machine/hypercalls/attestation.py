"""memvm's own calls by which a guest is attested: it names its key, and reads its token (memvm_attest.h)."""

from __future__ import annotations

import errno
import select

from memvm.linux.prctl import refuse_core_dumps
from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import OWN_CALLS, Address, Argument, Buffer, Call, Choice, hypercall
from memvm.units import KIB

KEY_SIZE, DATA_SIZE = 32, 48
MOST_SECRETS, MOST_SECRET_BYTES = 16, 64 * KIB
"""How many pieces of memory a guest may have wiped, and how large each may be."""
_KINDS = {1: "ed25519", 2: "x25519"}


@hypercall(OWN_CALLS + 2, "memvm_bind_key", Choice("kind", ED25519=1, X25519=2), Address("key"))
def bind_key(guest: Guest, call: Call, kind: int, address: int) -> int:
    """The guest's public key, to be in its evidence from now on; a token for another key is forgotten."""
    if kind not in _KINDS:
        raise CallError(errno.EINVAL)
    guest.public_key = (_KINDS[kind], guest.memory.read(address, KEY_SIZE))
    guest.token = b""
    return 0


@hypercall(OWN_CALLS + 5, "memvm_wipe_with_tokens", Address("memory"), Argument("size"))
def wipe_with_tokens(guest: Guest, call: Call, address: int, size: int) -> int:
    """The guest has secrets there, to be wiped when its tokens are revoked, and not written to swap until then."""
    if not 0 < size <= MOST_SECRET_BYTES:
        raise CallError(errno.EINVAL)
    if (address, size) in guest.secrets:
        return 0
    if len(guest.secrets) >= MOST_SECRETS:
        raise CallError(errno.ENOSPC)
    guest.memory.writable(address, size).release()
    guest.secrets.append((address, size))
    refuse_core_dumps()
    try:
        guest.ram.pin(address, size)
    except OSError as error:
        if not guest.knows_of_swap:
            guest.knows_of_swap = True
            guest.tell(f"its secrets may be written to swap: {error.strerror} (ulimit -l)")
    return 0


@hypercall(OWN_CALLS + 4, "memvm_bind_data", Buffer("data", "size"), Argument("size"))
def bind_data(guest: Guest, call: Call, address: int, size: int) -> int:
    """What the guest wants said of it, 48 bytes, to be in its evidence from now on; a token without it is forgotten."""
    if size != DATA_SIZE:
        raise CallError(errno.EINVAL)
    guest.bound = guest.memory.read(address, size)
    guest.token = b""
    return 0


@hypercall(OWN_CALLS + 3, "memvm_token", Address("buffer"), Argument("size"))
def token(guest: Guest, call: Call, address: int, size: int) -> CallResult:
    """The guest's token, as text; it is attested first if it has none and may ask. ENODATA if there is none."""
    if _is_being_attested(guest, call):
        return BLOCKED
    if not guest.token:
        raise CallError(errno.ENODATA)
    if size < len(guest.token):
        raise CallError(errno.ERANGE)
    guest.memory.write(address, guest.token)
    return len(guest.token)


def _is_being_attested(guest: Guest, call: Call) -> bool:
    """Whether a round is under way, which begins here if there is no token and the guest may ask for one."""
    about = (guest.public_key, guest.bound)
    if guest.token_inquiry is None:
        ask = guest.ask_for_token
        if guest.token or ask is None:
            return False
        from memvm.machine.inquiry import Inquiry  # few guests ask

        def attested() -> bytes:
            ask()
            return guest.token

        guest.token_inquiry = Inquiry("for a token", attested, guest.tell, about)
    waiting = guest.token_inquiry
    if not waiting.is_over:
        call.waits_for = {waiting.fd: select.POLLIN}
        return True
    waiting.close()
    guest.token_inquiry = None
    # A call that was interrupted leaves its round to the next one, which may be about another key.
    return not guest.token and waiting.about != about and _is_being_attested(guest, call)
