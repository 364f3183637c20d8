"""memvm's own calls by which a guest gets the key of a disk from a key broker (guests/include/memvm_broker.h).

The manager carries messages to and fro. What the broker sends is encrypted for a key that was made in the guest, and
signed.
"""

from __future__ import annotations

import errno
import select
import struct
from collections.abc import Callable

from memvm.machine.broker_relay import BrokerRelay
from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.disks import disk_of
from memvm.machine.hypercalls.table import OWN_CALLS, Address, Call, Int, hypercall
from memvm.machine.inquiry import Inquiry

NONCE_SIZE = 32
_CHALLENGE = struct.Struct("=32s128s")  # struct memvm_broker_challenge of memvm_broker.h
_KEY = struct.Struct("=112s64s")  # struct memvm_broker_key


@hypercall(OWN_CALLS + 0x18, "memvm_broker_challenge", Int("disk"), Address("challenge"))
def broker_challenge(guest: Guest, call: Call, number: int, address: int) -> CallResult:
    """Begin an exchange with the broker about a disk: its nonce, and its identity. ENOTCONN if there is no broker."""
    uuid = disk_of(guest, number).facts.uuid
    relay = _relay(guest)

    def ask() -> bytes:
        nonce, identity = relay.challenge(uuid)
        return _CHALLENGE.pack(nonce, identity.encode())

    return _answered(guest, call, address, ask, (uuid,))


@hypercall(OWN_CALLS + 0x19, "memvm_broker_key", Int("disk"), Address("nonce"), Address("key"))
def broker_key(guest: Guest, call: Call, number: int, nonce_address: int, address: int) -> CallResult:
    """End it with the guest's token: the disk's key, sealed for the guest, and a signature. EACCES if there is none."""
    uuid = disk_of(guest, number).facts.uuid
    relay, nonce, token = _relay(guest), guest.memory.read(nonce_address, NONCE_SIZE), guest.token
    if not token:
        raise CallError(errno.ENODATA)

    def ask() -> bytes:
        return _KEY.pack(*relay.key(uuid, nonce, token))

    return _answered(guest, call, address, ask, (uuid, nonce, token))


def _relay(guest: Guest) -> BrokerRelay:
    if guest.broker is None:
        raise CallError(errno.ENOTCONN)
    return guest.broker


def _answered(guest: Guest, call: Call, address: int, ask: Callable[[], bytes], about: object) -> CallResult:
    """What the broker says, when it has; each thread asks for itself."""
    inquiries, thread = guest.broker_inquiries, call.thread.tid
    if thread not in inquiries:
        inquiries[thread] = Inquiry("the key broker", ask, guest.tell, about)
    waiting = inquiries[thread]
    if not waiting.is_over:
        call.waits_for = {waiting.fd: select.POLLIN}
        return BLOCKED
    waiting.close()
    del inquiries[thread]
    if waiting.about != about:  # a call that was interrupted has left it
        return _answered(guest, call, address, ask, about)
    if not waiting.answer:
        raise CallError(errno.EACCES)
    guest.memory.write(address, waiting.answer)
    return 0
