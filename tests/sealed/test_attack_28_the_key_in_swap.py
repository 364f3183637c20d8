"""Where a sealed guest's keys are locked in memory, and that nobody finds them in what could be written to swap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from memvm.cli.demo_lab import SEALED, DemoLab
from memvm.linux.secret_memory import Guard, SecretMemory
from tests.sealed.test_attacks_on_a_disks_key import COUNTED, REVOKES, TEXT, lab, processes_of, secrets_of, started

__all__ = ["lab"]


class Mapping(NamedTuple):
    """A line of /proc/PID/smaps, and what follows it."""

    start: int
    end: int
    name: str
    flags: frozenset[str]


def mappings_of(pid: int) -> Iterator[Mapping]:
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in (span := line.split(" ")[0]):
            start, end = (int(part, 16) for part in span.split("-"))
            name = line.split(maxsplit=5)[5:]
        elif span == "VmFlags:":
            yield Mapping(start, end, name[0] if name else "", frozenset(line.split()[1:]))


def locked(pid: int) -> int:
    """Bytes that a process has locked."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmLck:")]
    return int(line.split()[1]) << 10


def places_of(pid: int, wanted: bytes) -> list[Mapping]:
    """The mappings of a process in which some bytes are."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for mapping in mappings_of(pid):
            if mapping.name == "[vsyscall]":
                continue  # has an address that is no file offset
            try:
                memory.seek(mapping.start)
                if wanted in memory.read(mapping.end - mapping.start):
                    found.append(mapping)
            except OSError:
                continue  # nobody can read it
    return found


@pytest.fixture
def guard() -> Guard:
    """What this machine can do for keys."""
    with SecretMemory(1) as tried:
        if tried.guard is Guard.ORDINARY:
            pytest.skip("this user may lock nothing")
        return tried.guard


def test_attack_28_key_in_swap(lab: DemoLab, guard: Guard) -> None:
    """What the guest names is locked in the platform's memory until it is wiped, and so is the key of checkpoints."""
    lab.set_up(TEXT, (*SEALED, *REVOKES))
    with ExitStack() as running:
        running.enter_context(lab.served())
        worker = started(lab, running, *SEALED, *REVOKES)
        _, platform, _ = processes_of(worker)
        with_key = locked(platform)
        if os.geteuid() == 0:  # a process that nobody may look into
            key = secrets_of(lab)["its first half"]
            places = places_of(platform, key)
            assert places
            assert all({"lo", "dd"} <= place.flags for place in places)
            ram = [mapping for mapping in mappings_of(platform) if "memvm-ram" in mapping.name]
            assert all("dd" in mapping.flags for mapping in ram)
            assert any("lo" not in mapping.flags for mapping in ram)
            secret = [mapping for mapping in mappings_of(platform) if "secretmem" in mapping.name]
            assert bool(secret) == (guard is Guard.SECRET)
        lab.do("config", "right", "set", "time-limit=1h")
        assert 0 < locked(platform) < with_key
        assert worker.ask() == COUNTED  # it named them again
        assert locked(platform) == with_key
