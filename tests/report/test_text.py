"""What people look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from memvm.errors import SaveError
from memvm.machine.config import ExitStatus
from memvm.report.capabilities import capabilities_text
from memvm.report.messages import ending_text, error_text
from memvm.report.records import to_json, to_text
from memvm.report.table import pairs, table


class Kind(Enum):
    ZERO = "zero"


class Region(NamedTuple):
    start_address: int
    region_size: int
    kind: Kind


@dataclass(frozen=True)
class Record:
    path: Path
    bytes_file: int
    save_seconds: float
    pages: int
    whole: bool
    digest: bytes
    note: str
    regions: tuple[Region, ...]
    registers: dict[str, int]
    by_kind: dict[Kind, int]
    nothing: tuple[Region, ...] = ()


RECORD = Record(
    *(Path("/a"), 2048, 0.5, 12345, True, b"\xab\xcd", ""),
    regions=(Region(0x10000, 4096, Kind.ZERO), Region(0x200000, 1 << 20, Kind.ZERO)),
    registers={"rip": 0x401000},
    by_kind={Kind.ZERO: 7},
)


def test_a_record_as_text() -> None:
    assert (
        to_text(RECORD)
        == """\
path          /a
bytes file    2.0 KiB
save seconds  500.0 ms
pages         12,345
whole         yes
digest        abcd
note          -
nothing       -

regions
  START ADDRESS  REGION SIZE  KIND
        0x10000      4.0 KiB  zero
       0x200000      1.0 MiB  zero

registers
  rip  0x0000000000401000

by kind
  zero  7"""
    )


def test_a_record_as_json() -> None:
    shown = json.loads(to_json(RECORD))
    assert (shown["path"], shown["bytes_file"], shown["digest"]) == ("/a", 2048, "abcd")
    assert shown["regions"][1] == {"start_address": 0x200000, "region_size": 1 << 20, "kind": "zero"}
    assert shown["by_kind"] == {"zero": 7}


def test_a_table_is_aligned() -> None:
    text = table(("NAME", "SIZE"), [("a", "10"), ("long name", "5")], right=("SIZE",))
    assert text == "NAME       SIZE\na            10\nlong name     5"


@given(st.lists(st.tuples(st.text("ab", max_size=5), st.text("cd", min_size=1, max_size=5)), min_size=1))
def test_pairs_have_their_values_in_one_column(values: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in values)
    lines = pairs(values).split("\n")
    assert [(line[:width].rstrip(), line[width + 2 :]) for line in lines] == values


def test_no_pairs_are_no_text() -> None:
    assert pairs([]) == ""


def test_errors_and_endings() -> None:
    assert error_text(SaveError("a", hint="b")) == "memvm: a\n  try: b"
    assert error_text(SaveError("a")) == "memvm: a"
    assert ending_text(ExitStatus(3)) == ""
    assert ending_text(ExitStatus(141, 13, "ended by SIGPIPE")) == ""
    assert ending_text(ExitStatus(139, 11, "one\n two")) == "memvm: one\n two"


def test_capabilities_say_what_to_do_about_what_is_missing() -> None:
    from memvm.machine.probe import Capability

    shown = capabilities_text(
        [Capability("memfd", True, "works", ""), Capability("userfaultfd", False, "EPERM", "allow it")]
    )
    assert shown == (
        "CAPABILITY   HERE  DETAIL\nmemfd        yes   works\nuserfaultfd  no    EPERM\n\nuserfaultfd:\n  try: allow it"
    )
