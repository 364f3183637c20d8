"""Reads a program's ELF file: what of it is to lie where in memory, and where it begins to run.

    offset 0            file header, 64 bytes: class, machine, entry, and where the two tables are
    e_phoff             program headers, 56 bytes each: the segments, which is all that running needs
    p_offset ...        the contents of the segments
    e_shoff             section headers: for linkers and debuggers; memvm/machine/symbols.py reads them

The file may be anything, also hostile. Whatever `parse` returns has been checked; whatever cannot be loaded
is one ImageError. Where Linux is lenient about things that real programs have (segments without contents,
headers that lie in no segment), so is this; the rules are those of fs/binfmt_elf.c and of the System V ABI,
chapters 4 and 5.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from memvm.errors import ImageError
from memvm.memory.protection import Prot
from memvm.units import PAGE_SIZE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAGIC = b"\x7fELF"
ADDRESS_LIMIT = (1 << 47) - PAGE_SIZE
"""No program may reach this address: TASK_SIZE_MAX in arch/x86/include/asm/page_64_types.h."""

_HEADER_TABLE_LIMIT = 1 << 16  # load_elf_phdrs() in fs/binfmt_elf.c
_PATH_MAX = 4096  # include/uapi/linux/limits.h
_SCRIPT_LINE_LIMIT = 256  # BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h
_PN_XNUM = 0xFFFF
_BUILD_HINT = "it has to be a program for Linux on x86-64"


class FileClass(IntEnum):
    """ELFCLASS*, e_ident[4]: /usr/include/elf.h, as are the enums below."""

    ELF32 = 1
    ELF64 = 2


class Encoding(IntEnum):
    """ELFDATA2*, e_ident[5]."""

    LSB = 1
    MSB = 2


class FileType(IntEnum):
    """ET_*."""

    REL = 1
    EXEC = 2
    DYN = 3
    CORE = 4


class Machine(IntEnum):
    """EM_*: the one that can be run, and those that a person may come with."""

    SPARC = 2
    I386 = 3
    MIPS = 8
    PPC = 20
    PPC64 = 21
    S390 = 22
    ARM = 40
    SPARCV9 = 43
    X86_64 = 62
    AARCH64 = 183
    RISCV = 243
    BPF = 247
    LOONGARCH = 258


class SegmentType(IntEnum):
    """PT_*, as far as loading is concerned."""

    LOAD = 1
    INTERP = 3
    GNU_STACK = 0x6474E551


class SegmentFlag(IntFlag):
    """PF_*: not in the order of PROT_*."""

    X = 1
    W = 2
    R = 4


class FileHeader(NamedTuple):
    """Elf64_Ehdr."""

    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class ProgramHeader(NamedTuple):
    """Elf64_Phdr."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


_CLASSES, _ENCODINGS = frozenset(map(int, FileClass)), frozenset(map(int, Encoding))
_MACHINE_NAMES = {int(machine): machine.name.lower().replace("_", "-") for machine in Machine}

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


class Segment(NamedTuple):
    """`mem_size` bytes at `vaddr`: first `file_size` bytes of the file from `file_offset` on, then zeros.

    Addresses are those in the file, to which a position-independent program's bias is to be added.
    `mem_size` is never 0, and `vaddr` need not be page-aligned.
    """

    vaddr: int
    file_offset: int
    file_size: int
    mem_size: int
    protection: Prot

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.vaddr + self.mem_size


class ElfImage(NamedTuple):
    """A program that can be loaded, all addresses as in the file."""

    entry: int
    """Where it begins to run: inside an executable segment."""
    is_pie: bool
    """It may be loaded at any multiple of `alignment` from its addresses."""
    segments: tuple[Segment, ...]
    """At least one, ascending, none overlapping another.

    Two may share a page, the end of the one and the start of the other, as linkers make them to save space
    (ld -z max-page-size=64). Whoever loads them gives such a page the rights of both: what runs on Linux,
    which gives it those of the second, then runs here too.
    """
    phdr_vaddr: int
    """AT_PHDR: where the program headers are in memory; 0 if they are in no segment, as Linux has it."""
    phentsize: int
    phnum: int
    interpreter: str | None
    """The dynamic loader that the program asks for; None for a static or static-pie program."""
    stack_executable: bool
    alignment: int
    """Bytes, a power of two, at least a page: the largest that a segment asks for."""

    @property
    def load_span(self) -> tuple[int, int]:
        """The page borders around all segments: the address of the first page, and behind the last."""
        return self.segments[0].vaddr & -PAGE_SIZE, (self.segments[-1].end + PAGE_SIZE - 1) & -PAGE_SIZE


Reader = Callable[[int, int], bytes]
"""Reads so many bytes of a file from an offset on, or fewer at its end."""


def parse(image: ReadableBuffer, name: str) -> ElfImage:
    """Read and check the ELF file in `image`; `name` is what messages call it.

    Keeps no reference to `image`. Raises ImageError, and nothing else, whatever the contents.
    """
    with memoryview(image) as raw, raw.cast("B") as view:
        return _Parser(lambda offset, size: bytes(view[offset : offset + size]), len(view), name).parse()


def parse_file(read: Reader, size: int, name: str) -> ElfImage:
    """The same for a file of `size` bytes, of which only the headers are read. Raises also what `read` raises."""
    return _Parser(read, size, name).parse()


class _Parser:
    def __init__(self, read: Reader, size: int, name: str) -> None:
        self._read, self._size = read, size
        self._name = name

    def parse(self) -> ElfImage:
        header = self._read_file_header()
        program_headers = self._read_program_headers(header)
        segments = self._read_segments(program_headers)
        self._check_order(segments)
        self._check_entry(header, segments)
        return ElfImage(
            entry=header.entry,
            is_pie=header.type == FileType.DYN,
            segments=segments,
            phdr_vaddr=_address_of_headers(header, segments),
            phentsize=header.phentsize,
            phnum=header.phnum,
            interpreter=self._read_interpreter(program_headers),
            stack_executable=_wants_executable_stack(program_headers),
            alignment=_alignment(program_headers),
        )

    def _part(self, offset: int, size: int) -> bytes:
        part = self._read(offset, size)
        if len(part) < size:  # it is being cut while it is read
            raise self._damaged("the file has become shorter")
        return part

    def _error(self, message: str, hint: str = _BUILD_HINT) -> ImageError:
        return ImageError(f"{self._name}: {message}", hint=hint)

    def _damaged(self, message: str) -> ImageError:
        return self._error(message, hint="the file is damaged: copy or build it again")

    def _read_file_header(self) -> FileHeader:
        start = self._read(0, FILE_HEADER.size)
        if not start.startswith(MAGIC):
            raise self._not_elf()
        # Machine and type stand at the same place in the header of every class, so they can be told first.
        if len(start) < 20:
            raise self._truncated("file header", FILE_HEADER.size)
        self._check_machine(start)
        if len(start) < FILE_HEADER.size:
            raise self._truncated("file header", FILE_HEADER.size)
        header = FileHeader._make(FILE_HEADER.unpack(start))
        self._check_type(header.type)
        return header

    def _not_elf(self) -> ImageError:
        if not self._size:
            return self._error("the file is empty")
        line = self._read(0, _SCRIPT_LINE_LIMIT).partition(b"\n")[0]
        if not line.startswith(b"#!"):
            return self._error("not an ELF file")
        text = line[2:].decode(errors="replace").strip()
        interpreter = "".join(letter if letter.isprintable() else "?" for letter in text)
        if not interpreter:
            return self._error("a script, not an ELF file", hint="run the interpreter, with the script as its argument")
        return self._error(
            f"a script for {interpreter}, not an ELF file",
            hint=f"run its interpreter, {interpreter} {self._name}; or make it executable, and give the guest its "
            "files (--ro)",
        )

    def _check_machine(self, start: bytes) -> None:
        file_class, encoding = start[4], start[5]
        if file_class not in _CLASSES or encoding not in _ENCODINGS:
            raise self._damaged(f"not a valid ELF file (class {file_class}, byte order {encoding})")
        number = int.from_bytes(start[18:20], "little" if encoding == Encoding.LSB else "big")
        machine = _MACHINE_NAMES.get(number, f"machine number {number}")
        if file_class == FileClass.ELF32:
            raise self._error(f"a 32-bit program for {'x32' if number == Machine.X86_64 else machine}")
        if encoding == Encoding.MSB:
            raise self._error(f"a big-endian program for {machine}")
        if number != Machine.X86_64:
            raise self._error(f"a program for {machine}")

    def _check_type(self, file_type: int) -> None:
        match file_type:
            case FileType.EXEC | FileType.DYN:
                return
            case FileType.REL:
                raise self._error("an object file, not a program", hint="link it first: gcc -static -o program file.o")
            case FileType.CORE:
                raise self._error("a core dump, not a program", hint="give the program that dumped it")
        raise self._error(f"not a program (ELF type {file_type})")

    def _read_program_headers(self, header: FileHeader) -> list[ProgramHeader]:
        if header.phentsize != PROGRAM_HEADER.size:
            raise self._damaged(f"program headers of {header.phentsize} bytes instead of {PROGRAM_HEADER.size}")
        if header.phnum == _PN_XNUM:
            raise self._damaged("more program headers than a program can have (PN_XNUM)")
        size = header.phnum * PROGRAM_HEADER.size
        if size > _HEADER_TABLE_LIMIT:
            raise self._damaged(f"{header.phnum} program headers, more than Linux loads")
        if header.phoff + size > self._size:
            raise self._truncated("program headers", header.phoff + size)
        table = self._part(header.phoff, size)
        return [ProgramHeader._make(fields) for fields in PROGRAM_HEADER.iter_unpack(table)]

    def _read_segments(self, program_headers: Iterable[ProgramHeader]) -> tuple[Segment, ...]:
        segments = []
        for number, header in enumerate(program_headers):
            if header.type != SegmentType.LOAD:
                continue
            self._check_segment(number, header)
            if header.memsz:
                protection = _protection(header.flags)
                segments.append(Segment(header.vaddr, header.offset, header.filesz, header.memsz, protection))
        if not segments:
            raise self._error("nothing to load: the file has no segments (PT_LOAD)")
        return tuple(segments)

    def _check_segment(self, number: int, header: ProgramHeader) -> None:
        where = f"segment {number} at {header.vaddr:#x}"
        if header.filesz > header.memsz:
            raise self._damaged(f"{where} has more bytes in the file ({header.filesz}) than in memory ({header.memsz})")
        if header.vaddr + header.memsz > ADDRESS_LIMIT:
            raise self._damaged(f"{where}, {header.memsz:#x} bytes, ends beyond the address space")
        if not header.filesz:
            return  # nothing of the file is used, so p_offset may be anything
        if header.offset + header.filesz > self._size:
            raise self._truncated(where, header.offset + header.filesz)
        if (header.vaddr - header.offset) % PAGE_SIZE:
            raise self._damaged(f"{where} is misaligned: the file offset {header.offset:#x} differs within a page")

    def _truncated(self, what: str, end: int) -> ImageError:
        return self._damaged(f"truncated: {what} would end at byte {end}, the file has {self._size}")

    def _check_order(self, segments: tuple[Segment, ...]) -> None:
        for first, second in pairwise(segments):
            if second.vaddr < first.end and first.vaddr < second.end:
                raise self._damaged(f"the segments at {first.vaddr:#x} and {second.vaddr:#x} overlap")
            if second.vaddr < first.vaddr:
                raise self._damaged(
                    f"the segments are not in ascending order: {second.vaddr:#x} after {first.vaddr:#x}"
                )

    def _check_entry(self, header: FileHeader, segments: tuple[Segment, ...]) -> None:
        if not header.entry:
            raise self._error("not a program: it has no entry, as a shared library", hint="give a program that uses it")
        code = (segment for segment in segments if segment.protection & Prot.EXEC)
        if not any(segment.vaddr <= header.entry < segment.end for segment in code):
            raise self._damaged(f"the entry, {header.entry:#x}, is in no executable segment")

    def _read_interpreter(self, program_headers: Iterable[ProgramHeader]) -> str | None:
        header = next((header for header in program_headers if header.type == SegmentType.INTERP), None)
        if header is None:
            return None
        if not 2 <= header.filesz <= _PATH_MAX:
            raise self._damaged(f"the path of its dynamic loader (PT_INTERP) has {header.filesz} bytes")
        if header.offset + header.filesz > self._size:
            raise self._truncated("the path of its dynamic loader", header.offset + header.filesz)
        path = self._part(header.offset, header.filesz)
        if path[-1] or not path[0]:
            raise self._damaged("the path of its dynamic loader (PT_INTERP) is empty or does not end")
        return os.fsdecode(path.partition(b"\0")[0])


def _protection(flags: int) -> Prot:
    protection = Prot.NONE
    for flag, right in ((SegmentFlag.R, Prot.READ), (SegmentFlag.W, Prot.WRITE), (SegmentFlag.X, Prot.EXEC)):
        if flags & flag:
            protection |= right
    return protection


def _address_of_headers(header: FileHeader, segments: Iterable[Segment]) -> int:
    """By the segment that holds them, as load_elf_binary() does: a PT_PHDR says the same, or is wrong."""
    size = header.phnum * header.phentsize
    for segment in segments:
        start = header.phoff - segment.file_offset
        if start >= 0 and start + size <= segment.file_size:
            return segment.vaddr + start
    return 0


def _wants_executable_stack(program_headers: Iterable[ProgramHeader]) -> bool:
    """The last PT_GNU_STACK says; without one the stack is not executable (arch/x86/include/asm/elf.h)."""
    wanted = [header.flags for header in program_headers if header.type == SegmentType.GNU_STACK]
    return bool(wanted and wanted[-1] & SegmentFlag.X)


def _alignment(program_headers: Iterable[ProgramHeader]) -> int:
    """As maximum_alignment() in fs/binfmt_elf.c, which passes over what is no power of two."""
    asked = (header.align for header in program_headers if header.type == SegmentType.LOAD and header.memsz)
    return max([PAGE_SIZE, *(align for align in asked if align.bit_count() == 1)])
