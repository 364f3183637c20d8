"""Looks for messages, between the manager and the platform of a sealed guest, that do harm.

    python3 -m tools.fuzz_platform --seconds 60

Each message is a good one of some kind, changed. Whatever it is, it is taken for the message that it says it is, or
refused with a ControlError; and what is taken can be written again. Encrypted headers and requests to key keepers,
which come from a manager too, are tried likewise.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence

from memvm.attest import cbor
from memvm.attest.checkpoint_keys import DOMAIN, Request
from memvm.checkpoint.encryption import WRAPPED_SIZE, EncryptedHeader
from memvm.checkpoint.format import FormatError
from memvm.checkpoint.sections import ParentLink
from memvm.errors import AttestationError, ControlError
from memvm.sealed.protocol import FIELDS, Field, Json, Kind, Message, descriptors_of
from tools.fuzzing import Fuzzed, fuzz, in_time, options

WHAT = Fuzzed("messages", "taken", "tools.fuzz_platform")
TIME_LIMIT = 2.0
"""Seconds of processor time that no message may take."""


def samples() -> list[tuple[Callable[[bytes], bool], bytes]]:
    """Good ones, each with what reads it; it says whether the bytes were taken."""
    messages = [Message(kind, 7, fields := _fields(kind), descriptors_of(kind, fields)[0]).pack() for kind in Kind]
    whole = EncryptedHeader(bytes(16), bytes(32), b'{"saves":1}', bytes(WRAPPED_SIZE), b"signature")
    headers = [whole.pack(), whole._replace(parent=ParentLink(bytes(16), bytes(32), b"../monday.ckpt")).pack()]
    request = cbor.encode({"domain": DOMAIN, "header": headers[1], "key": bytes(32), "token": "a.b.c"})
    return [
        *((take_message, message) for message in messages),
        *((take_header, header) for header in headers),
        (take_request, request),
    ]


def _fields(kind: Kind) -> Json:
    return {name: _value(field) for name, field in FIELDS[kind].items()}


def _value(field: Field) -> object:
    values = {int: 1, float: 1.5, bool: True, str: "text", list: ["text"]}
    return values.get(field.type, {"kind": "UsageError", "message": "no"})


def take_message(data: bytes) -> bool:
    """Read a message as both ends do."""
    taken = False
    for descriptors in range(5):
        try:
            message = Message.unpack(data, descriptors)
        except ControlError:
            continue
        taken = True
        assert Message.unpack(message.pack(), descriptors) == message
        assert message.fields.keys() == FIELDS[message.kind].keys()
        assert descriptors in descriptors_of(message.kind, message.fields)
    return taken


def take_header(data: bytes) -> bool:
    """Read a header as a platform does."""
    try:
        header = EncryptedHeader.unpack(data)
    except FormatError:
        return False
    assert data.startswith(header.pack())
    return True


def take_request(data: bytes) -> bool:
    """Read a request as a key keeper does."""
    try:
        Request.unpack(data)
    except AttestationError:
        return False
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                changed[place : place + rng.choice((1, 4, 40))] = rng.randbytes(rng.choice((0, 1, 4)))
            case 2:
                changed[place:place] = rng.choice((b'"', b"{", b"[", b"1e999", b"null", b",", b"NaN", b"\\ud800", b" "))
            case 3:
                del changed[place:]
            case _:
                other = rng.randrange(len(changed) + 1)
                changed[place:place] = changed[other : other + rng.choice((8, 100))] * rng.choice((1, 1, 50))
    return bytes(changed)


def try_one(good: Sequence[tuple[Callable[[bytes], bool], bytes]], seed: int) -> bool:
    """Make the bytes of this seed and read them; True if they are taken."""
    rng = random.Random(seed)
    take, data = rng.choice(good)
    changed = mutate(data, rng)
    return in_time(TIME_LIMIT, lambda: take(changed))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options(WHAT, "Look for messages to or from a platform that do harm.").parse_args(argv)
    good = samples()
    return fuzz(WHAT, arguments, lambda seed: try_one(good, seed))


if __name__ == "__main__":
    sys.exit(main())
