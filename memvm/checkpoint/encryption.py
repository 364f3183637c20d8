"""The encrypted checkpoint of a sealed guest: a checkpoint file (format.py) in records of AES-256-GCM.

Its format, its header, and the cipher of its records, which encrypted_records.py writes and reads.

What is in the records is the file that format.py draws, from its header to its commit record: chunks are compressed
before they are encrypted, and index, active list and state are encrypted with them. Numbers are little endian.

    0             header
                     0  8s  magic "memvmENC"
                     8  u16 version, 1; 2 with a parent
                    10  u16 zero
                    12  u32 record size: bytes of the checkpoint in a record
                    16  16s checkpoint id; the checkpoint's own header has the same one
                    32  32s public key (X25519) of the key keeper
                    64  u32 length of the claims
                    68  u32 length of the wrapped key
                    72  u32 length of the signature
                    76  u32 length of the parent; 0 without one
                    80      claims: what the guest was launched as, and where it comes from, as JSON
                            (Launched.to_fields of machine/launched.py)
                            the checkpoint key, wrapped (HPKE) for the key keeper
                            parent, if there is one: as the parent section of format.py, but with the SHA-256 of the
                            parent's whole header in place of that of its commit record
                            the platform's signature over the SHA-256 of all before, with zero for its own length
    behind it     records: the ciphertext of `record size` bytes, the last one of fewer, each with its tag of 16 bytes

A guest has one checkpoint key from its launch on. Each file has a key of its own: HKDF-SHA256 of the checkpoint key,
with the checkpoint id, which is random, as the salt, and the digest of the whole header. So a record decrypts only in
the file that it was written for, with the guest, version, lineage and key keeper which that file's header has; and only
in its place, as its number is the nonce. A record is encrypted once, so no nonce is used twice under one key; the files
of a restored guest have other ids and therefore other keys. What is missing at the end, the commit record tells.

What is bound to a page, and where:

    guest      identity and launch digest are in the claims, so in the file's key; the checkpoint key is the guest's own
    version    the file's checkpoint id, and the number of saves in the claims: in the file's key
    lineage    the ancestors in the claims, and the parent: in the file's key
    page       the index, in records itself, says where in the file a page is, and the place is the record's nonce
    old ones   a page of an earlier save is in a file of another key; that file as a whole the verifier refuses

A file that was saved on top of another one names that in its header, so that whoever has no key can find all files of a
chain. The digest there pins the parent's header, and that its own parent's, so that signature and key of the youngest
file are those of a chain of headers; within its records, the parent section pins the parent's contents.

That a whole file is an older one cannot be seen in it: its number of saves is among the claims, and the verifier, whose
token the release of the key needs, compares that with what it has seen.
"""

from __future__ import annotations

import os
import struct
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from memvm.checkpoint.file_bytes import PlainInput
from memvm.checkpoint.format import ENCRYPTED_MAGIC, MAX_PARENT_SIZE, FormatError, Incomplete, NewerVersion
from memvm.checkpoint.sections import ParentLink
from memvm.linux.secret_memory import Buffer, overwrite
from memvm.units import KIB

VERSION = 2
RECORD_SIZE = 64 * KIB
"""A demand fault decrypts one or two records for its chunk, of 64 KiB before compression. With smaller ones, beginning
each would cost as much as the rest."""
MIN_RECORD_SIZE, MAX_RECORD_SIZE = 4 * KIB, 1024 * KIB
TAG_SIZE = 16
KEY_SIZE = 32
WRAPPED_SIZE = 80
"""An encapsulated X25519 key, and the checkpoint key with its tag."""
MAX_CLAIMS, MAX_SIGNATURE = 24 * KIB, 8 * KIB
_FIXED = struct.Struct("<8sHHI16s32sIIII")
_PURPOSE = b"memvm encrypted checkpoint 1"
assert _FIXED.size == 80


class EncryptedHeader(NamedTuple):
    """What an encrypted checkpoint says to everybody."""

    checkpoint_id: bytes
    keeper: bytes
    claims: bytes
    wrapped_key: bytes
    signature: bytes = b""
    """Empty if no platform vouches for it."""
    record_size: int = RECORD_SIZE
    parent: ParentLink | None = None
    """The file that it was saved on top of; the digest is that of the other one's header."""

    def pack(self) -> bytes:
        """Its bytes."""
        return self._all_but_signature(len(self.signature)) + self.signature

    def _all_but_signature(self, signature_length: int) -> bytes:
        parent = b"" if self.parent is None else self.parent.pack()
        lengths = len(self.claims), len(self.wrapped_key), signature_length, len(parent)
        version = 2 if parent else 1
        fixed = _FIXED.pack(ENCRYPTED_MAGIC, version, 0, self.record_size, self.checkpoint_id, self.keeper, *lengths)
        return fixed + self.claims + self.wrapped_key + parent

    @property
    def signed(self) -> bytes:
        """What the platform signs: a digest."""
        return sha256(self._all_but_signature(0)).digest()

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it, which is bound into the file's key."""
        return sha256(self.pack()).digest()

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.pack())

    @classmethod
    def unpack(cls, data: bytes) -> EncryptedHeader:
        """The header that bytes begin with; others may follow. Raises FormatError."""
        if not data.startswith(ENCRYPTED_MAGIC) or len(data) < _FIXED.size:
            raise FormatError("not an encrypted memvm checkpoint")
        _, version, _, record_size, checkpoint_id, keeper, *lengths = _FIXED.unpack_from(data)
        if version > VERSION:
            raise NewerVersion(f"written by a newer memvm: encrypted format {version}, this one reads {VERSION}")
        claims, wrapped, signature, parent = lengths
        if not 0 < claims <= MAX_CLAIMS or wrapped != WRAPPED_SIZE or signature > MAX_SIGNATURE:
            raise FormatError("the header has parts of an impossible size")
        if parent > MAX_PARENT_SIZE:
            raise FormatError(f"a parent of {parent} bytes; at most {MAX_PARENT_SIZE} are allowed")
        if not MIN_RECORD_SIZE <= record_size <= MAX_RECORD_SIZE:
            raise FormatError(f"records of {record_size} bytes")
        ends = list(accumulate((claims, wrapped, parent, signature), initial=_FIXED.size))
        if len(data) < ends[-1]:
            raise Incomplete("incomplete: the file was cut in its header")
        parts = [data[start:end] for start, end in pairwise(ends)]
        link = ParentLink.unpack(parts[2]) if parts[2] else None
        header = cls(checkpoint_id, keeper, parts[0], parts[1], parts[3], record_size, link)
        if not data.startswith(header.pack()):  # the zeros are not zero, or the version is another one's
            raise FormatError("the header is damaged")
        return header


MAX_HEADER = _FIXED.size + MAX_CLAIMS + WRAPPED_SIZE + MAX_PARENT_SIZE + MAX_SIGNATURE


class FileCipher:
    """The records of one file. Its methods may be called from any thread."""

    def __init__(self, checkpoint_key: Buffer, header: EncryptedHeader) -> None:
        kdf = HKDF(SHA256(), KEY_SIZE, salt=header.checkpoint_id, info=_PURPOSE + header.digest)
        derived = bytearray(KEY_SIZE)
        try:
            kdf.derive_into(checkpoint_key, derived)
            self._cipher = AESGCM(derived)
        finally:
            overwrite(derived)

    def encrypt(self, number: int, data: bytes | bytearray | memoryview, record: bytearray | memoryview) -> None:
        """Make the record of that number, which must be encrypted once only, in a buffer of its size."""
        self._cipher.encrypt_into(_nonce(number), data, None, record)

    def decrypt(self, number: int, record: bytes | memoryview) -> bytes:
        """What is in it. Raises FormatError."""
        try:
            return self._cipher.decrypt(_nonce(number), record, None)
        except InvalidTag:
            raise FormatError("damaged, or not what was saved here: it cannot be decrypted") from None


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


def read_header(source: PlainInput) -> EncryptedHeader:
    """The header of an open file. Raises FormatError, OSError."""
    return EncryptedHeader.unpack(source.pread(min(MAX_HEADER, source.size), 0))


def is_encrypted(fd: int) -> bool:
    """Whether an open file says that it is an encrypted checkpoint. Raises OSError."""
    return os.pread(fd, len(ENCRYPTED_MAGIC), 0) == ENCRYPTED_MAGIC
