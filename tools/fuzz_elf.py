"""Looks for ELF files that do harm: changes valid programs, and reads them as `memvm run` would.

    python3 -m tools.fuzz_elf [--seconds 60] [--files N] [--seed 1] [PROGRAM ...]

Programs are changed mostly where it matters, in their headers and tables. Nothing but ImageError may come
out of the parser and nothing at all out of the symbol table, within one second of CPU time and 256 MiB for
each file; what is taken for a program has to keep all that memvm/machine/elf.py promises. A file that does
not is named by the seed that makes it again, and the exit status is 1.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from memvm.errors import ImageError
from memvm.machine import elf
from memvm.machine.symbols import SECTION_HEADER, SYMBOL, SectionHeader, SectionType, SymbolTable
from memvm.memory.protection import Prot
from memvm.units import MIB, PAGE_SIZE
from tests.machine.elf_writer import (
    BASE,
    DATA_ADDRESS,
    FUNC,
    LOCAL,
    NOTYPE,
    TEXT_ADDRESS,
    WEAK,
    Program,
    Symbol,
)
from tools.fuzzing import Fuzzed, fuzz, in_time, memory_limit, options

WHAT = Fuzzed("files", "taken for programs", "tools.fuzz_elf")
TIME_LIMIT = 1.0
MEMORY_LIMIT = 256 * MIB
EDGES = (
    *(0, 1, 2, 3, 7, 24, 55, 56, 64, 255, 4095, 4096, 0xFF00, 0xFFF1, 0xFFFF),
    *((1 << bits) - less for bits in (16, 31, 32, 47, 48, 63, 64) for less in (0, 1, PAGE_SIZE)),
)
SYMBOLS = (
    Symbol(b"_start", TEXT_ADDRESS, 0, NOTYPE),
    Symbol(b"main", TEXT_ADDRESS + 16, 32),
    Symbol(b"alias", TEXT_ADDRESS + 16, 32, binding=WEAK),
    Symbol(b"inner", TEXT_ADDRESS + 24, 8, binding=LOCAL),
    Symbol(b"last", TEXT_ADDRESS + 64, 0, NOTYPE, LOCAL),
)
PROGRAMS = (
    Program(symbols=SYMBOLS),
    Program(symbols=SYMBOLS, dynamic_symbols=(Symbol(b"exported", TEXT_ADDRESS, 16, FUNC),)).moved(-BASE),
    Program(dynamic_symbols=SYMBOLS, interpreter=b"/lib/ld.so\0", headers_at=None, stack_flags=None),
)


def check(data: bytes) -> bool:
    """Read a file; True if it is taken for a program.

    Raises AssertionError if a promise is broken, and whatever should not have come out.
    """
    table = SymbolTable.from_image(data, load_bias=PAGE_SIZE)
    for address in (0, PAGE_SIZE, TEXT_ADDRESS, TEXT_ADDRESS + PAGE_SIZE + 20, DATA_ADDRESS, (1 << 64) - 1):
        found = table.lookup(address)
        assert found is None or (found[0] and 0 <= found[1] <= address)
    table.address_of("main")
    try:
        image = elf.parse(data, "fuzzed")
    except ImageError as error:
        assert error.message.startswith("fuzzed: ") and error.hint
        assert "\n" not in error.message
        return False
    check_image(image, len(data))
    return True


def check_image(image: elf.ElfImage, file_size: int) -> None:
    """All that is promised of an image that was parsed from a file of `file_size` bytes."""
    assert image.segments
    end = 0
    for segment in image.segments:
        assert 0 <= segment.file_size <= segment.mem_size
        assert segment.mem_size > 0
        assert end <= segment.vaddr < segment.end <= elf.ADDRESS_LIMIT
        assert 0 <= segment.protection <= (Prot.READ | Prot.WRITE | Prot.EXEC)
        if segment.file_size:
            assert segment.file_offset + segment.file_size <= file_size
            assert segment.vaddr % PAGE_SIZE == segment.file_offset % PAGE_SIZE
        end = segment.end
    home = [segment for segment in image.segments if segment.vaddr <= image.entry < segment.end]
    assert len(home) == 1 and home[0].protection & Prot.EXEC
    low, high = image.load_span
    assert low % PAGE_SIZE == high % PAGE_SIZE == 0
    assert low <= image.segments[0].vaddr < low + PAGE_SIZE and end <= high < end + PAGE_SIZE
    assert image.alignment >= PAGE_SIZE and image.alignment.bit_count() == 1
    assert image.phentsize == 56 and 1 <= image.phnum <= 65536 // 56
    if image.phdr_vaddr:
        table_end = image.phdr_vaddr + image.phnum * image.phentsize
        assert any(
            segment.vaddr <= image.phdr_vaddr and table_end <= segment.vaddr + segment.file_size
            for segment in image.segments
        )
    assert image.interpreter is None or (image.interpreter and "\0" not in image.interpreter)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few changes, most of them in headers and tables."""
    changed = bytearray(data)
    tables = _tables(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not changed:
            break
        place = _place(tables, len(changed), rng)
        width = rng.choice((1, 2, 4, 8))
        match rng.randrange(8):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1 | 2 | 3:
                place -= place % width
                value = rng.choice((*EDGES, len(data), len(data) + 1, rng.getrandbits(64))) % (1 << 8 * width)
                changed[place : place + width] = value.to_bytes(width, "little")
            case 4 | 5:
                place -= place % width
                old = int.from_bytes(changed[place : place + width], "little")
                value = (old + rng.choice((-PAGE_SIZE, -8, -1, 1, 8, PAGE_SIZE))) % (1 << 8 * width)
                changed[place : place + width] = value.to_bytes(width, "little")
            case 6:
                other = _place(tables, len(changed), rng)
                length = rng.choice((8, 24, 56, 64))
                changed[place : place + length] = changed[other : other + length]
            case _:
                del changed[place:]
    return bytes(changed)


def _tables(data: bytes) -> list[tuple[int, int]]:
    """Where headers and tables of a valid file are: offsets and sizes."""
    header = elf.FileHeader._make(elf.FILE_HEADER.unpack_from(data))
    found = [(0, elf.FILE_HEADER.size), (header.phoff, header.phnum * elf.PROGRAM_HEADER.size)]
    for number in range(header.shnum):
        offset = header.shoff + number * SECTION_HEADER.size
        section = SectionHeader._make(SECTION_HEADER.unpack_from(data, offset))
        found.append((offset, SECTION_HEADER.size))
        if section.type in (SectionType.SYMTAB, SectionType.DYNSYM, SectionType.STRTAB):
            found.append((section.offset, max(section.size, SYMBOL.size)))
    return found


def _place(tables: Sequence[tuple[int, int]], size: int, rng: random.Random) -> int:
    if rng.random() < 0.1:
        return rng.randrange(size)
    offset, length = rng.choice((*tables[:2], *tables))  # the first two decide most
    return min(offset + rng.randrange(length), size - 1)


def try_one(programs: Sequence[bytes], seed: int) -> bool:
    """Make the file of this seed and check it; True if it is taken for a program."""
    rng = random.Random(seed)
    data = mutate(rng.choice(programs), rng)
    return in_time(TIME_LIMIT, lambda: check(data))


def main(argv: Sequence[str] | None = None) -> int:
    parser = options(WHAT, "Look for ELF files that do harm.")
    parser.add_argument("programs", nargs="*", type=Path, help="programs to change (default: some small ones)")
    arguments = parser.parse_args(argv)
    programs = [path.read_bytes() for path in arguments.programs] or [made.build() for made in PROGRAMS]
    for program in programs:
        if not check(program):  # also makes all imports before memory is limited
            parser.error("a PROGRAM is not one that can be loaded")
    with memory_limit(MEMORY_LIMIT):
        return fuzz(WHAT, arguments, lambda seed: try_one(programs, seed), arguments.programs)


if __name__ == "__main__":
    sys.exit(main())
