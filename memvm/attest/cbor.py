"""Deterministic CBOR (RFC 8949, 4.2.1), of the few types that evidence has; everything else is refused.

Encoding is cbor2's. Decoding is done here, because a decoder for whatever there is takes tags, duplicate keys and
numbers of any length: here each value has one encoding, and what was decoded is what was signed.
"""

from __future__ import annotations

from typing import Any

from memvm.errors import AttestationError

MAX_DEPTH = 8
_FOLLOWING = {24: 1, 25: 2, 26: 4, 27: 8}
_SIMPLE = {20: False, 21: True, 22: None}


def encode(value: Any) -> bytes:
    """The one encoding of a value. Maps have keys of one type: then cbor2's order of keys is that of RFC 8949."""
    import cbor2

    return cbor2.dumps(value, canonical=True)


def decode(data: bytes) -> Any:
    """The value that these bytes are the one encoding of. Raises AttestationError."""
    try:
        value, end = _item(data, 0, 0)
    except (IndexError, UnicodeDecodeError):
        raise AttestationError("CBOR that ends too early, or text that is none") from None
    if end != len(data):
        raise AttestationError("CBOR with something behind it")
    return value


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise AttestationError("CBOR that is nested too deeply")
    major, argument, at = _head(data, at)
    if major == 0:
        return argument, at
    if major == 1:
        return -1 - argument, at
    if major in (2, 3):
        end = at + argument
        if end > len(data):
            raise IndexError
        return (data[at:end] if major == 2 else data[at:end].decode()), end
    if major == 4:
        items = []
        for _ in range(argument):
            item, at = _item(data, at, depth + 1)
            items.append(item)
        return items, at
    if major == 5:
        return _map(data, at, argument, depth)
    if major == 7 and argument in _SIMPLE:
        return _SIMPLE[argument], at
    raise AttestationError("CBOR of a type that does not belong here")


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Major type, argument, and where it goes on. An argument has to be as short as it can be."""
    major, short = data[at] >> 5, data[at] & 31
    at += 1
    if short < 24:
        return major, short, at
    if short not in _FOLLOWING or major == 7:
        raise AttestationError("CBOR of indefinite length, or of a type that does not belong here")
    end = at + _FOLLOWING[short]
    if end > len(data):
        raise IndexError
    argument = int.from_bytes(data[at:end], "big")
    if argument < (24 if short == 24 else 1 << 4 * (end - at)):
        raise AttestationError("a CBOR number that is longer than it has to be")
    return major, argument, end


def _map(data: bytes, at: int, count: int, depth: int) -> tuple[dict[Any, Any], int]:
    found: dict[Any, Any] = {}
    last = b""
    for _ in range(count):
        start = at
        key, at = _item(data, at, depth + 1)
        if not isinstance(key, (int, str)) or data[start:at] <= last:
            raise AttestationError("a CBOR map with keys twice, out of order, or of a type that does not belong here")
        last = data[start:at]
        found[key], at = _item(data, at, depth + 1)
    return found, at
