"""Writes small ELF files for tests: `Program(...).build()` gives a good one, `patch_*` break a field of it.

Fields have their names of elf(5), and the layouts here are written down apart from those in
memvm/machine/elf.py: the tests hold both against pyelftools. The default program really runs: it exits
with EXIT_CODE.

    0          file header
    64         program headers: PT_LOAD for these headers, then the segments, PT_INTERP, PT_GNU_STACK
    ...        each segment's bytes, at an offset that equals its address modulo the page size
    ...        .symtab, .strtab, .dynsym, .dynstr, .shstrtab, section headers
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Self

PAGE = 4096
EXEC, DYN = 2, 3  # e_type
LOAD, INTERP, GNU_STACK = 1, 3, 0x6474E551  # p_type
X, W, R = 1, 2, 4  # p_flags
NOTYPE, OBJECT, FUNC = 0, 1, 2  # symbol types
LOCAL, GLOBAL, WEAK = 0, 1, 2  # symbol bindings
UNDEFINED, TEXT, DATA = 0, 1, 2  # sections that symbols are in: the numbers that `Program` gives them

EXIT_CODE = 42
CODE = bytes.fromhex("bf2a000000 b83c000000 0f05")  # mov edi, 42; mov eax, SYS_exit; syscall
BASE = 0x400000
TEXT_ADDRESS = BASE + PAGE
DATA_ADDRESS = BASE + 2 * PAGE

EHDR = struct.Struct("<16s2HI3QI6H")
EHDR_FIELDS = [
    "e_ident",
    "e_type",
    "e_machine",
    "e_version",
    "e_entry",
    "e_phoff",
    "e_shoff",
    "e_flags",
    "e_ehsize",
    "e_phentsize",
    "e_phnum",
    "e_shentsize",
    "e_shnum",
    "e_shstrndx",
]
PHDR = struct.Struct("<2I6Q")
PHDR_FIELDS = ["p_type", "p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_align"]
SHDR = struct.Struct("<2I4Q2I2Q")
SHDR_FIELDS = [
    "sh_name",
    "sh_type",
    "sh_flags",
    "sh_addr",
    "sh_offset",
    "sh_size",
    "sh_link",
    "sh_info",
    "sh_addralign",
    "sh_entsize",
]
SYM = struct.Struct("<I2BH2Q")
NULL, PROGBITS, SYMTAB, STRTAB, DYNSYM = 0, 1, 2, 3, 11  # sh_type
WRITE, ALLOC, EXECINSTR = 1, 2, 4  # sh_flags


@dataclass(frozen=True)
class Load:
    """A segment: `data`, then zeros up to `mem_size` bytes (default: none)."""

    vaddr: int
    data: bytes
    flags: int
    mem_size: int | None = None
    align: int = PAGE


@dataclass(frozen=True)
class Symbol:
    """A symbol; `value` is its address."""

    name: bytes
    value: int
    size: int = 0
    type: int = FUNC
    binding: int = GLOBAL
    section: int = TEXT


@dataclass(frozen=True)
class Program:
    """What a file is to hold."""

    segments: tuple[Load, ...] = (
        Load(TEXT_ADDRESS, CODE + b"\x90" * 84, R | X),
        Load(DATA_ADDRESS, b"data", R | W, mem_size=2 * PAGE),
    )
    entry: int = TEXT_ADDRESS
    type: int = EXEC
    headers_at: int | None = BASE
    """Address of a first segment, which holds the headers; None for no such segment."""
    interpreter: bytes | None = None
    """Contents of PT_INTERP, NUL included."""
    stack_flags: int | None = R | W
    symbols: tuple[Symbol, ...] = ()
    dynamic_symbols: tuple[Symbol, ...] = ()
    with_sections: bool = True

    def moved(self, distance: int) -> Self:
        """The same program as a position-independent one, its addresses changed by `distance`."""
        return replace(
            self,
            segments=tuple(replace(load, vaddr=load.vaddr + distance) for load in self.segments),
            entry=self.entry + distance,
            type=DYN,
            headers_at=None if self.headers_at is None else self.headers_at + distance,
            symbols=_moved(self.symbols, distance),
            dynamic_symbols=_moved(self.dynamic_symbols, distance),
        )

    def build(self) -> bytes:
        """The file."""
        count = (
            (self.headers_at is not None)
            + len(self.segments)
            + (self.interpreter is not None)
            + (self.stack_flags is not None)
        )
        headers_size = EHDR.size + count * PHDR.size
        headers = []
        if self.headers_at is not None:
            headers.append(PHDR.pack(LOAD, R, 0, self.headers_at, self.headers_at, headers_size, headers_size, PAGE))
        body = bytearray(headers_size)
        for load in self.segments:
            body += bytes((load.vaddr - len(body)) % PAGE)
            size = len(load.data) if load.mem_size is None else load.mem_size
            headers.append(
                PHDR.pack(LOAD, load.flags, len(body), load.vaddr, load.vaddr, len(load.data), size, load.align)
            )
            body += load.data
        if self.interpreter is not None:
            size = len(self.interpreter)
            headers.append(PHDR.pack(INTERP, R, len(body), 0, 0, size, size, 1))
            body += self.interpreter
        if self.stack_flags is not None:
            headers.append(PHDR.pack(GNU_STACK, self.stack_flags, 0, 0, 0, 0, 0, 16))
        section_offset, section_count = self._append_sections(body, headers) if self.with_sections else (0, 0)
        ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        body[: EHDR.size] = EHDR.pack(
            *(ident, self.type, 62, 1, self.entry, EHDR.size, section_offset, 0, EHDR.size),
            *(PHDR.size, count, SHDR.size, section_count, section_count - 1 if section_count else 0),
        )
        body[EHDR.size : headers_size] = b"".join(headers)
        return bytes(body)

    def _append_sections(self, body: bytearray, headers: list[bytes]) -> tuple[int, int]:
        """Sections behind all segments; returns the offset and number of their headers."""
        names = b"\0.text\0.data\0.symtab\0.strtab\0.dynsym\0.dynstr\0.shstrtab\0"
        sections = [SHDR.pack(*bytes(10))]
        first = 0 if self.headers_at is None else 1
        for name, load, header, flags in zip(
            (b".text", b".data"), self.segments, headers[first:], (EXECINSTR, WRITE), strict=False
        ):
            offset, size = PHDR.unpack(header)[2], len(load.data)
            sections.append(
                SHDR.pack(names.index(name), PROGBITS, ALLOC | flags, load.vaddr, offset, size, 0, 0, 16, 0)
            )
        for symbols, kind, table, strings in (
            (self.symbols, SYMTAB, b".symtab", b".strtab"),
            (self.dynamic_symbols, DYNSYM, b".dynsym", b".dynstr"),
        ):
            if not symbols:
                continue
            entries, text, locals_count = _symbol_table(symbols)
            body += bytes(-len(body) % 8)
            sections.append(
                SHDR.pack(
                    *(names.index(table), kind, 0, 0, len(body), len(entries)),
                    *(len(sections) + 1, locals_count, 8, SYM.size),
                )
            )
            body += entries
            sections.append(SHDR.pack(names.index(strings), STRTAB, 0, 0, len(body), len(text), 0, 0, 1, 0))
            body += text
        sections.append(SHDR.pack(names.index(b".shstrtab"), STRTAB, 0, 0, len(body), len(names), 0, 0, 1, 0))
        body += names
        body += bytes(-len(body) % 8)
        offset = len(body)
        body += b"".join(sections)
        return offset, len(sections)


def _moved(symbols: tuple[Symbol, ...], distance: int) -> tuple[Symbol, ...]:
    return tuple(
        symbol if symbol.section == UNDEFINED else replace(symbol, value=symbol.value + distance) for symbol in symbols
    )


def _symbol_table(symbols: tuple[Symbol, ...]) -> tuple[bytes, bytes, int]:
    """Entries (the null symbol, then local ones, then the rest), names, and the number of local entries."""
    names = bytearray(b"\0")
    entries = [SYM.pack(0, 0, 0, 0, 0, 0)]
    ordered = sorted(symbols, key=lambda symbol: symbol.binding != LOCAL)
    for symbol in ordered:
        info = symbol.binding << 4 | symbol.type
        entries.append(SYM.pack(len(names), info, 0, symbol.section, symbol.value, symbol.size))
        names += symbol.name + b"\0"
    return b"".join(entries), bytes(names), 1 + sum(symbol.binding == LOCAL for symbol in symbols)


def patch_header(image: bytes, **fields: int | bytes) -> bytes:
    """The file with other values in its file header, by the names of elf(5)."""
    return _patch(image, EHDR, EHDR_FIELDS, 0, fields)


def patch_segment(image: bytes, number: int, **fields: int) -> bytes:
    """The file with other values in one program header."""
    offset = header_of(image)["e_phoff"] + number * PHDR.size
    return _patch(image, PHDR, PHDR_FIELDS, offset, fields)


def patch_section(image: bytes, number: int, **fields: int) -> bytes:
    """The file with other values in one section header."""
    offset = header_of(image)["e_shoff"] + number * SHDR.size
    return _patch(image, SHDR, SHDR_FIELDS, offset, fields)


def header_of(image: bytes) -> dict[str, int]:
    """The numbers of the file header by name."""
    return dict(zip(EHDR_FIELDS[1:], EHDR.unpack_from(image)[1:], strict=True))


def section_of(image: bytes, number: int) -> dict[str, int]:
    """One section header by name."""
    offset = header_of(image)["e_shoff"] + number * SHDR.size
    return dict(zip(SHDR_FIELDS, SHDR.unpack_from(image, offset), strict=True))


def _patch(
    image: bytes,
    layout: struct.Struct,
    names: list[str],
    offset: int,
    fields: dict[str, int | bytes] | dict[str, int],
) -> bytes:
    values: dict[str, int | bytes] = dict(zip(names, layout.unpack_from(image, offset), strict=True))
    unknown = fields.keys() - values.keys()
    assert not unknown, f"no such fields: {unknown}"
    changed = bytearray(image)
    layout.pack_into(changed, offset, *(values | fields).values())
    return bytes(changed)
