"""The table of hypercalls: declared once, named and numbered as the kernel does, and shown to whoever asks."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from memvm.machine.guest import Guest
from memvm.machine.hypercalls.families import TABLE
from memvm.machine.hypercalls.table import OWN_CALLS, Argument, Call, Choice, Flags, Int, hypercall, show_result, signed
from tests.support import MemvmCli
from tools.build_guests import GUESTS

HEADERS = [
    Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    Path("/usr/include/asm/unistd_64.h"),
    Path("/usr/include/asm-x86/unistd_64.h"),
]


def test_names_and_numbers_are_the_kernels() -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None:
        pytest.skip("no asm/unistd_64.h here: apt-get install linux-libc-dev")
    found = re.findall(r"^#define __NR_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    kernel = {int(number): name for name, number in found}
    linux = {number: entry.name for number, entry in TABLE.items() if number < OWN_CALLS}
    assert linux == {number: kernel[number] for number in linux}


def test_memvms_own_calls_are_where_linux_has_none_and_as_the_header_declares_them() -> None:
    headers = "".join(header.read_text() for header in sorted((GUESTS / "include").glob("memvm*.h")))
    declared = re.findall(r"MEMVM_CALL_(\w+) = (0x[0-9a-f]+)", headers)
    own = {number: entry.name for number, entry in TABLE.items() if number >= OWN_CALLS}
    assert own == {int(number, 16): f"memvm_{name.lower()}" for name, number in declared}
    # Linux's numbers are below 1,000, and twice that with the bit for x32; as an int, ours is positive.
    assert all(0x40000000 + 1000 < number < 0x80000000 for number in own)


def test_a_number_cannot_be_declared_twice() -> None:
    with pytest.raises(ValueError, match="system call 0 is declared twice: read and again"):

        @hypercall(0, "again")
        def again(guest: Guest, call: Call) -> int:
            return 0

    assert TABLE[0].name == "read"


def test_every_function_takes_what_its_calls_declare() -> None:
    for entry in TABLE.values():
        assert entry.number >= 0
        assert len(entry.arguments) <= 6
        assert len({argument.name for argument in entry.arguments}) == len(entry.arguments)
        inspect.signature(entry.function).bind(None, None, *entry.arguments)
        assert entry.function.__doc__, f"{entry.name} does not say what it does"


def test_the_calls_that_change_mappings_or_registers_are_ptrace_stops() -> None:
    traced = {entry.name for entry in TABLE.values() if entry.traced}
    assert traced == {"mmap", "munmap", "mprotect", "mremap", "brk", "arch_prctl", "exit", "exit_group"} | {
        *("sigaltstack", "rt_sigreturn", "clone", "clone3"),
    }


def test_doctor_lists_the_calls(memvm_cli: MemvmCli) -> None:
    text = memvm_cli("doctor", "--calls", code=0).text
    for entry in TABLE.values():
        assert re.search(rf"^ *{entry.number} +{entry.name}\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("argument", "value", "text"),
    [
        (Argument("a"), 5, "5"),
        (Argument("a"), (1 << 64) - 1, "-1"),
        (Int("a"), 0xFFFFFF9C, "-100"),
        (Int("a"), (1 << 64) - 100, "-100"),
        (Flags("a", ONE=1, TWO=2), 3, "ONE|TWO"),
        (Flags("a", ONE=1, TWO=2), 9, "ONE|0x8"),
        (Flags("a", "NOTHING", ONE=1), 0, "NOTHING"),
        (Choice("a", ONE=1), 1, "ONE"),
        (Choice("a", ONE=1), 7, "0x7"),
    ],
)
def test_arguments_are_shown_for_people(argument: Argument, value: int, text: str) -> None:
    guest: Guest = None  # type: ignore[assignment]  # none of these looks into memory
    assert argument.show(guest, {"a": value}) == text


def test_results_are_shown_as_strace_does() -> None:
    assert show_result(7) == "7"
    assert show_result(-14) == "-1 EFAULT"
    assert show_result(0x10000000) == "0x10000000"


def test_a_register_is_a_signed_number_of_so_many_bits() -> None:
    assert signed(0xFFFFFFFF, 32) == -1
    assert signed(0xFFFFFFFF) == 0xFFFFFFFF
    assert signed(1 << 32, 32) == 0
