"""Names for code addresses, from a program's symbol table: for crash reports.

    section header     64 bytes each, at e_shoff; that of a symbol table names its string table in sh_link
    .symtab, .dynsym   24 bytes a symbol: name (an offset in the string table), kind, section, value, size
    string table       names, each ended by a NUL

A program runs without any of this, so it was not checked when the program was loaded. Every number is checked
here before it is used; a table that does not hold together is a table without symbols, and never an error.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from enum import IntEnum
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Self

from memvm.machine.elf import FILE_HEADER, MAGIC, Encoding, FileClass, FileHeader

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class SectionType(IntEnum):
    """SHT_*: /usr/include/elf.h, as is all below."""

    SYMTAB = 2
    STRTAB = 3
    DYNSYM = 11


class SymbolType(IntEnum):
    """STT_*: st_info & 15."""

    NOTYPE = 0
    FUNC = 2
    GNU_IFUNC = 10


class Binding(IntEnum):
    """STB_*: st_info >> 4."""

    LOCAL = 0
    GLOBAL = 1
    WEAK = 2


SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
SHF_EXECINSTR = 4


class SectionHeader(NamedTuple):
    """Elf64_Shdr."""

    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


class Symbol(NamedTuple):
    """Elf64_Sym."""

    name: int
    info: int
    other: int
    shndx: int
    value: int
    size: int


SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")

_PREFERENCE: dict[int, int] = {Binding.GLOBAL: 2, Binding.WEAK: 1}
_ADDRESS_SPACE_END = 1 << 64


class _Function(NamedTuple):
    """What is kept of a symbol, sorted by its fields in turn: of several at one address the last is told."""

    start: int
    preference: int
    end: int
    name: int


class SymbolTable:
    """The functions of one program, at the addresses at which it was loaded."""

    def __init__(self, functions: list[_Function], names: bytes, load_bias: int) -> None:
        self._functions = sorted(functions)
        self._starts = [function.start for function in self._functions]
        # How far the functions up to each one reach: where a search backwards can stop.
        self._reach = list(accumulate((function.end for function in self._functions), max))
        self._names = names
        self._load_bias = load_bias

    @classmethod
    def from_image(cls, image: ReadableBuffer, load_bias: int) -> Self:
        """The symbols of the ELF file in `image`: of .symtab, or of .dynsym if that has none.

        `load_bias` is what was added to the addresses in the file. Never fails: a file that is damaged,
        stripped or no ELF file at all has no symbols. Keeps no reference to `image`. A million symbols take
        seconds, so do this only when names are needed.
        """
        with memoryview(image) as raw, raw.cast("B") as view:
            sections = _read_sections(view)
            for wanted in (SectionType.SYMTAB, SectionType.DYNSYM):
                table = next((section for section in sections if section.type == wanted), None)
                if table is None:
                    continue
                names = _read_names(view, sections, table)
                if functions := _read_functions(view, sections, table, names):
                    return cls(functions, names, load_bias)
        return cls([], b"", load_bias)

    def __len__(self) -> int:
        return len(self._functions)

    def lookup(self, address: int) -> tuple[str, int] | None:
        """The name of the function that an address is in, and the bytes from its start; None if in none.

        C++ names are as the linker knows them. Where functions lie within one another it is the one that
        begins last; where several mean one address, a global goes before a weak and a weak before a local.
        """
        address -= self._load_bias
        index = bisect_right(self._starts, address) - 1
        while index >= 0 and self._reach[index] > address:
            function = self._functions[index]
            if address < function.end:
                return self._name(function), address - function.start
            index -= 1
        return None

    def address_of(self, name: str) -> int | None:
        """Where the function of this name was loaded; of several, a global before a weak before a local."""
        wanted = name.encode(errors="backslashreplace") + b"\0"
        found = [function for function in self._functions if self._names.startswith(wanted, function.name)]
        if not found:
            return None
        return max(found, key=lambda function: function.preference).start + self._load_bias

    def _name(self, function: _Function) -> str:
        end = self._names.index(b"\0", function.name)
        return self._names[function.name : end].decode(errors="backslashreplace")


def _read_sections(view: memoryview) -> list[SectionHeader]:
    """All section headers, or none."""
    if len(view) < FILE_HEADER.size:
        return []
    header = FileHeader._make(FILE_HEADER.unpack_from(view))
    if not header.ident.startswith(MAGIC + bytes((FileClass.ELF64, Encoding.LSB))):
        return []
    if header.shentsize != SECTION_HEADER.size or not header.shoff:
        return []
    size = header.shnum * SECTION_HEADER.size  # 0 if they are too many for e_shnum: a linked program has few
    if header.shoff + size > len(view):
        return []
    table = view[header.shoff : header.shoff + size]
    return [SectionHeader._make(fields) for fields in SECTION_HEADER.iter_unpack(table)]


def _read_names(view: memoryview, sections: list[SectionHeader], table: SectionHeader) -> bytes:
    """The string table that belongs to a symbol table, up to its last NUL; empty if it has none."""
    if table.link >= len(sections):
        return b""
    strings = sections[table.link]
    if strings.type != SectionType.STRTAB or strings.offset + strings.size > len(view):
        return b""
    contents = bytes(view[strings.offset : strings.offset + strings.size])
    return contents[: contents.rfind(b"\0") + 1]


def _read_functions(
    view: memoryview, sections: list[SectionHeader], table: SectionHeader, names: bytes
) -> list[_Function]:
    if table.entsize != SYMBOL.size or table.offset + table.size > len(view):
        return []
    size = table.size - table.size % SYMBOL.size
    symbols = [
        symbol
        for symbol in map(Symbol._make, SYMBOL.iter_unpack(view[table.offset : table.offset + size]))
        if _is_code(symbol, sections) and symbol.name < len(names) and names[symbol.name]
    ]
    starts = sorted({symbol.value for symbol in symbols})
    functions = []
    for symbol in symbols:
        end = symbol.value + symbol.size if symbol.size else _end_of_unsized(symbol, sections, starts)
        if symbol.value < end <= _ADDRESS_SPACE_END:
            preference = _PREFERENCE.get(symbol.info >> 4, 0)
            functions.append(_Function(symbol.value, preference, end, symbol.name))
    return functions


def _is_code(symbol: Symbol, sections: list[SectionHeader]) -> bool:
    """Functions, and what assembler code has in their place: labels in executable sections (often _start)."""
    kind = symbol.info & 15
    if kind in (SymbolType.FUNC, SymbolType.GNU_IFUNC):
        return symbol.shndx != SHN_UNDEF
    if kind != SymbolType.NOTYPE or not SHN_UNDEF < symbol.shndx < min(len(sections), SHN_LORESERVE):
        return False
    return bool(sections[symbol.shndx].flags & SHF_EXECINSTR)


def _end_of_unsized(symbol: Symbol, sections: list[SectionHeader], starts: list[int]) -> int:
    """A label without a size reaches to the next one, or to the end of its section."""
    ends = []
    following = bisect_right(starts, symbol.value)
    if following < len(starts):
        ends.append(starts[following])
    if symbol.shndx < min(len(sections), SHN_LORESERVE):
        ends.append(sections[symbol.shndx].addr + sections[symbol.shndx].size)
    return min(ends, default=symbol.value)
