"""AES-XTS (IEEE 1619) with the processor's wide AES instructions, many sectors with one call.

`cryptography` wants an object for each sector, since each has its own tweak; that costs several times what it takes to
decrypt 4096 bytes. No library that is sure to be there takes many sectors at once, so here are the instructions that do
(VAES on registers of 512 bits: Intel's since Ice Lake, AMD's since Zen 4). They look nothing up in tables, so the time
they take tells nothing of keys or data. Where they cannot be used, `vector_code` says why, and callers do without.
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

from memvm.linux.machine_code import CodePage
from memvm.linux.processor import processor_flags
from memvm.linux.secret_memory import Buffer, SecretMemory, overwrite

UNIT = 512
"""Bytes for which a tweak counts one further, whatever the sector's size."""

_NEEDED = ("aes", "avx", "avx512f", "avx512bw", "vaes", "vpclmulqdq")

_CODE = """
encrypt:
    4c8d15b6010000            lea r10, [rip+encrypt_blocks]
    eb07                      jmp begin
decrypt:
    4c8d151b020000            lea r10, [rip+decrypt_blocks]
begin:
    4885c9                    test rcx, rcx
    0f846c010000              je end
    4c8b1f                    mov r11, [rdi]                    ; bytes from the first round key to the last
    b887000000                mov eax, 0x87                     ; x^128 is x^7 + x^2 + x + 1 in this field
    6272fd487cc8              vpbroadcastq zmm9, rax
    b840000000                mov eax, 0x40
    6272fd487cd8              vpbroadcastq zmm11, rax
    b804000000                mov eax, 0x4
    6272fd487ce8              vpbroadcastq zmm13, rax
    62727d48321576020000      vpmovzxbq zmm10, [rip+shifts]     ; lane i: left by i bits; the rest, right
    6251a548fbda              vpsubq zmm11, zmm11, zmm10
    6251ad48d4e5              vpaddq zmm12, zmm10, zmm13        ; and the same by i + 4
    6251a548fbed              vpsubq zmm13, zmm11, zmm13
sector:
    c4c1f96ec1                vmovq xmm0, r9                    ; the number, encrypted: the first tweak, T
    c5f9ef4710                vpxor xmm0, xmm0, [rdi+0x10]
    b810000000                mov eax, 0x10
tweak_round:
    c4e279dc440710            vaesenc xmm0, xmm0, [rdi+rax+0x10]
    4883c010                  add rax, 0x10
    4c39d8                    cmp rax, r11
    75f0                      jne tweak_round
    c4e279dd440710            vaesenclast xmm0, xmm0, [rdi+rax+0x10]
    62f3fd4843c000            vshufi64x2 zmm0, zmm0, zmm0, 0x0  ; in all four lanes
    62d2fd4847e2              vpsllvq zmm4, zmm0, zmm10         ; T, Tx, Txx, Txxx: both halves of a lane shifted
    62d2fd4845cb              vpsrlvq zmm1, zmm0, zmm11         ; what falls out of them
    62d3754844d101            vpclmulqdq zmm2, zmm1, zmm9, 0x1  ; above: comes back below, times 0x87
    62f1754873f908            vpslldq zmm1, zmm1, 0x8           ; below: belongs above
    62f3f54825e296            vpternlogq zmm4, zmm1, zmm2, 0x96 ; the exclusive or of the three
    62d2fd4847ec              vpsllvq zmm5, zmm0, zmm12         ; the next four tweaks likewise
    62d2fd4845cd              vpsrlvq zmm1, zmm0, zmm13
    62d3754844d101            vpclmulqdq zmm2, zmm1, zmm9, 0x1
    62f1754873f908            vpslldq zmm1, zmm1, 0x8
    62f3f54825ea96            vpternlogq zmm5, zmm1, zmm2, 0x96
    e8b9000000                call second_half
    4b8d0400                  lea rax, [r8+r8]
blocks:
    62f1dd48ef02              vpxorq zmm0, zmm4, [rdx]
    62f1d548ef4a01            vpxorq zmm1, zmm5, [rdx+0x40]
    62f1cd48ef5202            vpxorq zmm2, zmm6, [rdx+0x80]
    62f1c548ef5a03            vpxorq zmm3, zmm7, [rdx+0xc0]
    50                        push rax
    41ffd2                    call r10
    58                        pop rax
    62f1fd48efc4              vpxorq zmm0, zmm0, zmm4
    62f1f548efcd              vpxorq zmm1, zmm1, zmm5
    62f1ed48efd6              vpxorq zmm2, zmm2, zmm6
    62f1e548efdf              vpxorq zmm3, zmm3, zmm7
    62f1fe487f06              vmovdqu64 [rsi], zmm0
    62f1fe487f4e01            vmovdqu64 [rsi+0x40], zmm1
    62f1fe487f5602            vmovdqu64 [rsi+0x80], zmm2
    62f1fe487f5e03            vmovdqu64 [rsi+0xc0], zmm3
    4881c200010000            add rdx, 0x100
    4881c600010000            add rsi, 0x100
    62f17d4873de0f            vpsrldq zmm0, zmm6, 0xf           ; the next tweaks: times x^8, by a byte,
    62f1754873df0f            vpsrldq zmm1, zmm7, 0xf           ; what falls out comes back below, times 0x87
    62d37d4844c100            vpclmulqdq zmm0, zmm0, zmm9, 0x0
    62d3754844c900            vpclmulqdq zmm1, zmm1, zmm9, 0x0
    62f15d4873fe01            vpslldq zmm4, zmm6, 0x1
    62f1554873ff01            vpslldq zmm5, zmm7, 0x1
    62f1dd48efe0              vpxorq zmm4, zmm4, zmm0
    62f1d548efe9              vpxorq zmm5, zmm5, zmm1
    e819000000                call second_half
    48ffc8                    dec rax
    0f855bffffff              jne blocks
    4d01c1                    add r9, r8
    48ffc9                    dec rcx
    0f85d7feffff              jne sector
    c5fc77                    vzeroall                          ; no key, tweak or plaintext stays behind
end:
    c3                        ret
second_half:
    62f17d4873dc0f            vpsrldq zmm0, zmm4, 0xf
    62f1754873dd0f            vpsrldq zmm1, zmm5, 0xf
    62d37d4844c100            vpclmulqdq zmm0, zmm0, zmm9, 0x0
    62d3754844c900            vpclmulqdq zmm1, zmm1, zmm9, 0x0
    62f14d4873fc01            vpslldq zmm6, zmm4, 0x1
    62f1454873fd01            vpslldq zmm7, zmm5, 0x1
    62f1cd48eff0              vpxorq zmm6, zmm6, zmm0
    62f1c548eff9              vpxorq zmm7, zmm7, zmm1
    c3                        ret
encrypt_blocks:
    b810000000                mov eax, 0x10
    62727d485a4710            vbroadcasti32x4 zmm8, [rdi+0x100]
    62d1fd48efc0              vpxorq zmm0, zmm0, zmm8
    62d1f548efc8              vpxorq zmm1, zmm1, zmm8
    62d1ed48efd0              vpxorq zmm2, zmm2, zmm8
    62d1e548efd8              vpxorq zmm3, zmm3, zmm8
encrypt_round:
    62727d485a440710          vbroadcasti32x4 zmm8, [rdi+rax+0x100]
    62d27d48dcc0              vaesenc zmm0, zmm0, zmm8
    62d27548dcc8              vaesenc zmm1, zmm1, zmm8
    62d26d48dcd0              vaesenc zmm2, zmm2, zmm8
    62d26548dcd8              vaesenc zmm3, zmm3, zmm8
    4883c010                  add rax, 0x10
    4c39d8                    cmp rax, r11
    75d7                      jne encrypt_round
    62727d485a440710          vbroadcasti32x4 zmm8, [rdi+rax+0x100]
    62d27d48ddc0              vaesenclast zmm0, zmm0, zmm8
    62d27548ddc8              vaesenclast zmm1, zmm1, zmm8
    62d26d48ddd0              vaesenclast zmm2, zmm2, zmm8
    62d26548ddd8              vaesenclast zmm3, zmm3, zmm8
    c3                        ret
decrypt_blocks:
    b810000000                mov eax, 0x10
    62727d485a4710            vbroadcasti32x4 zmm8, [rdi+0x100]
    62d1fd48efc0              vpxorq zmm0, zmm0, zmm8
    62d1f548efc8              vpxorq zmm1, zmm1, zmm8
    62d1ed48efd0              vpxorq zmm2, zmm2, zmm8
    62d1e548efd8              vpxorq zmm3, zmm3, zmm8
decrypt_round:
    62727d485a440710          vbroadcasti32x4 zmm8, [rdi+rax+0x100]
    62d27d48dec0              vaesdec zmm0, zmm0, zmm8
    62d27548dec8              vaesdec zmm1, zmm1, zmm8
    62d26d48ded0              vaesdec zmm2, zmm2, zmm8
    62d26548ded8              vaesdec zmm3, zmm3, zmm8
    4883c010                  add rax, 0x10
    4c39d8                    cmp rax, r11
    75d7                      jne decrypt_round
    62727d485a440710          vbroadcasti32x4 zmm8, [rdi+rax+0x100]
    62d27d48dfc0              vaesdeclast zmm0, zmm0, zmm8
    62d27548dfc8              vaesdeclast zmm1, zmm1, zmm8
    62d26d48dfd0              vaesdeclast zmm2, zmm2, zmm8
    62d26548dfd8              vaesdeclast zmm3, zmm3, zmm8
    c3                        ret
substitute:
    c5f96ec7                  vmovd xmm0, edi
    c5f970c000                vpshufd xmm0, xmm0, 0x0
    c4e379dfc000              vaeskeygenassist xmm0, xmm0, 0x0
    c5f97ec0                  vmovd eax, xmm0
    c5fc77                    vzeroall
    c3                        ret
invert:
    c4e279db07                vaesimc xmm0, [rdi]
    c5fa7f07                  vmovdqu [rdi], xmm0
    c5fc77                    vzeroall
    c3                        ret
shifts:
    0000010102020303          .byte 0, 0, 1, 1, 2, 2, 3, 3
"""
"""encrypt and decrypt: rdi keys (_key_block), rsi to, rdx from, rcx sectors, r8 units of a sector, r9 first tweak.

zmm0 to 3 have 16 blocks, zmm4 to 7 their tweaks, zmm8 a round key. substitute: SubBytes (FIPS 197) of a word. invert:
InvMixColumns of the 16 bytes at rdi. tests/disk/test_vector_xts.py assembles the words, and compares.
"""

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

    def __init__(self) -> None:
        """Raises OSError where this process may not make code."""
        self._page = CodePage(_CODE)
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
        lacking = [flag for flag in _NEEDED if flag not in processor_flags()]
        if lacking:
            return None, f"the processor lacks {', '.join(lacking)}"
        code = VectorCode()
    except OSError as error:
        return None, f"machine code cannot be used: {os.strerror(error.errno or 0)}"
    key, data = bytes(range(64)), bytes(range(256)) * 2
    ours, secret = VectorXts(code, key, UNIT), Cipher(AES(key), XTS(_FIRST.pack(1))).encryptor().update(data)
    computed = ours.encrypt(1, data), ours.decrypt(1, secret)
    ours.close()
    if computed != (secret, data):
        return None, "the processor's AES instructions do not compute AES"
    return code, "many sectors at once, by the processor's AES instructions for 512 bits"


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
