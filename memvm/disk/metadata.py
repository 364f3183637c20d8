"""The JSON metadata of a LUKS2 file: what there is (LUKS2 On-Disk Format 1.1, section 3).

    keyslots   number -> the volume key, encrypted by a key that is derived from a passphrase, and where it lies
    segments   number -> where the data lies, and how it is encrypted
    digests    number -> a hash by which a volume key is known, for which keyslots and segments
    tokens     number -> anything; kept as it is, and not used
    config     sizes of metadata and keyslots area

metadata_reader.py reads and checks them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from memvm.errors import DiskError

CIPHER = "aes-xts-plain64"
KEY_SIZE = 64
"""Bytes: two AES-256 keys, as XTS wants them."""
SECTOR_SIZES = (512, 1024, 2048, 4096)
STRIPES = 4000
"""The one number of stripes that LUKS has."""
ALIGNMENT = 4096


class Kdf(NamedTuple):
    """How a key is derived from a passphrase; the numbers that its type does not have are 0."""

    type: str
    """pbkdf2, argon2i or argon2id."""
    salt: bytes
    hash: str = ""
    iterations: int = 0
    time: int = 0
    memory: int = 0
    """KiB."""
    cpus: int = 0

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        salt = base64.b64encode(self.salt).decode()
        if self.type == "pbkdf2":
            return {"type": self.type, "hash": self.hash, "iterations": self.iterations, "salt": salt}
        return {"type": self.type, "time": self.time, "memory": self.memory, "cpus": self.cpus, "salt": salt}


class Keyslot(NamedTuple):
    """One place that has the volume key. Offsets and sizes in bytes."""

    key_size: int
    af_hash: str
    offset: int
    size: int
    area_key_size: int
    kdf: Kdf

    @property
    def material_size(self) -> int:
        """Bytes of the key, split into stripes."""
        return self.key_size * STRIPES

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "type": "luks2",
            "key_size": self.key_size,
            "af": {"type": "luks1", "stripes": STRIPES, "hash": self.af_hash},
            "area": {
                "type": "raw",
                "offset": str(self.offset),
                "size": str(self.size),
                "encryption": CIPHER,
                "key_size": self.area_key_size,
            },
            "kdf": self.kdf.to_json(),
        }


class Segment(NamedTuple):
    """Where the data is."""

    offset: int
    size: int | None
    """None: to the end of the file."""
    tweak: int
    """What is added to the numbers of 512-byte units to make XTS tweaks."""
    sector_size: int

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "type": "crypt",
            "offset": str(self.offset),
            "size": "dynamic" if self.size is None else str(self.size),
            "iv_tweak": str(self.tweak),
            "encryption": CIPHER,
            "sector_size": self.sector_size,
        }


class Digest(NamedTuple):
    """By which a volume key is known."""

    keyslots: frozenset[str]
    segments: frozenset[str]
    hash: str
    iterations: int
    salt: bytes
    value: bytes

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "type": "pbkdf2",
            "keyslots": sorted(self.keyslots, key=int),
            "segments": sorted(self.segments, key=int),
            "hash": self.hash,
            "iterations": self.iterations,
            "salt": base64.b64encode(self.salt).decode(),
            "digest": base64.b64encode(self.value).decode(),
        }


class Metadata(NamedTuple):
    """All of it."""

    keyslots: Mapping[str, Keyslot]
    """Those that memvm can open; others are in `unknown`."""
    segment: Segment
    digest: Digest
    """Of the segment's key."""
    keyslots_size: int
    unknown: Mapping[str, str] = {}
    """Keyslots that memvm cannot open: number, and why."""
    tokens: Mapping[str, Any] = {}
    flags: tuple[str, ...] = ()

    def to_json(self, header_size: int) -> bytes:
        """As in the file. Raises DiskError for metadata that memvm cannot write, since it would lose something."""
        if self.unknown:
            number, why = next(iter(self.unknown.items()))
            raise DiskError(
                f"keyslot {number} is of a kind that memvm does not know ({why}), and would be lost",
                hint="change the disk's keyslots with cryptsetup",
            )
        config: dict[str, Any] = {
            "json_size": str(header_size - 4096),
            "keyslots_size": str(self.keyslots_size),
        }
        if self.flags:
            config["flags"] = list(self.flags)
        fields = {
            "keyslots": {number: slot.to_json() for number, slot in self.keyslots.items()},
            "tokens": self.tokens,
            "segments": {"0": self.segment.to_json()},
            "digests": {"0": self.digest.to_json()},
            "config": config,
        }
        return json.dumps(fields, separators=(",", ":")).encode()
