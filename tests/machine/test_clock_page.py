"""The clock page and the vDSO: time without hypercalls, right, never going back, and after a restore too."""

from __future__ import annotations

import io
import itertools
import time
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from memvm.linux.machine_code import ClockPair
from memvm.machine import clock_page
from memvm.machine.clock_page import ClockPage
from memvm.machine.clocks import COARSE, CPU_CLOCKS, REAL_CLOCKS, Clock, Clocks
from memvm.machine.config import GuestConfig, RunOptions
from memvm.machine.layout import CLOCK_BASE
from memvm.machine.machine import Machine
from memvm.machine.vdso import _CODE, vdso_image
from memvm.units import MIB
from tests.checkpoint.lives import SCALE
from tests.machine.conftest import CProgram
from tests.support import MemvmCli

TICKS_A_NANOSECOND = 2.6
SECOND = 1_000_000_000


def usable() -> bool:
    return clock_page._machine_code() is not None


needs_counter = pytest.mark.skipif(
    not usable(), reason="the kernel does not take its time from the processor's counter"
)


class FakeCode:
    """Two clocks that go as the test says."""

    def __init__(self) -> None:
        self.monotonic = 5 * SECOND
        self.rate = 1.0

    def read_clocks(self) -> ClockPair:
        return ClockPair(int((self.monotonic) * TICKS_A_NANOSECOND), int(self.monotonic * self.rate), 0)

    def pass_time(self, nanoseconds: int) -> None:
        self.monotonic += nanoseconds


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCode:
    code = FakeCode()
    monkeypatch.setattr(clock_page, "_machine_code", lambda: code)
    monkeypatch.setattr(ClockPage, "_keep", lambda self: None)
    return code


def test_a_wrong_rate_is_made_right_and_the_clock_never_goes_back(fake: FakeCode) -> None:
    clocks = Clocks()
    page = ClockPage(clocks)
    try:
        fake.pass_time(2_000_000)
        page.begin(1)
        shown = page._shown(fake.read_clocks().counter)
        for interval, rate in itertools.product((0.02, 0.1, 1.0, 2.0), (1.0005, 0.9995, 1.0)):
            before = fake.read_clocks().monotonic
            fake.rate = before / fake.monotonic  # no jump, only another rate
            drifted = int(fake.monotonic + interval * 1e9)
            fake.rate = (before + interval * 1e9 * rate) / drifted
            fake.monotonic = drifted
            page.look(interval)
            now = page._shown(fake.read_clocks().counter)
            assert now >= shown
            assert abs(now - fake.read_clocks().monotonic) < 0.002 * interval * 1e9
            shown = now
    finally:
        page.close()


def test_a_clock_that_is_far_behind_jumps(fake: FakeCode) -> None:
    page = ClockPage(Clocks())
    try:
        fake.pass_time(2_000_000)
        page.begin(1)
        fake.rate *= 2  # the counter stood still, and the clock did not
        page.look(1.0)
        pair = fake.read_clocks()
        assert abs(page._shown(pair.counter) - pair.monotonic) < 1000
    finally:
        page.close()


def test_the_page_begins_with_the_guests_own_time_and_a_number_of_this_life(fake: FakeCode) -> None:
    clocks = Clocks()
    clocks.monotonic_offset = 77 * SECOND
    page = ClockPage(clocks)
    try:
        fake.pass_time(2_000_000)
        page.begin(3)
        assert page._words[0] >> 32 == 3
        assert page._words[0] % 2 == 0
        pair = fake.read_clocks()
        assert page._shown(pair.counter) == pair.monotonic + 77 * SECOND
    finally:
        page.close()


def test_the_library_is_one_that_c_libraries_take() -> None:
    elf = ELFFile(io.BytesIO(vdso_image()))
    dynamic = next(segment for segment in elf.iter_segments() if isinstance(segment, DynamicSegment))
    names = {symbol.name: symbol["st_value"] for symbol in dynamic.iter_symbols() if symbol.name}
    assert names.keys() == {
        f"__vdso_{name}" for name in ("clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu")
    }
    assert all(0x400 <= place < 4096 for place in names.values())
    tags = {tag.entry.d_tag: tag.entry.d_val for tag in dynamic.iter_tags()}
    assert tags["DT_VERDEFNUM"] == 2
    assert b"LINUX_2.6\0" in vdso_image()


def test_the_code_knows_page_and_clocks() -> None:
    assert f"mov r8d, {CLOCK_BASE:#x}" in _CODE
    here = [clock for clock in Clock if clock not in CPU_CLOCKS]
    assert f"mov eax, {sum(1 << clock for clock in here):#x}" in _CODE
    assert f"mov ecx, {sum(1 << clock for clock in REAL_CLOCKS):#x}" in _CODE
    assert max(here) == 11
    assert set(here) > COARSE


@needs_counter
def test_the_time_costs_no_hypercall_and_is_the_managers(c_program: CProgram, tmp_path: Path) -> None:
    machine = Machine.launch(GuestConfig(str(c_program("time")), ("time", "0"), ram_size=64 * MIB), RunOptions("time"))
    try:
        machine.start()
        ending = machine.wait(60 * SCALE)
        assert ending is not None
        assert (ending.code, ending.reason) == (0, "")
        assert machine.status().hypercalls < 3000  # of the 100,000 times that it asks
    finally:
        machine.close()


def test_without_the_counter_the_time_is_a_hypercall(c_program: CProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_page, "_machine_code", lambda: None)
    machine = Machine.launch(GuestConfig(str(c_program("time")), ("time", "0"), ram_size=64 * MIB), RunOptions("time"))
    try:
        machine.start()
        ending = machine.wait(60 * SCALE)
        assert ending is not None
        assert (ending.code, ending.reason) == (0, "")
        assert machine.status().hypercalls > 100_000
    finally:
        machine.close()


@needs_counter
def test_the_clocks_of_a_guest_and_of_the_host_agree(c_program: CProgram, memvm_cli: MemvmCli) -> None:
    before = time.time()
    told = float(memvm_cli("run", "--", c_program("time"), "1", code=0).text)
    assert before - 0.01 <= told <= time.time() + 0.01
