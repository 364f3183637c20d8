"""Symbol tables agree with pyelftools on real programs, and damaged ones are empty, never an error."""

from __future__ import annotations

import io
import mmap
import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from memvm.machine import elf
from memvm.machine.symbols import SymbolTable
from tests.machine.elf_writer import (
    BASE,
    DATA,
    DATA_ADDRESS,
    LOCAL,
    NOTYPE,
    OBJECT,
    TEXT_ADDRESS,
    UNDEFINED,
    WEAK,
    Load,
    Program,
    R,
    Symbol,
    W,
    X,
    patch_header,
    patch_section,
    section_of,
)

TEXT_SIZE = 0x400
CODE_AND_DATA = (
    Load(TEXT_ADDRESS, b"\x90" * TEXT_SIZE, R | X),
    Load(DATA_ADDRESS, b"data", R | W),
)
SYMBOLS = (
    Symbol(b"_start", TEXT_ADDRESS, 0, NOTYPE),
    Symbol(b"main", TEXT_ADDRESS + 0x10, 0x20),
    Symbol(b"local_main", TEXT_ADDRESS + 0x10, 0x20, binding=LOCAL),
    Symbol(b"weak_main", TEXT_ADDRESS + 0x10, 0x20, binding=WEAK),
    Symbol(b"_ZN5outer5innerEv", TEXT_ADDRESS + 0x100, 0x80),
    Symbol(b"inside", TEXT_ADDRESS + 0x120, 0x10, binding=LOCAL),
    Symbol(b"label", TEXT_ADDRESS + 0x200, 0, NOTYPE, LOCAL),
    Symbol(b"next_label", TEXT_ADDRESS + 0x300, 0, NOTYPE, LOCAL),
    Symbol(b"etext", TEXT_ADDRESS + TEXT_SIZE, 0, NOTYPE),
    Symbol(b"an_object", DATA_ADDRESS, 4, OBJECT, section=DATA),
    Symbol(b"data_label", DATA_ADDRESS, 0, NOTYPE, section=DATA),
    Symbol(b"elsewhere", 0, 0, section=UNDEFINED),
    Symbol(b"a_constant", TEXT_ADDRESS + 0x380, 0, NOTYPE, section=0xFFF1),
)
PROGRAM = Program(CODE_AND_DATA, symbols=SYMBOLS)
GOOD = PROGRAM.build()
SYMTAB, STRTAB = 3, 4  # the section numbers of PROGRAM


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (-1, None),
        (0x0, ("_start", 0)),
        (0xF, ("_start", 0xF)),
        (0x10, ("main", 0)),
        (0x2F, ("main", 0x1F)),
        (0x30, None),
        (0x100, ("_ZN5outer5innerEv", 0)),
        (0x11F, ("_ZN5outer5innerEv", 0x1F)),
        (0x120, ("inside", 0)),
        (0x130, ("_ZN5outer5innerEv", 0x30)),
        (0x180, None),
        (0x200, ("label", 0)),
        (0x2FF, ("label", 0xFF)),
        (0x3FF, ("next_label", 0xFF)),
        (0x400, None),
        (DATA_ADDRESS - TEXT_ADDRESS, None),
        (-TEXT_ADDRESS, None),
        ((1 << 64) - 1, None),
    ],
)
@pytest.mark.parametrize("load_bias", [0, 0x7000000])
def test_lookup(offset: int, expected: tuple[str, int] | None, load_bias: int) -> None:
    table = SymbolTable.from_image(GOOD, load_bias)
    assert table.lookup(TEXT_ADDRESS + load_bias + offset) == expected


def test_address_of() -> None:
    table = SymbolTable.from_image(PROGRAM.moved(-BASE).build(), load_bias=BASE)
    for symbol in SYMBOLS[:8]:
        assert table.address_of(symbol.name.decode()) == symbol.value
    for name in ("", "mai", "main\0", "ain", "an_object", "data_label", "elsewhere", "etext", "\ud800"):
        assert table.address_of(name) is None
    assert len(table) == 8


def test_of_several_functions_of_one_name_the_global_one_is_meant() -> None:
    twins = (
        Symbol(b"twin", TEXT_ADDRESS + 0x40, 8, binding=LOCAL),
        Symbol(b"twin", TEXT_ADDRESS, 8),
        Symbol(b"twin", TEXT_ADDRESS + 0x80, 8, binding=WEAK),
    )
    table = SymbolTable.from_image(replace(PROGRAM, symbols=twins).build(), 0)
    assert table.address_of("twin") == TEXT_ADDRESS


def test_names_that_are_not_utf_8_can_be_printed() -> None:
    odd = (Symbol(b"f\xff\x80", TEXT_ADDRESS, 8),)
    table = SymbolTable.from_image(replace(PROGRAM, symbols=odd).build(), 0)
    assert table.lookup(TEXT_ADDRESS) == ("f\\xff\\x80", 0)


DYNAMIC = (Symbol(b"exported", TEXT_ADDRESS + 0x10, 8), Symbol(b"imported", 0, 0, section=UNDEFINED))


def test_dynamic_symbols_are_used_if_there_are_no_others() -> None:
    both = replace(PROGRAM, dynamic_symbols=DYNAMIC)
    assert SymbolTable.from_image(both.build(), 0).lookup(TEXT_ADDRESS + 0x10) == ("main", 0)
    stripped = SymbolTable.from_image(replace(both, symbols=()).build(), 0)
    assert stripped.lookup(TEXT_ADDRESS + 0x10) == ("exported", 0)
    assert len(stripped) == 1
    damaged = patch_section(both.build(), SYMTAB, sh_offset=1 << 50)
    assert SymbolTable.from_image(damaged, 0).lookup(TEXT_ADDRESS + 0x10) == ("exported", 0)


def test_any_buffer_will_do_and_none_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(GOOD)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        table = SymbolTable.from_image(mapped, 0)
    assert table.lookup(TEXT_ADDRESS + 0x10) == ("main", 0)


# What is damaged has no symbols.

FILE_SIZE = len(GOOD)
NAMES_AT, NAMES_SIZE = (section_of(GOOD, STRTAB)[field] for field in ("sh_offset", "sh_size"))


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF",
        GOOD[:63],
        b"#!/bin/sh\n" * 100,
        patch_header(GOOD, e_ident=b"\x7fELF\x01\x01\x01".ljust(16, b"\0")),
        patch_header(GOOD, e_ident=b"\x7fELF\x02\x02\x01".ljust(16, b"\0")),
        patch_header(GOOD, e_shoff=0),
        patch_header(GOOD, e_shoff=FILE_SIZE - 63),
        patch_header(GOOD, e_shoff=(1 << 64) - 1),
        patch_header(GOOD, e_shentsize=40),
        patch_header(GOOD, e_shnum=0),
        patch_header(GOOD, e_shnum=0xFFFF),
        GOOD[:-1],
        Program(with_sections=False).build(),
        patch_section(GOOD, SYMTAB, sh_type=1),
        patch_section(GOOD, SYMTAB, sh_entsize=0),
        patch_section(GOOD, SYMTAB, sh_entsize=16),
        patch_section(GOOD, SYMTAB, sh_size=0),
        patch_section(GOOD, SYMTAB, sh_size=(1 << 64) - 1),
        patch_section(GOOD, SYMTAB, sh_offset=FILE_SIZE - 10),
        patch_section(GOOD, SYMTAB, sh_link=99),
        patch_section(GOOD, SYMTAB, sh_link=0xFFFFFFFF),
        patch_section(GOOD, SYMTAB, sh_link=1),
        patch_section(GOOD, STRTAB, sh_offset=FILE_SIZE),
        patch_section(GOOD, STRTAB, sh_size=FILE_SIZE),
        patch_section(GOOD, STRTAB, sh_size=0),
        GOOD[:NAMES_AT] + b"x" * NAMES_SIZE + GOOD[NAMES_AT + NAMES_SIZE :],
        GOOD[:NAMES_AT] + b"\0" * NAMES_SIZE + GOOD[NAMES_AT + NAMES_SIZE :],
    ],
)
def test_a_damaged_table_has_no_symbols(image: bytes) -> None:
    table = SymbolTable.from_image(image, 0)
    assert len(table) == 0
    assert table.lookup(TEXT_ADDRESS) is None
    assert table.address_of("main") is None


def test_a_name_without_an_end_is_no_name() -> None:
    pair = (Symbol(b"first", TEXT_ADDRESS, 8), Symbol(b"last", TEXT_ADDRESS + 8, 8))
    image = replace(PROGRAM, symbols=pair).build()
    cut = patch_section(image, STRTAB, sh_size=len(b"\0first\0last"))
    table = SymbolTable.from_image(cut, 0)
    assert table.lookup(TEXT_ADDRESS) == ("first", 0)
    assert table.lookup(TEXT_ADDRESS + 8) is None


def test_a_size_that_wraps_is_no_function() -> None:
    huge = (Symbol(b"huge", TEXT_ADDRESS, (1 << 64) - 1), Symbol(b"main", TEXT_ADDRESS + 8, 8))
    table = SymbolTable.from_image(replace(PROGRAM, symbols=huge).build(), 0)
    assert table.lookup(TEXT_ADDRESS) is None
    assert table.lookup(TEXT_ADDRESS + 8) == ("main", 0)


def test_the_last_label_reaches_to_the_end_of_its_section() -> None:
    label = (Symbol(b"label", TEXT_ADDRESS + 8, 0, NOTYPE),)
    table = SymbolTable.from_image(replace(PROGRAM, symbols=label).build(), 0)
    assert table.lookup(TEXT_ADDRESS + TEXT_SIZE - 1) == ("label", TEXT_SIZE - 9)
    assert table.lookup(TEXT_ADDRESS + TEXT_SIZE) is None


def test_a_label_in_a_section_that_does_not_exist_is_no_function() -> None:
    lost = (
        Symbol(b"lost", TEXT_ADDRESS, 0, section=77),
        Symbol(b"label", TEXT_ADDRESS, 0, NOTYPE, section=77),
    )
    assert len(SymbolTable.from_image(replace(PROGRAM, symbols=lost).build(), 0)) == 0


# Real programs.

C_SOURCE = """
#include <stdio.h>
static __attribute__((noinline)) int twice(int x) { return 2 * x; }
int main(int argc, char **argv) { printf("%d\\n", twice(argc)); return 0; }
"""
CXX_SOURCE = "namespace outer { int inner(int x) { return x + 1; } }\nint main() { return outer::inner(-1); }\n"
BUILDS = {
    "glibc": ("gcc", "-static", "-x", "c"),
    "glibc static-pie": ("gcc", "-static-pie", "-x", "c"),
    "musl": ("musl-gcc", "-static", "-x", "c"),
    "dynamic": ("gcc", "-x", "c"),
    "C++": ("g++", "-x", "c++"),
}


def build(directory: Path, name: str) -> bytes:
    """A program of BUILDS."""
    compiler, *options = BUILDS[name]
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    (directory / "source").write_text(CXX_SOURCE if compiler == "g++" else C_SOURCE)
    subprocess.run([compiler, *options, "-o", "program", "source"], check=True, cwd=directory)
    return (directory / "program").read_bytes()


def functions_by_pyelftools(image: bytes) -> list[tuple[int, int, str]]:
    """Value, size and name of each function with a size."""
    table: Any = ELFFile(io.BytesIO(image)).get_section_by_name(".symtab")
    return [
        (symbol["st_value"], symbol["st_size"], symbol.name)
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] in ("STT_FUNC", "STT_LOOS")  # LOOS is GNU_IFUNC
        and symbol["st_shndx"] != "SHN_UNDEF"
        and symbol["st_size"]
    ]


@pytest.mark.parametrize("name", BUILDS)
def test_every_function_of_a_real_program_is_found(name: str, tmp_path: Path) -> None:
    image = build(tmp_path, name)
    bias = 0x10000000
    table = SymbolTable.from_image(image, bias)
    functions = functions_by_pyelftools(image)
    assert functions
    names_at: dict[int, set[str]] = defaultdict(set)
    addresses_of: dict[str, set[int]] = defaultdict(set)
    for value, _, function in functions:
        names_at[value].add(function)
        addresses_of[function].add(value)
    for value, size, function in functions:
        assert (address := table.address_of(function)) is not None
        assert address - bias in addresses_of[function]
        found = table.lookup(value + bias)
        assert found is not None
        assert found[1] == 0 and found[0] in names_at[value]
        last = table.lookup(value + size - 1 + bias)
        assert last is not None
        assert last[1] < size  # or less, if another begins inside
    start = elf.parse(image, "program").entry
    assert table.lookup(start + bias) == ("_start", 0)


def test_c_plus_plus_names_are_left_as_they_are(tmp_path: Path) -> None:
    table = SymbolTable.from_image(build(tmp_path, "C++"), 0)
    address = table.address_of("_ZN5outer5innerEi")
    assert address is not None
    assert table.lookup(address + 1) == ("_ZN5outer5innerEi", 1)


def test_a_stripped_program_has_no_symbols(tmp_path: Path, busybox: Path) -> None:
    image = build(tmp_path, "glibc")
    subprocess.run(["strip", "program"], check=True, cwd=tmp_path)
    assert len(SymbolTable.from_image(image, 0)) > 100
    assert len(SymbolTable.from_image((tmp_path / "program").read_bytes(), 0)) == 0
    assert SymbolTable.from_image(busybox.read_bytes(), 0).lookup(TEXT_ADDRESS) is None
