"""The ELF parser agrees with pyelftools on real programs, refuses each kind of bad file in words, and
never does anything else, whatever the file."""

from __future__ import annotations

import io
import mmap
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from memvm.errors import ImageError
from memvm.machine import elf, symbols
from memvm.memory.protection import Prot
from tests.machine.elf_writer import (
    BASE,
    CODE,
    DATA_ADDRESS,
    EXIT_CODE,
    PAGE,
    TEXT_ADDRESS,
    Load,
    Program,
    R,
    W,
    X,
    header_of,
    patch_header,
    patch_segment,
)
from tools import fuzz_elf
from tools.fuzz_elf import check_image

GOOD = Program().build()
HEADERS, TEXT, DATA, STACK = range(4)  # the program headers of GOOD
SOURCE = "static int used[5000]; int main(void) { return used[7]; }\n"
LINKINGS = {
    "glibc static": ("gcc", "-static"),
    "glibc static-pie": ("gcc", "-static-pie"),
    "glibc dynamic": ("gcc", "-pie", "-fPIE"),
    "musl static": ("musl-gcc", "-static"),
    "musl dynamic": ("musl-gcc", "-pie", "-fPIE"),
    "executable stack": ("gcc", "-static", "-Wl,-z,execstack"),
    "few pages": ("gcc", "-static", "-Wl,-z,noseparate-code"),
    "large alignment": ("gcc", "-static-pie", "-Wl,-z,max-page-size=0x200000"),
    "text and data share a page": ("gcc", "-static", "-Wl,-z,noseparate-code,-z,max-page-size=64"),
    "text and data in one": ("musl-gcc", "-static", "-Wl,-N"),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a small program, linked in one of the ways of LINKINGS."""
    directory = tmp_path_factory.mktemp("programs")
    (directory / "program.c").write_text(SOURCE)

    def run(linking: str) -> Path:
        compiler, *options = LINKINGS[linking]
        if shutil.which(compiler) is None:
            pytest.skip(f"no {compiler} here")
        output = directory / linking.replace(" ", "-")
        if not output.exists():
            command = [compiler, *options, "-o", str(output), str(directory / "program.c")]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return output

    return run


def compare_with_pyelftools(image: bytes) -> elf.ElfImage:
    """Every field that pyelftools has a word for is as it says."""
    parsed = elf.parse(image, "program")
    oracle = ELFFile(io.BytesIO(image))
    loads = [segment.header for segment in oracle.iter_segments("PT_LOAD")]
    assert [
        (segment.vaddr, segment.file_offset, segment.file_size, segment.mem_size) for segment in parsed.segments
    ] == [(load.p_vaddr, load.p_offset, load.p_filesz, load.p_memsz) for load in loads]
    for segment, load in zip(parsed.segments, loads, strict=True):
        for flag, right in ((4, Prot.READ), (2, Prot.WRITE), (1, Prot.EXEC)):
            assert bool(load.p_flags & flag) == bool(segment.protection & right)
    assert parsed.entry == oracle.header.e_entry
    assert parsed.is_pie == (oracle.header.e_type == "ET_DYN")
    assert (parsed.phentsize, parsed.phnum) == (oracle.header.e_phentsize, oracle.num_segments())
    stack = next(oracle.iter_segments("PT_GNU_STACK"), None)
    assert parsed.stack_executable == bool(stack and stack.header.p_flags & 1)
    interpreter: Any = next(oracle.iter_segments("PT_INTERP"), None)
    assert parsed.interpreter == (interpreter and interpreter.get_interp_name())
    assert parsed.alignment == max([PAGE, *(load.p_align for load in loads)])
    table = next(oracle.iter_segments("PT_PHDR"), None)
    if table is not None:
        assert parsed.phdr_vaddr == table.header.p_vaddr
    low, high = parsed.load_span
    assert low == min(load.p_vaddr for load in loads) // PAGE * PAGE
    assert high == -(-max(load.p_vaddr + load.p_memsz for load in loads) // PAGE) * PAGE
    check_image(parsed, len(image))
    return parsed


@pytest.mark.parametrize("linking", LINKINGS)
def test_a_built_program_is_read_as_pyelftools_reads_it(build: Callable[[str], Path], linking: str) -> None:
    parsed = compare_with_pyelftools(build(linking).read_bytes())
    assert (parsed.interpreter is not None) == ("dynamic" in linking)
    assert parsed.is_pie == ("pie" in linking or "dynamic" in linking or "large" in linking)
    assert parsed.stack_executable == (linking == "executable stack")
    assert parsed.alignment == (2 << 20 if linking == "large alignment" else PAGE)


def test_busybox_is_read_as_pyelftools_reads_it(busybox: Path) -> None:
    assert compare_with_pyelftools(busybox.read_bytes()).interpreter is None


@pytest.mark.parametrize(
    "program",
    [
        Program(),
        Program().moved(-BASE),
        Program(stack_flags=None, headers_at=None, with_sections=False),
        Program(stack_flags=R | W | X, interpreter=b"/lib/ld.so\0"),
    ],
)
def test_a_written_program_is_read_as_pyelftools_reads_it(program: Program) -> None:
    compare_with_pyelftools(program.build())


def test_the_written_program_runs_on_linux(tmp_path: Path) -> None:
    path = tmp_path / "program"
    for program in (Program(), Program().moved(-BASE)):
        path.write_bytes(program.build())
        path.chmod(0o755)
        assert subprocess.run([path], check=False).returncode == EXIT_CODE


def test_all_fields_of_a_written_program() -> None:
    image = elf.parse(GOOD, "program")
    headers_size = 64 + 4 * 56
    assert image == elf.ElfImage(
        entry=TEXT_ADDRESS,
        is_pie=False,
        segments=(
            elf.Segment(BASE, 0, headers_size, headers_size, Prot.READ),
            elf.Segment(TEXT_ADDRESS, PAGE, len(CODE) + 84, len(CODE) + 84, Prot.READ | Prot.EXEC),
            elf.Segment(DATA_ADDRESS, 2 * PAGE, 4, 2 * PAGE, Prot.READ | Prot.WRITE),
        ),
        phdr_vaddr=BASE + 64,
        phentsize=56,
        phnum=4,
        interpreter=None,
        stack_executable=False,
        alignment=PAGE,
    )
    assert image.load_span == (BASE, BASE + 4 * PAGE)


def test_any_buffer_will_do_and_none_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(GOOD)
    expected = elf.parse(GOOD, "program")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert elf.parse(mapped, "program") == expected  # closing it fails if a view is left
    growing = bytearray(GOOD)
    assert elf.parse(memoryview(growing).cast("H"), "program") == expected
    growing += b"more"
    with pytest.raises(ImageError) as caught:
        elf.parse(damaged := bytearray(GOOD[:100]), "program")
    damaged += b"more"
    assert caught.traceback


def test_protections_are_those_of_mmap() -> None:
    assert (Prot.READ, Prot.WRITE, Prot.EXEC) == (mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC)


# What may look bad and is not: Linux runs it.


def test_empty_segments_count_for_nothing() -> None:
    """Order and overlap, offset and alignment do not matter where there is no byte."""
    empty = patch_segment(GOOD, DATA, p_memsz=0, p_filesz=0, p_vaddr=BASE, p_offset=1 << 60, p_align=1 << 30)
    image = elf.parse(empty, "program")
    assert [segment.vaddr for segment in image.segments] == [BASE, TEXT_ADDRESS]
    assert image.alignment == PAGE


def test_a_segment_of_zeros_only_may_have_any_offset() -> None:
    image = elf.parse(patch_segment(GOOD, DATA, p_filesz=0, p_offset=(1 << 63) + 5), "program")
    assert image.segments[-1].file_size == 0


def test_segments_may_share_a_page() -> None:
    code = CODE + bytes(100)
    data = Load(TEXT_ADDRESS + len(code), b"data", R | W, mem_size=PAGE)
    image = elf.parse(Program((Load(TEXT_ADDRESS, code, R | X), data)).build(), "program")
    assert image.segments[1].end == image.segments[2].vaddr
    assert image.segments[2].protection == Prot.READ | Prot.WRITE


def test_the_last_byte_of_the_file_and_of_the_address_space_can_be_used() -> None:
    image = Program(with_sections=False, stack_flags=None).build()
    last = elf.parse(image, "program").segments[-1]
    assert last.file_offset + last.file_size == len(image)
    end = elf.ADDRESS_LIMIT - DATA_ADDRESS
    assert elf.parse(patch_segment(image, DATA, p_memsz=end), "program").segments[-1].end == elf.ADDRESS_LIMIT
    with pytest.raises(ImageError, match="beyond the address space"):
        elf.parse(patch_segment(image, DATA, p_memsz=end + 1), "program")


def test_headers_outside_all_segments_have_no_address() -> None:
    assert elf.parse(Program(headers_at=None).build(), "program").phdr_vaddr == 0


def test_headers_are_found_in_the_segment_that_holds_all_of_them() -> None:
    """The table is put behind the code, in a segment that is not at offset 0."""
    header = header_of(GOOD)
    table = GOOD[64 : 64 + header["e_phnum"] * 56]
    moved = bytearray(GOOD)
    place = PAGE + len(CODE)
    moved[place : place + len(table)] = table
    image = patch_header(bytes(moved), e_phoff=place)
    image = patch_segment(image, TEXT, p_filesz=len(CODE) + len(table), p_memsz=len(CODE) + len(table))
    assert elf.parse(image, "program").phdr_vaddr == TEXT_ADDRESS + len(CODE)
    cut = patch_segment(image, TEXT, p_filesz=len(CODE) + len(table) - 1)
    assert elf.parse(cut, "program").phdr_vaddr == 0


def test_an_alignment_that_is_no_power_of_two_is_passed_over() -> None:
    for align, expected in ((0, PAGE), (1, PAGE), (3 * PAGE, PAGE), (1 << 21, 1 << 21)):
        assert elf.parse(patch_segment(GOOD, TEXT, p_align=align), "program").alignment == expected


@pytest.mark.parametrize("flags", range(8))
def test_every_protection(flags: int) -> None:
    expected = Prot(bool(flags & R) * 1 | bool(flags & W) * 2 | bool(flags & X) * 4)
    assert elf.parse(patch_segment(GOOD, DATA, p_flags=flags), "program").segments[-1].protection == expected


# What is refused, each in its own words.


def refusal(image: bytes, name: str = "program") -> ImageError:
    """The error that a file is refused with; its message is one line that begins with the file's name."""
    with pytest.raises(ImageError) as caught:
        elf.parse(image, name)
    assert caught.value.message.startswith(f"{name}: ")
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", ["empty", "text", "short magic", "archive"])
def test_what_is_no_elf_file(name: str) -> None:
    contents = {"empty": b"", "text": b"hello\n", "short magic": b"\x7fEL", "archive": b"!<arch>\n" + GOOD}
    expected = "the file is empty" if name == "empty" else "not an ELF file"
    assert refusal(contents[name]).message == f"program: {expected}"


@pytest.mark.parametrize(
    ("line", "interpreter"),
    [
        (b"#!/bin/sh\necho\n", "/bin/sh"),
        (b"#! /usr/bin/env python3\r\n", "/usr/bin/env python3"),
        (b"#!/bin/\x1b[31m\xffsh", "/bin/?[31m\N{REPLACEMENT CHARACTER}sh"),
        (b"#!" + b"a" * 9000, "a" * 254),
    ],
)
def test_a_script_is_told_by_its_interpreter(line: bytes, interpreter: str) -> None:
    error = refusal(line, "x.sh")
    assert error.message == f"x.sh: a script for {interpreter}, not an ELF file"
    assert f"{interpreter} x.sh; " in error.hint


def test_a_script_without_an_interpreter() -> None:
    assert "a script, not an ELF file" in refusal(b"#!\n").message


@pytest.mark.parametrize("size", range(4, 64))
def test_a_truncated_file_header(size: int) -> None:
    assert "truncated: file header" in refusal(GOOD[:size]).message


def identified(file_class: int, order: str, machine: int, file_type: int = 2) -> bytes:
    """The start of an ELF file of any kind."""
    encoding = {"<": 1, ">": 2}[order]
    ident = b"\x7fELF" + bytes((file_class, encoding, 1)) + bytes(9)
    return ident + struct.pack(order + "HH", file_type, machine) + bytes(60)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (identified(2, "<", 183), "a program for aarch64"),
        (identified(2, "<", 243), "a program for riscv"),
        (identified(2, "<", 258), "a program for loongarch"),
        (identified(2, "<", 9999), "a program for machine number 9999"),
        (identified(1, "<", 3), "a 32-bit program for i386"),
        (identified(1, "<", 40), "a 32-bit program for arm"),
        (identified(1, "<", 62), "a 32-bit program for x32"),
        (identified(1, ">", 20), "a 32-bit program for ppc"),
        (identified(2, ">", 22), "a big-endian program for s390"),
        (identified(2, ">", 62), "a big-endian program for x86-64"),
        (identified(3, "<", 62), "not a valid ELF file (class 3, byte order 1)"),
        (patch_header(GOOD, e_type=1), "an object file, not a program"),
        (patch_header(GOOD, e_type=4), "a core dump, not a program"),
        (patch_header(GOOD, e_type=0xFE00), "not a program (ELF type 65024)"),
    ],
)
def test_what_is_for_another_machine_or_purpose(start: bytes, message: str) -> None:
    assert refusal(start).message == f"program: {message}"


OVERLAP = patch_segment(GOOD, DATA, p_vaddr=TEXT_ADDRESS + 8, p_offset=2 * PAGE + 8)
INTERPRETED = Program(interpreter=b"/lib/ld.so\0").build()
INTERP = 3
END = len(INTERPRETED)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (patch_header(GOOD, e_phentsize=32), "program headers of 32 bytes instead of 56"),
        (patch_header(GOOD, e_phnum=0xFFFF), "(PN_XNUM)"),
        (patch_header(GOOD, e_phnum=1171), "1171 program headers, more than Linux loads"),
        (patch_header(GOOD, e_phnum=1170), "truncated: program headers"),
        (patch_header(GOOD, e_phoff=len(GOOD) - 4 * 56 + 1), "truncated: program headers"),
        (patch_header(GOOD, e_phoff=(1 << 64) - 1), "truncated: program headers"),
        (patch_header(GOOD, e_phnum=0), "nothing to load"),
        (patch_header(Program(segments=(), headers_at=None).build()), "nothing to load"),
        (GOOD[: 2 * PAGE + 3], f"segment 2 at {DATA_ADDRESS:#x} would end at byte {2 * PAGE + 4}"),
        (patch_segment(GOOD, TEXT, p_offset=(1 << 64) - PAGE), "truncated: segment 1"),
        (patch_segment(GOOD, DATA, p_filesz=1 << 40, p_memsz=1 << 40), "truncated: segment 2"),
        (patch_segment(GOOD, DATA, p_memsz=3), "more bytes in the file (4) than in memory (3)"),
        (patch_segment(GOOD, DATA, p_memsz=0), "more bytes in the file (4) than in memory (0)"),
        (patch_segment(GOOD, DATA, p_memsz=(1 << 64) - 1), "ends beyond the address space"),
        (patch_segment(GOOD, DATA, p_vaddr=(1 << 64) - PAGE), "ends beyond the address space"),
        (patch_segment(GOOD, DATA, p_vaddr=DATA_ADDRESS + 1), "is misaligned"),
        (OVERLAP, f"the segments at {TEXT_ADDRESS:#x} and {TEXT_ADDRESS + 8:#x} overlap"),
        (patch_segment(GOOD, DATA, p_vaddr=TEXT_ADDRESS), "overlap"),
        (patch_segment(GOOD, HEADERS, p_memsz=PAGE + 1), "overlap"),
        (patch_segment(GOOD, DATA, p_vaddr=BASE - 4 * PAGE), "not in ascending order"),
        (patch_header(GOOD, e_entry=0), "it has no entry"),
        (patch_header(GOOD, e_entry=DATA_ADDRESS), f"the entry, {DATA_ADDRESS:#x}, is in no executable"),
        (patch_header(GOOD, e_entry=TEXT_ADDRESS - 1), "is in no executable segment"),
        (patch_header(GOOD, e_entry=TEXT_ADDRESS + len(CODE) + 84), "is in no executable segment"),
        (patch_segment(GOOD, TEXT, p_flags=R | W), "is in no executable segment"),
        (patch_segment(INTERPRETED, INTERP, p_filesz=10), "is empty or does not end"),
        (patch_segment(INTERPRETED, INTERP, p_filesz=1), "(PT_INTERP) has 1 bytes"),
        (patch_segment(INTERPRETED, INTERP, p_filesz=4097), "(PT_INTERP) has 4097 bytes"),
        (patch_segment(INTERPRETED, INTERP, p_offset=END - 10), "truncated: the path of its dynamic loader"),
        (Program(interpreter=b"\0\0").build(), "is empty or does not end"),
    ],
)
def test_what_cannot_be_loaded(image: bytes, message: str) -> None:
    assert message in refusal(image).message


def test_the_path_of_the_dynamic_loader_is_as_the_system_takes_it() -> None:
    image = Program(interpreter=b"/lib/\xff.so\0rest\0").build()
    assert elf.parse(image, "program").interpreter == os.fsdecode(b"/lib/\xff.so")


def test_an_object_file_and_a_shared_library_of_this_machine(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    (tmp_path / "part.c").write_text("int part(void) { return 1; }\n")
    for output, option, message in (("part.o", "-c", "an object file"), ("part.so", "-shared", "no entry")):
        command = ["gcc", option, "-fPIC", "-o", output, "part.c"]
        subprocess.run(command, check=True, cwd=tmp_path)
        assert message in refusal((tmp_path / output).read_bytes()).message


# The layouts and numbers, also those of memvm/machine/symbols.py, are those of <elf.h>.

ENUMS: tuple[tuple[str, Iterable[IntEnum | IntFlag]], ...] = (
    ("", elf.FileClass),
    ("ELFDATA2", elf.Encoding),
    ("ET_", elf.FileType),
    ("EM_", elf.Machine),
    ("PT_", elf.SegmentType),
    ("PF_", elf.SegmentFlag),
    ("SHT_", symbols.SectionType),
    ("STT_", symbols.SymbolType),
    ("STB_", symbols.Binding),
)
STRUCTS = (
    ("Elf64_Ehdr", "e_", elf.FILE_HEADER, elf.FileHeader._fields),
    ("Elf64_Phdr", "p_", elf.PROGRAM_HEADER, elf.ProgramHeader._fields),
    ("Elf64_Shdr", "sh_", symbols.SECTION_HEADER, symbols.SectionHeader._fields),
    ("Elf64_Sym", "st_", symbols.SYMBOL, symbols.Symbol._fields),
)
C_NAMES = {"ELF32": "ELFCLASS32", "ELF64": "ELFCLASS64", "EM_I386": "EM_386"}


def test_numbers_and_layouts_are_those_of_the_header(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    expected: dict[str, int] = {
        "SHN_UNDEF": symbols.SHN_UNDEF,
        "SHN_LORESERVE": symbols.SHN_LORESERVE,
        "SHF_EXECINSTR": symbols.SHF_EXECINSTR,
    }
    for prefix, members in ENUMS:
        for member in members:
            name = f"{prefix}{member.name}"
            expected[C_NAMES.get(name, name)] = int(member)
    for type_name, prefix, layout, fields in STRUCTS:
        expected[f"sizeof({type_name})"] = layout.size
        for offset, field in zip(field_offsets(layout), fields, strict=True):
            expected[f"offsetof({type_name}, {prefix}{field})"] = offset
    lines = "\n".join(f'printf("%ld\\n", (long)({expression}));' for expression in expected)
    source = "#include <elf.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {" + lines + "}\n"
    (tmp_path / "print.c").write_text(source)
    subprocess.run(["gcc", "-o", "print", "print.c"], check=True, cwd=tmp_path)
    printed = subprocess.run([tmp_path / "print"], check=True, capture_output=True, text=True).stdout
    assert dict(zip(expected, map(int, printed.split()), strict=True)) == expected


def field_offsets(layout: struct.Struct) -> list[int]:
    """Where each field of a little-endian struct begins."""
    codes = "".join(
        code if code == "s" else code * int(count or 1) for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format)
    )
    sizes = [16 if code == "s" else struct.calcsize("<" + code) for code in codes]
    return [sum(sizes[:index]) for index in range(len(sizes))]


# Whatever is done to a file, it is a program that keeps every promise, or refused.

changes = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, 400), st.integers(0, 255)),
        st.tuples(st.just("word"), st.integers(0, 50), st.integers(0, (1 << 64) - 1)),
        st.tuples(st.just("word"), st.integers(0, 50), st.sampled_from(fuzz_elf.EDGES)),
        st.tuples(st.just("cut"), st.integers(0, len(GOOD)), st.just(0)),
    ),
    min_size=1,
    max_size=5,
)


@given(program=st.sampled_from(fuzz_elf.PROGRAMS), changes=changes)
@settings(max_examples=400, deadline=None)
def test_any_change_is_refused_or_leaves_a_program(program: Program, changes: list[tuple[str, int, int]]) -> None:
    image = bytearray(program.build())
    for kind, place, value in changes:
        match kind:
            case "byte" if place < len(image):
                image[place] = value
            case "word" if place * 8 + 8 <= len(image):
                struct.pack_into("<Q", image, place * 8, value % (1 << 64))
            case "cut":
                del image[place:]
    fuzz_elf.check(bytes(image))


@given(contents=st.binary(max_size=600), magic=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_a_program(contents: bytes, magic: bool) -> None:
    fuzz_elf.check(GOOD[:20] + contents if magic else contents)


def test_the_fuzzer_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_elf.main(["--files", "3000", "--seed", "1"]) == 0
    done = re.fullmatch(r"3000 files from seed 1: (\d+) taken .* all well\n", capsys.readouterr().out)
    assert done
    assert 500 < int(done[1]) < 2900, "it tries too little of the one or of the other"


@pytest.mark.parametrize("bug", ["wrong exception", "broken promise"])
def test_the_fuzzer_names_the_seed_of_what_it_finds(
    bug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parse = elf.parse

    def planted(image: bytes, name: str) -> elf.ElfImage:
        if bug == "wrong exception" and len(image) < 200:
            raise IndexError("planted")
        parsed = parse(image, name)
        return parsed._replace(entry=0) if len(parsed.segments) == 2 and bug == "broken promise" else parsed

    monkeypatch.setattr(elf, "parse", planted)
    monkeypatch.setattr(fuzz_elf, "PROGRAMS", fuzz_elf.PROGRAMS[:1])
    with pytest.raises((IndexError, AssertionError)) as first:
        fuzz_elf.main(["--files", "3000", "--seed", "5"])
    command = capsys.readouterr().err.strip().split(": ")[-1]
    assert re.fullmatch(r"python3 -m tools.fuzz_elf --files 1 --seed \d+", command)
    with pytest.raises(first.type):
        fuzz_elf.main(command.split()[3:])
