"""AES-XTS (IEEE 1619) with the processor's wide AES instructions, many sectors with one call.

`cryptography` wants an object for each sector, since each has its own tweak; that costs several times what it takes to
decrypt 4096 bytes. No library that is sure to be there takes many sectors at once, so here are the instructions that do
(vector_xts_code.py), for the widest registers that the processor has them for. They look nothing up in tables, so the
time they take tells nothing of keys or data. Where none can be used, `vector_code` says why, and callers do without.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from struct import Struct

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from memvm.disk.vector_xts_code import WIDTHS, Width
from memvm.linux.machine_code import CodePage
from memvm.linux.processor import processor_flags
from memvm.linux.secret_memory import Buffer, SecretMemory, overwrite

UNIT = 512
"""Bytes for which a tweak counts one further, whatever the sector's size."""

_ROUND_KEY, _MOST_ROUND_KEYS = 16, 15
_FIRST, _WORD_MASK = Struct("<Q8x"), 0xFFFFFFFF
_Function = Callable[..., None]

# Python's C API for bytes objects that are filled before anybody else sees them: clearing a buffer first,
# and copying it in the end, would take half as long as the decryption.
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes, _new_bytes.restype = [ctypes.c_void_p, ctypes.c_ssize_t], ctypes.py_object
_bytes_of = ctypes.pythonapi.PyBytes_AsString
_bytes_of.argtypes, _bytes_of.restype = [ctypes.py_object], ctypes.c_void_p


class VectorCode:
    """The instructions, ready to be executed, by any number of threads at once."""

    def __init__(self, width: Width) -> None:
        """Raises OSError where this process may not make code."""
        self._page = CodePage(width.listing)
        address, count, word = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32
        run = ctypes.CFUNCTYPE(None, address, address, address, count, count, count)  # lets go of the interpreter lock
        self.encrypt = run(self._page.address("encrypt"))
        self.decrypt = run(self._page.address("decrypt"))
        self.substitute = ctypes.CFUNCTYPE(word, word)(self._page.address("substitute"))
        self.invert = ctypes.CFUNCTYPE(None, address)(self._page.address("invert"))


@functools.cache
def vector_code() -> tuple[VectorCode | None, str]:
    """The instructions, or None; and what `memvm doctor` says of that. They are tried before anybody relies on them."""
    try:
        flags = processor_flags()
        width = next((width for width in WIDTHS if flags.issuperset(width.needed)), None)
        if width is None:
            lacking = (flag for flag in WIDTHS[-1].needed if flag not in flags)
            return None, f"the processor lacks {', '.join(lacking)}"
        code = VectorCode(width)
    except OSError as error:
        return None, f"machine code cannot be used: {os.strerror(error.errno or 0)}"
    key, data = bytes(range(64)), bytes(range(256)) * 2
    ours, secret = VectorXts(code, key, UNIT), Cipher(AES(key), XTS(_FIRST.pack(1))).encryptor().update(data)
    computed = ours.encrypt(1, data), ours.decrypt(1, secret)
    ours.close()
    if computed != (secret, data):
        return None, "the processor's AES instructions do not compute AES"
    return code, f"many sectors at once, by the processor's AES instructions for {width.bits} bits"


class VectorXts:
    """Encrypts and decrypts runs of sectors with one key, until it is closed. For any number of threads at once."""

    def __init__(self, code: VectorCode, key: Buffer, sector_size: int) -> None:
        """`key`: two AES keys, 32 or 64 bytes together. `sector_size`: a multiple of UNIT bytes."""
        self._code, self._sector_size = code, sector_size
        half = len(key) // 2
        data_keys, tweak_keys = _round_keys(code, key[:half]), _round_keys(code, key[half:])
        inverse_keys = _inverse(code, data_keys)
        self._to_encrypt = SecretMemory.taking(_key_block(tweak_keys, data_keys))
        self._to_decrypt = SecretMemory.taking(_key_block(tweak_keys, inverse_keys))
        for passing in (data_keys, tweak_keys, inverse_keys):
            overwrite(passing)

    def close(self) -> None:
        """Wipe the keys; idempotent."""
        self._to_encrypt.wipe()
        self._to_decrypt.wipe()

    def encrypt(self, tweak: int, data: Buffer) -> bytes:
        """Whole sectors, the first of them with this tweak."""
        return self._run(self._code.encrypt, self._to_encrypt, tweak, data)

    def decrypt(self, tweak: int, data: Buffer) -> bytes:
        """What `encrypt` was given."""
        return self._run(self._code.decrypt, self._to_decrypt, tweak, data)

    def _run(self, function: _Function, keys: SecretMemory, tweak: int, data: Buffer) -> bytes:
        size = len(data)
        if size == 0:
            return b""
        done: bytes = _new_bytes(None, size)
        begin: object = data
        if not isinstance(data, bytes):
            begin = bytes(data) if memoryview(data).readonly else ctypes.byref(ctypes.c_char.from_buffer(data))
        with keys.view[:1]:  # as long as somebody looks at them they stay where they are
            units = self._sector_size // UNIT
            function(keys.address, _bytes_of(done), begin, size // self._sector_size, units, tweak)
        return done


def _round_keys(code: VectorCode, key: Buffer) -> bytes:
    """The key expansion of FIPS 197, section 5.2, whose words here are little-endian."""
    size = len(key) // 4
    words, constant = list(Struct(f"<{size}I").unpack(key)), 1
    for place in range(size, 4 * (size + 7)):
        word = words[-1]
        if place % size == 0:
            word = code.substitute(word)
            word = (word >> 8 | word << 24 & _WORD_MASK) ^ constant
            constant = constant << 1 ^ (0x11B if constant & 0x80 else 0)
        elif size == 8 and place % size == 4:
            word = code.substitute(word)
        words.append(words[place - size] ^ word)
    return Struct(f"<{len(words)}I").pack(*words)


def _inverse(code: VectorCode, round_keys: bytes) -> bytes:
    """Round keys of the equivalent inverse cipher (FIPS 197, section 5.3.5), in the order in which it takes them."""
    keys = ctypes.create_string_buffer(round_keys, len(round_keys))
    for at in range(_ROUND_KEY, len(keys) - _ROUND_KEY, _ROUND_KEY):
        code.invert(ctypes.addressof(keys) + at)
    view = memoryview(keys)
    inverted = b"".join(view[at : at + _ROUND_KEY] for at in reversed(range(0, len(keys), _ROUND_KEY)))
    ctypes.memset(keys, 0, len(keys))
    return inverted


def _key_block(tweak_keys: bytes, data_keys: bytes) -> bytearray:
    """Bytes from the first round key to the last, 8 spare ones, then round keys from offset 0x10 and from 0x100."""
    room = _ROUND_KEY * _MOST_ROUND_KEYS
    block = bytearray(_FIRST.size + 2 * room)
    _FIRST.pack_into(block, 0, len(data_keys) - _ROUND_KEY)
    for at, keys in ((_FIRST.size, tweak_keys), (_FIRST.size + room, data_keys)):
        block[at : at + len(keys)] = keys
    return block
