"""A restored guest cannot tell: real guests, saved and brought back in every way, on both fault engines.

What goes wrong on the way is in test_save_goes_wrong.py and test_restore_goes_wrong.py.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import subprocess
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import memvm
from memvm.units import KIB
from tests.checkpoint.lives import PATIENCE, SCALE, Gate, Life, change_state, go_on_once, look, restored, running

ENGINES = ("userfaultfd", "mprotect")
PATTERN_MODES = ("plain", "malloc", "mmap", "mremap", "madvise", "mprotect", "all")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "userfaultfd" and not _has_userfaultfd():
        pytest.skip("userfaultfd cannot be used here; `memvm doctor` says why")
    return name


def _has_userfaultfd() -> bool:
    from memvm.machine.probe import probe

    return any(
        "userfaultfd, which works" in capability.detail for capability in probe() if capability.name == "fault engine"
    )


def native_output(program: Path, *arguments: str) -> bytes:
    return subprocess.run([program, *arguments], check=True, capture_output=True, timeout=60 * SCALE).stdout


def assert_continues(whole: bytes, natively: bytes) -> None:
    """What several lives printed, one after the other, is what the program prints in one."""
    length = min(len(whole), len(natively))
    assert length > 0
    assert whole[:length] == natively[:length]


@pytest.mark.parametrize(("live", "lazy"), list(product((True, False), repeat=2)))
def test_output_and_memory_go_on(engine: str, live: bool, lazy: bool, guests: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("4", "0", "25", "25", "50", "all")
    with running(tmp_path / "1", guests["patterns"], *arguments, engine=engine) as first:
        first.await_lines(3)
        before = first.save(tmp_path / "a", live)
        first.await_lines(first.output().count(b"\n") + 2)  # it runs on
        natively = native_output(guests["patterns"], "4", "40", *arguments[2:])
        assert_continues(first.output(), natively)
    with restored(tmp_path / "2", tmp_path / "a", engine=engine, lazy=lazy) as second:
        second.await_lines(5)
        assert_continues(before + second.output(), natively)
        assert second.guest.status().engine == engine
        assert second.complaints() == ""


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 9))])
def test_memory_stays_right_over_many_lives(seed: int, guests: dict[str, Path], tmp_path: Path) -> None:
    """Saved over and over, each time in another way, also restored by the other engine."""
    dice = random.Random(seed)
    mode = dice.choice(PATTERN_MODES[1:])
    name = dice.choice(("patterns", "patterns-pie", "patterns-musl"))
    if name not in guests:
        name = "patterns"
    arguments = ["3", "0", "25", "25", "50", mode]
    natively = native_output(guests[name], "3", "100", *arguments[2:])
    before, path = b"", tmp_path / "a"

    def live_on(life: Life) -> None:
        nonlocal before
        for _ in range(dice.randint(1, 3)):  # only the last of them counts
            life.await_lines(life.output().count(b"\n") + dice.randint(0, 2))
            options: dict[str, Any] = {"live": dice.random() < 0.7, "level": dice.choice((-5, 1, 3))}
            written = life.save(path, block_size=dice.choice((1 << 16, 1 << 20)), **options)
        before += written
        assert life.complaints() == ""

    with running(tmp_path / "0", guests[name], *arguments, engine=dice.choice(_engines())) as life:
        life.await_lines(1)
        live_on(life)
    for number in range(1, 5):
        engine, lazy = dice.choice(_engines()), dice.random() < 0.7
        with restored(tmp_path / f"{number}", path, engine=engine, lazy=lazy) as life:
            live_on(life)
            assert_continues(before, natively)
    assert look(path).generation == 4
    with restored(tmp_path / "last", path) as life:
        life.await_lines(3)
        assert_continues(before + life.output(), natively)


def _engines() -> tuple[str, ...]:
    return ENGINES if _has_userfaultfd() else ENGINES[1:]


def catch(life: Life, there: re.Pattern[bytes]) -> None:
    """Pause the guest until it stands before these instructions."""
    while True:
        life.guest.pause()
        registers = life.guest.registers()
        if there.match(life.guest.read_memory(registers["rip"], 8)):
            return
        life.guest.resume()


def test_vector_registers_come_back(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    loop = re.compile(rb"\x48\xff.\x75\xfb|\x75\xfb")  # dec; jnz back
    before, path = b"", tmp_path / "a"
    with running(tmp_path / "0", guests["avxloop"], "0", "10000000", engine=engine) as life:
        life.await_lines(1)
        catch(life, loop)
        before += life.save(path, False)
    features = look(path).vcpu.xsave_features
    assert "SSE" in features
    assert "avx" not in Path("/proc/cpuinfo").read_text() or any("AVX" in name for name in features)
    for number, live in enumerate((False, True, True), 1):
        with restored(tmp_path / f"{number}", path, engine=engine) as life:
            life.await_lines(2)
            if live:
                before += life.save(path, True)
            else:
                catch(life, loop)
                before += life.save(path, False)
    with restored(tmp_path / "last", path, engine=engine, lazy=False) as life:
        life.await_lines(3)
        lines = (before + life.output()).decode().splitlines()
    assert lines == [f"round {number} right" for number in range(1, len(lines) + 1)]


@pytest.mark.parametrize("live", [True, False])
def test_string_instruction_goes_on_in_its_middle(
    engine: str, live: bool, guests: dict[str, Path], tmp_path: Path
) -> None:
    moves = re.compile(rb"\xf3(\x48\xa5|\xa4)")  # rep movsq, rep movsb
    path = tmp_path / "a"
    with running(tmp_path / "1", guests["repmovs"], "4", "0", engine=engine) as life:
        life.await_lines(1)
        catch(life, moves)
        before = life.save(path, live)  # a paused guest can be saved either way
    registers = look(path).vcpu.registers
    assert registers["rcx"] > 0
    with restored(tmp_path / "2", path, engine=engine) as life:
        life.await_lines(2)
        lines = (before + life.output()).decode().splitlines()
    assert lines == [f"round {number} right" for number in range(1, len(lines) + 1)]


def test_sleep_goes_on_for_what_was_left(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    path, left = tmp_path / "a", []
    with running(tmp_path / "1", guests["sleeper"], "3600000", "1", engine=engine) as life:

        def saved_asleep() -> bool:
            life.save(path)
            call = look(path).blocked
            return call is not None and "nanosleep" in call.name

        life.wait_for(saved_asleep)
        left.append(look(path).blocked)
    time.sleep(0.3)  # time in which the guest does not exist, and which does not count
    brought_back = time.monotonic()
    with restored(tmp_path / "2", path, engine=engine) as life:
        life.save(path, live=False)
        left.append(look(path).blocked)
    lived = time.monotonic() - brought_back
    first, second = (call.remaining_seconds or 0 for call in left if call is not None)
    assert 0 < first - second <= lived and first < 3600
    # By its own clock, all of the hour but half a second has gone by when it is brought back once more.
    skipped = round((second - 0.5) * 1e9)
    change_state(path, tmp_path / "b", lambda state: state.update(monotonic=state["monotonic"] + skipped))
    left.append(look(tmp_path / "b").blocked)
    assert left[-1] is not None and left[-1].remaining_seconds == pytest.approx(0.5, abs=1e-6)
    with restored(tmp_path / "3", tmp_path / "b", engine=engine) as life:
        life.await_lines(1)  # the guest itself looks at how long it has slept
        assert life.output().endswith(b"nanosleep: 1 to 2 times\n")


class Conversation:
    """Asks a guest a line at a time, over pipes."""

    def __init__(self, guest: memvm.Guest) -> None:
        assert guest.stdin is not None and guest.stdout is not None
        self._input, self._output = guest.stdin, guest.stdout

    def ask(self, line: str) -> str:
        self._input.write(line.encode() + b"\n")
        self._input.flush()
        return self._output.readline().decode().rstrip("\n")


PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def test_clocks(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    """CLOCK_MONOTONIC and its like go on from where they were; CLOCK_REALTIME is today's."""

    def times(answer: str) -> dict[str, float]:
        words = answer.split()
        return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}

    with memvm.Guest([guests["clocks"]], ram="64M", engine=engine, **PIPES) as guest:
        asked = time.monotonic()
        first = times(Conversation(guest).ask(""))
        guest.checkpoint(tmp_path / "a")
        saved = time.monotonic()
    time.sleep(0.2)  # time in which the guest does not exist
    brought_back = time.monotonic()
    with memvm.restore(tmp_path / "a", engine=engine, **PIPES) as guest:
        today = time.time()
        second = times(Conversation(guest).ask(""))
        lived = saved - asked + time.monotonic() - brought_back
    for name in ("monotonic", "raw", "boottime", "cpu"):
        assert first[name] <= second[name] <= first[name] + lived, name
    assert today - 0.001 <= second["realtime"] <= time.time()
    assert second["realtime"] - first["realtime"] >= 0.2


def test_two_restores_never_draw_the_same_numbers(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    with memvm.Guest([guests["randoms"]], ram="64M", engine=engine, **PIPES) as guest:
        lines = [Conversation(guest).ask("")]
        guest.checkpoint(tmp_path / "a")
        lines.append(Conversation(guest).ask(""))
    for lazy in (True, False):
        with memvm.restore(tmp_path / "a", engine=engine, lazy=lazy, **PIPES) as guest:
            lines.append(Conversation(guest).ask(""))
    assert all(len(line) == 64 for line in lines)
    assert len(set(lines)) == 4


def test_guest_that_waits_for_input(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    with memvm.Guest([guests["kv"]], ram="64M", engine=engine, **PIPES) as guest:
        talk = Conversation(guest)
        assert talk.ask("set colour blue") == "ok"
        for live in (True, False):
            path = tmp_path / f"{live}"
            while True:
                guest.checkpoint(path, live=live)
                if (call := look(path).blocked) is not None and not call.answered:
                    break
            assert (call.name, call.arguments[0]) == ("read", 0)
        assert talk.ask("set colour red") == "ok", "the guest goes on, and the file does not know of it"
    for live, lazy in product((True, False), repeat=2):
        with memvm.restore(tmp_path / f"{live}", engine=engine, lazy=lazy, **PIPES) as guest:
            talk = Conversation(guest)
            assert talk.ask("get colour") == "value blue"
            assert talk.ask("set colour green") == "ok"
            guest.checkpoint(tmp_path / "again")
        with memvm.restore(tmp_path / "again", engine=engine, lazy=lazy, **PIPES) as guest:
            assert Conversation(guest).ask("get colour") == "value green"


def unread(guest: memvm.Guest) -> int:
    """Bytes in the pipe that the guest writes to."""
    assert guest.stdout is not None
    return int.from_bytes(fcntl.ioctl(guest.stdout, termios.FIONREAD, bytes(4)), "little")


def test_input_file_is_read_on(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    """Saved while it waits to write to a full pipe, with its input read half-way and a write half done."""
    commands, lines = tmp_path / "commands", 30_000
    commands.write_text("".join(f"set key{number} value\n" for number in range(lines)))
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "engine": engine}
    with open(commands, "rb") as stdin, memvm.Guest([guests["kv"]], ram="64M", stdin=stdin, **pipe) as guest:
        deadline = time.monotonic() + PATIENCE * SCALE
        while unread(guest) < 60_000:  # of the 64 KiB that a pipe holds
            assert time.monotonic() < deadline
            time.sleep(0.005)
        while True:
            guest.checkpoint(tmp_path / "a", live=False)
            found = look(tmp_path / "a")
            if (call := found.blocked) is not None and call.name == "write" and not call.answered:
                break
            assert time.monotonic() < deadline
        assert 0 < (found.streams[0].file_offset or 0) < commands.stat().st_size
        guest.kill()
        assert guest.stdout is not None
        before = guest.stdout.read()
    with open(commands, "rb") as stdin, memvm.restore(tmp_path / "a", stdin=stdin, **pipe) as guest:
        assert guest.stdout is not None
        assert before + guest.stdout.read() == b"ok\n" * lines
        assert guest.wait(PATIENCE * SCALE).code == 0


def test_save_in_a_page_fault(
    engine: str, guests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that is still being restored, and waits for a page, is saved again."""
    arguments = ("16", "0", "25", "25", "50", "plain")
    with running(tmp_path / "1", guests["patterns"], *arguments, engine=engine) as life:
        life.await_lines(1)
        before = life.save(tmp_path / "a", live=False)  # a live one would have active pages, which are not deferred
    gate = Gate(tmp_path / "gate")
    gate.shut()
    monkeypatch.setenv("MEMVM_FAULTS", f"load.chunks=hold={gate},load.read=stall=0.1")
    with restored(tmp_path / "2", tmp_path / "a", engine=engine) as life, ThreadPoolExecutor(1) as another:
        life.wait_for(lambda: life.guest.status().faults > 0)
        assert life.guest.status().ram_deferred > 0
        pausing = another.submit(life.guest.pause)
        if engine == "userfaultfd":
            pausing.result()  # the other engine stops nobody while it loads a page
        gate.open()
        pausing.result()
        before += life.save(tmp_path / "b", live=False)
        life.wait_for(lambda: life.guest.status().ram_deferred == 0)  # in the background: the save loads none
        life.guest.resume()
        life.await_lines(2)
    monkeypatch.delenv("MEMVM_FAULTS")
    with restored(tmp_path / "3", tmp_path / "b", engine=engine) as life:
        life.await_lines(3)
        assert_continues(before + life.output(), native_output(guests["patterns"], "16", "20", *arguments[2:]))


def test_guest_ends_as_it_would_have(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    with running(tmp_path / "1", guests["counter"], "40", "20", "1", engine=engine, pause_after_calls=1) as life:
        life.stand_at_line(1)
        before = life.save(tmp_path / "a", progress=go_on_once(life))
        assert life.guest.wait(PATIENCE * SCALE).code == 0
    for lazy in (True, False):
        with restored(tmp_path / f"{lazy}", tmp_path / "a", engine=engine, lazy=lazy) as life:
            assert life.guest.wait(PATIENCE * SCALE).code == 0
            assert before + life.output() == b"".join(b"count %d\n" % line for line in range(1, 21))


def test_several_restores_of_one_file_at_once(guests: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("2", "200", "25", "25", "50", "all")
    with running(tmp_path / "1", guests["patterns"], *arguments, pause_after_calls=1) as life:
        life.stand_at_line(1)
        before = life.save(tmp_path / "a")
    natively = native_output(guests["patterns"], *arguments)
    whole: list[bytes] = []

    def live(folder: Path) -> None:
        with restored(folder, tmp_path / "a") as life:
            assert life.guest.wait(60 * SCALE).code == 0
            whole.append(before + life.output())

    threads = [threading.Thread(target=live, args=(tmp_path / f"copy{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole == [natively] * 3


def test_a_call_that_goes_on_during_a_live_save_is_saved_as_it_was(
    engine: str, busybox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest is in a write that its pipe has no room for, and which goes on after the instant."""
    monkeypatch.setenv("MEMVM_FAULTS", "save.block_write=stall=0.02")
    data, taken = random.Random(1).randbytes(1 << 20), bytearray()
    (tmp_path / "input").write_bytes(data)

    def more(done: int, _total: int) -> None:
        if done and len(taken) == 1:  # the instant is over
            taken.extend(read(writer, 300_000))

    command = [str(busybox), "dd", "bs=1M", "count=1", "status=none"]
    with (
        (tmp_path / "input").open("rb") as given,
        memvm.Guest(command, ram="64M", engine=engine, stdin=given, stdout=subprocess.PIPE) as writer,
    ):
        taken.extend(read(writer, 1))
        writer.checkpoint(tmp_path / "a", block_size=64 * KIB, progress=more)
        assert len(taken) > 1
    with memvm.restore(tmp_path / "a", engine=engine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as again:
        assert again.stdout is not None
        rest = again.stdout.read()
        assert again.wait(PATIENCE * SCALE).code == 0
    assert data.endswith(rest)
    assert len(data) - len(rest) <= 100_000, "what the pipe held at the instant, and no more"


def read(guest: memvm.Guest, size: int) -> bytes:
    """So much of what it writes, and not a byte more."""
    assert guest.stdout is not None
    data = b""
    while len(data) < size:
        data += os.read(guest.stdout.fileno(), size - len(data))
    return data
