"""The anti-forensic splitter of LUKS: a key that is lost if a small part of it is overwritten.

A disk may keep an old copy of a block somewhere. So the key is made large, 4000 times its size, in such a way that
every bit of it takes part in every bit of the key: all stripes but the last are random, and the last one is the key,
mixed with them (LUKS1 On-Disk Format, 2.4).
"""

from __future__ import annotations

import hashlib
import os


def split(key: bytes, stripes: int, hash_name: str) -> bytes:
    """The key in so many stripes, each as long as itself."""
    random = os.urandom(len(key) * (stripes - 1))
    return random + _xor(_mixed(random, len(key), hash_name), key)


def merge(material: bytes, stripes: int, hash_name: str) -> bytes:
    """The key that was split."""
    size = len(material) // stripes
    return _xor(_mixed(material[:-size], size, hash_name), material[-size:])


def _mixed(stripes: bytes, size: int, hash_name: str) -> bytes:
    state = bytes(size)
    for at in range(0, len(stripes), size):
        state = _diffuse(_xor(state, stripes[at : at + size]), hash_name)
    return state


def _diffuse(state: bytes, hash_name: str) -> bytes:
    """Hash it in pieces of the hash's size, each with its number in front."""
    size = hashlib.new(hash_name).digest_size
    parts = []
    for number, at in enumerate(range(0, len(state), size)):
        piece = state[at : at + size]
        parts.append(hashlib.new(hash_name, number.to_bytes(4, "big") + piece).digest()[: len(piece)])
    return b"".join(parts)


def _xor(first: bytes, second: bytes) -> bytes:
    return (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")).to_bytes(len(first), "big")
