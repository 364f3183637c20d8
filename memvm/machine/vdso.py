"""The guest's vDSO: a small shared library of memvm's own by which C libraries tell the time without a hypercall.

C libraries find it by AT_SYSINFO_EHDR and look up symbols of version LINUX_2.6 (vdso(7)). Its code lies in guest RAM,
so it is saved with the guest, and a thread may be in the midst of it. What it reads, the clock page (clock_page.py),
lies outside, at the same address in every guest. Where the page says so, it makes the system call instead.
"""

from __future__ import annotations

import struct

from memvm.linux.machine_code import assembled
from memvm.units import PAGE_SIZE

_CODE = """
clock_gettime:
    83ff0b                    cmp edi, 0xb
    7725                      ja call
    b8f3080000                mov eax, 0x8f3        ; clocks that are answered here: all but those of CPU time
    0fa3f8                    bt eax, edi
    731b                      jnc call
    e89f000000                call now
    7214                      jb call
    b900ca9a3b                mov ecx, 0x3b9aca00   ; a second
    31d2                      xor edx, edx
    48f7f1                    div rcx
    488906                    mov [rsi], rax
    48895608                  mov [rsi+0x8], rdx
    31c0                      xor eax, eax
    c3                        ret
    b8e4000000      call:     mov eax, 0xe4
    0f05                      syscall
    c3                        ret
gettimeofday:
    4885ff                    test rdi, rdi
    7428                      je zone
    4989fb                    mov r11, rdi
    31ff                      xor edi, edi
    e872000000                call now
    722b                      jb call
    b900ca9a3b                mov ecx, 0x3b9aca00
    31d2                      xor edx, edx
    48f7f1                    div rcx
    498903                    mov [r11], rax
    89d0                      mov eax, edx
    b9e8030000                mov ecx, 0x3e8
    31d2                      xor edx, edx
    f7f1                      div ecx
    49894308                  mov [r11+0x8], rax
    4885f6          zone:     test rsi, rsi
    7407                      je done
    48c70600000000            mov [rsi], 0x0
    31c0            done:     xor eax, eax
    c3                        ret
    4c89df          call:     mov rdi, r11
    b860000000                mov eax, 0x60
    0f05                      syscall
    c3                        ret
time:
    4989fb                    mov r11, rdi
    31ff                      xor edi, edi
    e830000000                call now
    7213                      jb call
    b900ca9a3b                mov ecx, 0x3b9aca00
    31d2                      xor edx, edx
    48f7f1                    div rcx
    4d85db                    test r11, r11
    7403                      je done
    498903                    mov [r11], rax
    c3              done:     ret
    4c89df          call:     mov rdi, r11
    b8c9000000                mov eax, 0xc9
    0f05                      syscall
    c3                        ret
clock_getres:
    b8e5000000                mov eax, 0xe5
    0f05                      syscall
    c3                        ret
getcpu:
    b835010000                mov eax, 0x135
    0f05                      syscall
    c3                        ret
now:
    41b800101f00              mov r8d, 0x1f1000     ; the clock page
    4d8b08          again:    mov r9, [r8]          ; its sequence number
    41f6c101                  test r9b, 0x1         ; odd while it is being changed
    7549                      jne changing
    4983780801                cmp [r8+0x8], 0x1     ; 0: the processor's counter cannot be used; carry is set
    7241                      jb unusable
    0faee8                    lfence
    0f31                      rdtsc
    48c1e220                  shl rdx, 0x20
    4809d0                    or rax, rdx
    492b4010                  sub rax, [r8+0x10]    ; since the counter stood here
    b900000000                mov ecx, 0x0
    480f42c1                  cmovb rax, rcx        ; never before
    49f76018                  mul [r8+0x18]         ; nanoseconds, times 2^32
    480facd020                shrd rax, rdx, 0x20
    49034020                  add rax, [r8+0x20]    ; and CLOCK_MONOTONIC was this
    b921080000                mov ecx, 0x821        ; clocks that tell the time of day
    0fa3f9                    bt ecx, edi
    b900000000                mov ecx, 0x0
    490f424828                cmovb rcx, [r8+0x28]  ; which is so much more
    4801c8                    add rax, rcx
    4d3b08                    cmp r9, [r8]          ; changed meanwhile?
    75b0                      jne again
    f8                        clc
    c3              unusable: ret
    f390            changing: pause
    ebaa                      jmp again
"""
"""Address of the page, and clocks, are those of layout.py and clocks.py; tests/machine/test_clock_page.py compares."""

_FUNCTIONS = ("clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu")
_SONAME, _VERSION = b"linux-vdso.so.1", b"LINUX_2.6"
_CODE_OFFSET = 0x400

_ELF_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("=IIQQQQQQ")
_SYMBOL = struct.Struct("=IBBHQQ")
_VERDEF, _VERDAUX = struct.Struct("=HHHHIII"), struct.Struct("=II")
_PT_LOAD, _PT_DYNAMIC, _R, _RX = 1, 2, 4, 5
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 4, 5, 6, 10, 11, 14
_DT_VERSYM, _DT_VERDEF, _DT_VERDEFNUM = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD
_GLOBAL_FUNCTION, _SOME_SECTION = 0x12, 1


def vdso_image() -> bytes:
    """The library: a page, to be mapped readable and executable wherever there is room."""
    code, places = assembled(_CODE)
    strings = _Strings()
    soname, version = strings.add(_SONAME), strings.add(_VERSION)
    symbols = bytearray(_SYMBOL.size)
    for function in _FUNCTIONS:
        name = strings.add(b"__vdso_" + function.encode())
        symbols += _SYMBOL.pack(name, _GLOBAL_FUNCTION, 0, _SOME_SECTION, _CODE_OFFSET + places[function], 16)
    count = len(_FUNCTIONS) + 1
    table = struct.pack(f"={3 + count}I", 1, count, 1, 0, *range(2, count), 0)  # one bucket, one chain of all
    versions = struct.pack(f"={count}H", 0, *[2] * (count - 1))
    definitions = b"".join(
        _VERDEF.pack(1, base, number, 1, _hash(text), _VERDEF.size, following) + _VERDAUX.pack(name, 0)
        for base, number, text, name, following in (
            (1, 1, _SONAME, soname, _VERDEF.size + _VERDAUX.size),
            (0, 2, _VERSION, version, 0),
        )
    )
    image = bytearray(_ELF_HEADER.size + 2 * _PROGRAM_HEADER.size)
    at = {}
    for tag, part in (
        (_DT_SYMTAB, symbols),
        (_DT_STRTAB, strings.data),
        (_DT_HASH, table),
        (_DT_VERSYM, versions),
        (_DT_VERDEF, definitions),
    ):
        image += bytes(-len(image) % 8)
        at[tag] = len(image)
        image += part
    image += bytes(-len(image) % 8)
    at |= {_DT_SONAME: soname, _DT_STRSZ: len(strings.data), _DT_SYMENT: _SYMBOL.size, _DT_VERDEFNUM: 2, 0: 0}
    dynamic = struct.pack(f"={2 * len(at)}Q", *(word for pair in at.items() for word in pair))
    where = len(image)
    image += dynamic
    assert len(image) <= _CODE_OFFSET
    image = image.ljust(_CODE_OFFSET, b"\0") + bytearray(code)
    identity = b"\x7fELF\x02\x01\x01"
    size = _ELF_HEADER.size
    _ELF_HEADER.pack_into(image, 0, identity, 3, 62, 1, 0, size, 0, 0, size, _PROGRAM_HEADER.size, 2, 0, 0, 0)
    length = len(image)
    _PROGRAM_HEADER.pack_into(image, size, _PT_LOAD, _RX, 0, 0, 0, length, length, PAGE_SIZE)
    _PROGRAM_HEADER.pack_into(
        image, size + _PROGRAM_HEADER.size, _PT_DYNAMIC, _R, where, where, where, len(dynamic), len(dynamic), 8
    )
    return bytes(image.ljust(PAGE_SIZE, b"\0"))


class _Strings:
    """A string table."""

    def __init__(self) -> None:
        self.data = bytearray(1)

    def add(self, text: bytes) -> int:
        """Where a string is in it."""
        self.data += text + b"\0"
        return len(self.data) - len(text) - 1


def _hash(name: bytes) -> int:
    """The hash of the System V ABI (elf(5))."""
    value = 0
    for letter in name:
        value = (value << 4) + letter
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high
    return value & 0xFFFFFFFF
