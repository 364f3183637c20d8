"""A key from a passphrase: PBKDF2 (RFC 8018), Argon2i and Argon2id (RFC 9106)."""

from __future__ import annotations

import hashlib
import os
import time

from memvm.disk.metadata import Kdf
from memvm.errors import HostError
from memvm.units import KIB, MIB

SALT_SIZE = 32
_TARGET = 1.0
"""Seconds that an attempt shall take."""
_MEMORY = 256 * KIB
"""KiB that it shall take, with argon2id."""
_LEAST_ITERATIONS, _LEAST_PASSES = 1000, 4
"""As cryptsetup has them."""
_TRIED_ITERATIONS = 100_000


def derive_key(kdf: Kdf, passphrase: bytes, size: int) -> bytes:
    """The key, `size` bytes. Raises HostError if there is not enough memory for that."""
    if kdf.type == "pbkdf2":
        return hashlib.pbkdf2_hmac(kdf.hash, passphrase, kdf.salt, kdf.iterations, size)
    from cryptography.hazmat.primitives.kdf import argon2

    make = argon2.Argon2id if kdf.type == "argon2id" else argon2.Argon2i
    try:
        return make(salt=kdf.salt, length=size, iterations=kdf.time, lanes=kdf.cpus, memory_cost=kdf.memory).derive(
            passphrase
        )
    except MemoryError as error:
        raise HostError(
            f"{kdf.memory * KIB // MIB} MiB are needed to derive the disk's key, and are not free"
        ) from error


def new_kdf(kind: str, *, iterations: int = 0) -> Kdf:
    """For a new keyslot, with a salt of its own; `iterations` (or passes), or what takes a second here."""
    salt = os.urandom(SALT_SIZE)
    if kind == "pbkdf2":
        return Kdf(kind, salt, hash="sha256", iterations=max(iterations or _measured_iterations(), _LEAST_ITERATIONS))
    cpus = min(4, os.cpu_count() or 1)
    trial = Kdf("argon2id", salt, time=_LEAST_PASSES, memory=_MEMORY, cpus=cpus)
    if iterations:
        return trial._replace(time=max(iterations, _LEAST_PASSES))
    began = time.perf_counter()
    derive_key(trial, b"", 32)
    took = time.perf_counter() - began
    return trial._replace(time=max(_LEAST_PASSES, int(_LEAST_PASSES * _TARGET / took)))


def _measured_iterations() -> int:
    began = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", bytes(SALT_SIZE), _TRIED_ITERATIONS, 32)
    return int(_TRIED_ITERATIONS * _TARGET / (time.perf_counter() - began))
