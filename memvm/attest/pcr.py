"""How guests' registers are anchored in a PCR of the platform's TPM, and the log from which that can be computed again.

A TPM has few PCRs, and those that somebody may reset are of no use: who could rewrite a log could reset its PCR, too.
So all guests of a platform share one that keeps what it was extended with until the next boot. It is extended with each
guest's register when the guest begins, and at each change of a setting, before the change counts:

    record   16s instance (drawn at each start and restore), 48s register after the event
    PCR      = SHA-384(PCR || SHA-384(record)), in the bank of SHA-384; zeros at boot

The log is all records since boot, in order. Of a guest, the last one with its instance counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha384

from memvm.machine.register import DIGEST_SIZE

PCRS = range(16)
"""Those that only a reset of the whole TPM makes zero (TCG PC Client Platform TPM Profile, 4.6)."""
USUAL_PCR = 15
INSTANCE_SIZE = 16
RECORD_SIZE = INSTANCE_SIZE + DIGEST_SIZE
MAX_LOG = RECORD_SIZE * 8192
"""Bytes of a log. When it is full nothing is anchored any more until the next boot."""


def record_of(instance: bytes, register: bytes) -> bytes:
    """The record of an event."""
    return instance + register


def event_digest(record: bytes) -> bytes:
    """What the PCR is extended with."""
    return sha384(record).digest()


def replay(log: bytes) -> bytes:
    """The value of the PCR after all events of a log."""
    value = bytes(DIGEST_SIZE)
    for record in records(log):
        value = sha384(value + event_digest(record)).digest()
    return value


def records(log: bytes) -> Iterator[bytes]:
    """The records of a log, whose length is a multiple of theirs."""
    return (log[at : at + RECORD_SIZE] for at in range(0, len(log), RECORD_SIZE))


def last_register(log: bytes, instance: bytes) -> bytes | None:
    """The register of a guest after its last event; None if it has had none."""
    found = None
    for record in records(log):
        if record[:INSTANCE_SIZE] == instance:
            found = record[INSTANCE_SIZE:]
    return found
