"""Reads the JSON metadata of a LUKS2 file: all is checked, and nothing believed.

memvm uses disks of one segment, encrypted with AES-XTS. Metadata that name another cipher are refused, above all the
null cipher, which encrypts nothing: with cryptsetup, a header that somebody changed to it makes the guest write plain
text.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from memvm.disk.metadata import ALIGNMENT, CIPHER, SECTOR_SIZES, STRIPES, Digest, Kdf, Keyslot, Metadata, Segment
from memvm.errors import DiskError
from memvm.foreign_json import read_json
from memvm.units import KIB, MIB

_MOST = 32
"""Keyslots, segments, digests and tokens, each."""
_MOST_MEMORY, _MOST_TIME, _MOST_CPUS = 4 * 1024 * KIB, 1000, 4
"""What the derivation of a key may cost: KiB, passes, threads; as cryptsetup bounds them, but for the passes."""
_MOST_WORK = 1 << 26
"""KiB times passes: a minute or so. A header that somebody made must not keep a processor busy for days."""
_MOST_ITERATIONS = 1 << 28
_MOST_BYTES = 1 << 62
_HASHES = ("sha1", "sha256", "sha384", "sha512")
_KEYSLOTS_AREA_END = 128 * MIB
T = TypeVar("T")


def read_metadata(raw: bytes, header_size: int, where: str) -> Metadata:
    """Read and check it. Raises DiskError, naming `where` it is."""
    try:
        return _read(read_json(raw), header_size)
    except ValueError as error:
        raise DiskError(f"{where}: the disk's metadata: {error}") from None


def _read(fields: Any, header_size: int) -> Metadata:
    config = _map(_map(fields, "metadata"), "config")
    if _map(config, "requirements", {}):
        raise ValueError("they want something that memvm does not do, such as a re-encryption that has to be ended")
    if _digits(config, "json_size") != header_size - 4096:
        raise ValueError("json_size is another than the header's")
    keyslots_size = _digits(config, "keyslots_size")
    area_end = 2 * header_size + keyslots_size
    if area_end > _KEYSLOTS_AREA_END + 2 * header_size:
        raise ValueError("the keyslots area is too large")
    segments = _numbered(fields, "segments", _segment)
    if set(segments) != {"0"}:
        raise ValueError("a disk of memvm's has one segment")
    segment = segments["0"]
    if segment.offset < area_end:
        raise ValueError("the data lies within the header")
    unknown: dict[str, str] = {}
    keyslots: dict[str, Keyslot] = {}
    for number, value in _numbered(fields, "keyslots", lambda value: value).items():
        try:
            keyslots[number] = _keyslot(value, 2 * header_size, area_end)
        except _Unknown as error:
            unknown[number] = str(error)
    _check_apart(keyslots)
    digests = [digest for digest in _numbered(fields, "digests", _digest).values() if "0" in digest.segments]
    if len(digests) != 1:
        raise ValueError("there has to be one digest for the segment")
    flags = config.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise ValueError("flags are no list of texts")
    return Metadata(keyslots, segment, digests[0], keyslots_size, unknown, _map(fields, "tokens", {}), tuple(flags))


class _Unknown(Exception):
    """Something that the format allows and memvm cannot use."""


def _segment(value: Any) -> Segment:
    if value.get("type") != "crypt" or "integrity" in value or value.get("flags"):
        raise ValueError("its segment is not plainly encrypted")
    cipher = _text(value, "encryption")
    if cipher != CIPHER:
        raise ValueError(f"its cipher is {cipher!r:.40}, and has to be {CIPHER}")
    size = value.get("size")
    sector_size = _number(value, "sector_size", SECTOR_SIZES[-1])
    segment = Segment(
        _digits(value, "offset"),
        None if size == "dynamic" else _digits(value, "size"),
        _digits(value, "iv_tweak"),
        sector_size,
    )
    if sector_size not in SECTOR_SIZES or segment.offset % ALIGNMENT or (segment.size or 0) % sector_size:
        raise ValueError("its sectors have a size or a place that sectors cannot have")
    return segment


def _keyslot(value: Any, low: int, high: int) -> Keyslot:
    if _text(value, "type") != "luks2":
        raise _Unknown(f"type {value['type']!r:.40}")
    af, area, kdf = _map(value, "af"), _map(value, "area"), _map(value, "kdf")
    if _text(af, "type") != "luks1" or _number(af, "stripes", 1 << 16) != STRIPES:
        raise ValueError("a keyslot is split in a way that LUKS does not know")
    if _text(area, "type") != "raw":
        raise _Unknown(f"area {area['type']!r:.40}")
    offset, size = _digits(area, "offset"), _digits(area, "size")
    slot = Keyslot(
        _number(value, "key_size", 512),
        _text(af, "hash"),
        offset,
        size,
        _number(area, "key_size", 512),
        _kdf(kdf),
    )
    if offset % ALIGNMENT or size % ALIGNMENT or not low <= offset or offset + size > high:
        raise ValueError("a keyslot lies outside of the keyslots area")
    if slot.material_size > size:
        raise ValueError("a keyslot is too small for its key")
    if _text(area, "encryption") != CIPHER or slot.area_key_size not in (32, 64):
        raise ValueError(f"a keyslot is encrypted with {_text(area, 'encryption')!r:.40}, and has to be with {CIPHER}")
    if slot.af_hash not in _HASHES:
        raise _Unknown(f"hash {slot.af_hash!r:.40}")
    return slot


def _check_apart(keyslots: Mapping[str, Keyslot]) -> None:
    end = 0
    for slot in sorted(keyslots.values(), key=lambda slot: slot.offset):
        if slot.offset < end:
            raise ValueError("two keyslots lie upon each other")
        end = slot.offset + slot.size


def _kdf(value: Mapping[str, Any]) -> Kdf:
    kind, salt = _text(value, "type"), _blob(value, "salt")
    if kind == "pbkdf2":
        if (name := _text(value, "hash")) not in _HASHES:
            raise _Unknown(f"hash {name!r:.40}")
        return Kdf(kind, salt, hash=name, iterations=_number(value, "iterations", _MOST_ITERATIONS, 1))
    if kind not in ("argon2i", "argon2id"):
        raise _Unknown(f"key derivation {kind!r:.40}")
    time, memory, cpus = (
        _number(value, name, most, 1)
        for name, most in (("time", _MOST_TIME), ("memory", _MOST_MEMORY), ("cpus", _MOST_CPUS))
    )
    if memory < 8 * cpus or len(salt) < 8 or time * memory > _MOST_WORK:
        raise ValueError("the parameters of a key derivation are less than it can do with, or more than anybody needs")
    return Kdf(kind, salt, time=time, memory=memory, cpus=cpus)


def _digest(value: Any) -> Digest:
    if _text(value, "type") != "pbkdf2" or (name := _text(value, "hash")) not in _HASHES:
        raise ValueError("a digest of a kind that is not known")
    digest = Digest(
        _names(value, "keyslots"),
        _names(value, "segments"),
        name,
        _number(value, "iterations", _MOST_ITERATIONS, 1),
        _blob(value, "salt"),
        _blob(value, "digest"),
    )
    if not 16 <= len(digest.value) <= 64:
        raise ValueError("a digest is too short, or too long")
    return digest


def _numbered(fields: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> dict[str, T]:
    objects = _map(fields, name)
    if len(objects) > _MOST or not all(key in _NUMBERS for key in objects):
        raise ValueError(f"{name} are too many, or have names that are no numbers")
    return {key: read(_map(objects, key)) for key in objects}


_NUMBERS = frozenset(map(str, range(_MOST)))


def _map(value: Any, name: str, default: Any = None) -> Any:
    """An object that is a member of another one; of `metadata`, itself."""
    found = value if name == "metadata" else value.get(name, default)
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no object")
    return found


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise ValueError(f"{name} is no text")
    return found


def _number(value: Mapping[str, Any], name: str, most: int, least: int = 0) -> int:
    found = value.get(name)
    if type(found) is not int or not least <= found <= most:
        raise ValueError(f"{name} is no number from {least} to {most}")
    return found


def _digits(value: Mapping[str, Any], name: str) -> int:
    """A number as LUKS2 writes those that may have 64 bits: as text."""
    text = _text(value, name)
    if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) > _MOST_BYTES:
        raise ValueError(f"{name} is no number of bytes")
    return int(text)


def _blob(value: Mapping[str, Any], name: str) -> bytes:
    text = _text(value, name)
    if len(text) > 1024:
        raise ValueError(f"{name} is too long")
    return base64.b64decode(text, validate=True)  # binascii.Error is a ValueError


def _names(value: Mapping[str, Any], name: str) -> frozenset[str]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(each, str) and each in _NUMBERS for each in found):
        raise ValueError(f"{name} are no list of numbers")
    return frozenset(found)
