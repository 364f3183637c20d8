"""Loading: what lies where, what a program finds at its start, and what does not fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memvm.errors import ImageError, UsageError
from memvm.machine.config import GuestConfig
from memvm.machine.layout import PIE_BASE, RAM_BASE, stack_size
from memvm.machine.loader import Loaded, load
from memvm.machine.program import read_program
from memvm.machine.space import AddressSpace, Region, RegionKind
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import MIB, PAGE_SIZE
from tests.machine.conftest import CProgram
from tests.machine.elf_writer import BASE, CODE, EXIT_CODE, TEXT_ADDRESS, Load, Program, R, W, X
from tests.support import MemvmCli

RAM_SIZE = 16 * MIB


def write(path: Path, program: Program) -> Path:
    path.write_bytes(program.build())
    return path


def loaded(path: Path, **config: object) -> tuple[Loaded, list[Region], dict[int, bytes], bytes]:
    """Where a program starts, its regions, the first bytes of each, and the stack from the stack pointer on."""
    settings = GuestConfig(str(path), **{"argv": (str(path),), "ram_size": RAM_SIZE, **config})  # type: ignore[arg-type]
    ram = GuestRam(RAM_BASE, settings.ram_size)
    try:
        space = AddressSpace(ram, lambda start, size, protection: None)
        result = load(read_program(settings), settings, ram, space)
        regions = list(space)
        beginnings = {region.start: ram.read(region.start, 64) for region in regions}
        return result, regions, beginnings, ram.read(result.stack_pointer, ram.end - result.stack_pointer)
    finally:
        ram.close()


def image(regions: list[Region]) -> list[tuple[int, int, str]]:
    """Pages and rights of the image's regions."""
    letters = {Prot.READ: "r", Prot.WRITE: "w", Prot.EXEC: "x"}
    return [
        (region.start, region.end, "".join(name for bit, name in letters.items() if region.protection & bit))
        for region in regions
        if region.kind is RegionKind.IMAGE
    ]


def test_segments_lie_where_they_were_linked_with_their_rights(tmp_path: Path) -> None:
    start, regions, beginnings, _ = loaded(write(tmp_path / "program", Program()))
    assert start.entry == TEXT_ADDRESS
    assert image(regions) == [
        (BASE, BASE + PAGE_SIZE, "r"),
        (BASE + PAGE_SIZE, BASE + 2 * PAGE_SIZE, "rx"),
        (BASE + 2 * PAGE_SIZE, BASE + 4 * PAGE_SIZE, "rw"),
    ]
    assert beginnings[TEXT_ADDRESS].startswith(CODE)
    assert beginnings[BASE + 2 * PAGE_SIZE][:8] == b"data\0\0\0\0"


def test_a_position_independent_program_begins_at_pie_base(tmp_path: Path) -> None:
    start, regions, _, _ = loaded(write(tmp_path / "program", Program().moved(-BASE)))
    assert image(regions)[0][0] == PIE_BASE
    assert start.entry == PIE_BASE + TEXT_ADDRESS - BASE


def test_a_page_that_two_segments_share_has_the_rights_of_both(tmp_path: Path) -> None:
    """As lld and gold lay programs out: the pages of the file are mapped twice."""
    text = Load(TEXT_ADDRESS, CODE + b"\x90" * (PAGE_SIZE + 100 - len(CODE)), R | X)
    data = Load(TEXT_ADDRESS + PAGE_SIZE + 100, b"D" * PAGE_SIZE, R | W)
    start, regions, beginnings, _ = loaded(write(tmp_path / "program", Program(segments=(text, data))))
    assert start.entry == TEXT_ADDRESS
    assert image(regions)[1:] == [
        (TEXT_ADDRESS, TEXT_ADDRESS + PAGE_SIZE, "rx"),
        (TEXT_ADDRESS + PAGE_SIZE, TEXT_ADDRESS + 2 * PAGE_SIZE, "rwx"),
        (TEXT_ADDRESS + 2 * PAGE_SIZE, TEXT_ADDRESS + 3 * PAGE_SIZE, "rw"),
    ]
    assert beginnings[TEXT_ADDRESS + 2 * PAGE_SIZE].startswith(b"D" * 64)
    assert beginnings[TEXT_ADDRESS + PAGE_SIZE][:64] == b"\x90" * 64


def test_such_a_program_runs(tmp_path: Path, memvm_cli: MemvmCli) -> None:
    text = Load(TEXT_ADDRESS, CODE + b"\x90" * 84, R | X)
    data = Load(TEXT_ADDRESS + len(text.data), b"D" * 100, R | W)
    program = write(tmp_path / "program", Program(segments=(text, data)))
    memvm_cli("run", "--", program, code=EXIT_CODE)


def test_the_stack_is_at_the_end_and_executable_only_if_asked_for(tmp_path: Path) -> None:
    _, regions, _, _ = loaded(write(tmp_path / "program", Program()))
    size = stack_size(RAM_SIZE)
    end = RAM_BASE + RAM_SIZE
    assert regions[-1] == Region(end - size, end, Prot.READ | Prot.WRITE, RegionKind.STACK)
    _, regions, _, _ = loaded(write(tmp_path / "program", Program(stack_flags=R | W | X)))
    assert regions[-1].protection == Prot.READ | Prot.WRITE | Prot.EXEC
    _, regions, _, _ = loaded(write(tmp_path / "program", Program(stack_flags=None)))
    assert regions[-1].protection == Prot.READ | Prot.WRITE, "since Linux 5.8"


def test_arguments_lie_on_the_stack_as_the_abi_says(tmp_path: Path) -> None:
    path = write(tmp_path / "program", Program())
    start, _, _, stack = loaded(path, argv=("first", "", "caf\udce9"), env={"A": "1", "LANG": "ü"})
    assert start.stack_pointer % 16 == 0

    def word(index: int) -> int:
        return int.from_bytes(stack[8 * index : 8 * index + 8], "little")

    def text(index: int) -> bytes:
        return stack[word(index) - start.stack_pointer :].partition(b"\0")[0]

    assert [word(0), word(4), word(7)] == [3, 0, 0]
    assert [text(1), text(2), text(3)] == [b"first", b"", b"caf\xe9"]
    assert [text(5), text(6)] == [b"A=1", "LANG=ü".encode()]


def test_a_program_without_arguments_gets_an_empty_one(tmp_path: Path) -> None:
    _, _, _, stack = loaded(write(tmp_path / "program", Program()), argv=())
    assert stack[:8] == (1).to_bytes(8, "little")


@pytest.mark.parametrize(
    "config",
    [{"argv": ("x" * MIB,)}, {"env": {"A": "x" * MIB}}, {"argv": ("x",) * 100_000}],
)
def test_too_much_for_the_stack_is_one_clear_error(config: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long for the guest's stack"):
        loaded(write(tmp_path / "program", Program()), **config)


@pytest.mark.parametrize("config", [{"argv": ("a\0b",)}, {"env": {"A": "\0"}}, {"env": {"\0": "a"}}])
def test_text_with_a_nul_is_refused(config: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NUL"):
        loaded(write(tmp_path / "program", Program()), **config)


def test_what_does_not_fit_says_how_much_ram_it_needs(tmp_path: Path, memvm_cli: MemvmCli) -> None:
    large = Load(BASE + 2 * PAGE_SIZE, b"data", R | W, mem_size=32 * MIB)
    path = write(tmp_path / "program", Program(segments=(Program().segments[0], large)))
    with pytest.raises(ImageError, match=r"does not fit into 16\.0 MiB") as caught:
        loaded(path)
    needed = caught.value.hint.rpartition(" ")[2]
    memvm_cli("run", "--ram", needed, "--", path, code=EXIT_CODE)


def test_a_program_below_guest_ram_is_refused(tmp_path: Path) -> None:
    program = Program(segments=(Load(0x10000, CODE, R | X),), entry=0x10000, headers_at=None)
    with pytest.raises(ImageError, match="below guest RAM") as caught:
        loaded(write(tmp_path / "program", program))
    assert "-static-pie" in caught.value.hint


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in ((pipe, "not a regular file"), (tmp_path, "not a regular file"), (tmp_path / "no", "No such")):
        with pytest.raises(ImageError, match=reason) as caught:
            loaded(path)
        assert caught.value.hint


def test_a_guest_finds_arguments_environment_and_vector(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    program = c_program("start")
    arguments = [os.fsdecode(b"\xff\xfe"), "", "two words", "ü"]
    result = memvm_cli(
        "run", "--clear-env", "--env", "A=1", "--env", os.fsdecode(b"B=\xff"), "--env", "C=", "--", program, *arguments,
        code=0,
    )  # fmt: skip
    told = result.text.splitlines()
    assert not [line for line in told if line.endswith("NO")]
    given = [os.fsencode(str(program)), *map(os.fsencode, arguments)]
    assert [bytes.fromhex(line[4:]) for line in told if line.startswith("arg ")] == given
    assert [bytes.fromhex(line[4:]) for line in told if line.startswith("env ")] == [b"A=1", b"B=\xff", b"C="]
    assert f"execfn {os.fsencode(str(program)).hex()}" in told
    assert f"platform {b'x86_64'.hex()}" in told
    pairs = (line.split()[1:] for line in told if line.startswith("aux "))
    vector = {int(kind): int(value) for kind, value in pairs}
    # include/uapi/linux/auxvec.h: PAGESZ, BASE, FLAGS, UID, EUID, GID, EGID, CLKTCK, SECURE
    wanted = {6: 4096, 7: 0, 8: 0, 11: 1000, 12: 1000, 13: 1000, 14: 1000, 17: 100, 23: 0}
    assert {key: vector[key] for key in wanted} == wanted
    assert BASE < vector[9] < vector[3] + MIB
    again = memvm_cli("run", "--clear-env", "--", program, code=0).text.splitlines()
    assert again[-1] != told[-1], "AT_RANDOM is the same twice"
