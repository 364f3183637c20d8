"""Clones of real guests: whole, apart from each other, aware of what they are, and gone without a trace."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import memvm
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.restore import read_state
from memvm.machine.config import RunState
from memvm.manager.client import running
from memvm.manager.rundir import location
from memvm.units import MIB, PAGE_SIZE
from tests.manager.support import wait_for_state
from tests.support import MemvmCli

ENGINES = ["userfaultfd", "mprotect"]
PATIENCE = 30.0
FIRST_LINES = 24
"""Calls after which a counter has begun to count: at most fifteen to start, and two for each line."""


@contextmanager
def started(program: Path, *arguments: str, lines: int, calls: int) -> Iterator[memvm.Guest]:
    """A guest that has written so many lines; with `calls`, it stands still after so many."""
    with memvm.Guest(
        [program, *arguments],
        ram="64M",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pause_after_calls=calls,
    ) as guest:
        assert guest.stdout is not None
        for _ in range(lines):
            guest.stdout.readline()
        if calls:
            guest.wait_until_paused(PATIENCE)
        yield guest


@pytest.fixture
def saved(guests: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a checkpoint of a guest; of one that soon ends, after some calls, or it could be too late."""

    def save(name: str, *arguments: str, lines: int = 1, calls: int = 0) -> Path:
        file = tmp_path / f"{name}.ckpt"
        with started(guests[name], *arguments, lines=lines, calls=calls) as guest:
            guest.checkpoint(file)
        return file

    return save


def lines_of(guest: memvm.Guest, count: int) -> list[str]:
    assert guest.stdout is not None
    return [guest.stdout.readline().decode() for _ in range(count)]


def wait_until(happened: Callable[[], bool], time_scale: float) -> None:
    deadline = time.monotonic() + PATIENCE * time_scale
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_clone_learns_which_it_is_and_draws_what_no_other_draws(saved: Callable[..., Path], engine: str) -> None:
    file = saved("generation", "5")
    names = set()
    for _ in range(2):
        with memvm.restore_clones(file, 5, engine=engine, stdout=subprocess.PIPE) as clones:
            for number, guest in enumerate(clones, 1):
                line = lines_of(guest, 1)[0]
                found = re.fullmatch(rf"restore 1, clone {number} of 5: my name is ([0-9a-f]{{16}})\n", line)
                assert found, line
                names.add(found[1])
                status = guest.status()
                assert (status.name, status.clone, status.clones) == (f"generation-{number}", number, 5)
                assert (status.restored_from, status.engine) == (str(file), engine)
    assert len(names) == 10


@pytest.mark.parametrize("engine", ENGINES)
def test_clones_find_all_their_memory_whole_while_they_change_it(saved: Callable[..., Path], engine: str) -> None:
    file = saved("patterns", "16", "0", "10", "20", "40", "all", lines=3)
    with memvm.restore_clones(file, 3, engine=engine, stdout=subprocess.PIPE) as clones:
        outputs = [lines_of(guest, 4) for guest in clones]
    assert outputs[0] == outputs[1] == outputs[2]
    assert all("wrong" not in line for line in outputs[0])


def test_pages_of_one_clone_never_appear_in_another(saved: Callable[..., Path]) -> None:
    file = saved("ticker", "16", "0", "50", "0", "full", lines=2)
    with Chain.open(file) as chain:
        region = max(read_state(chain).regions, key=lambda region: region.end - region.start)
    pages = random.Random(3).sample(range(region.start, region.end, PAGE_SIZE), 24)
    with memvm.restore_clones(file, 4, stdout=subprocess.DEVNULL) as clones:
        before = {page: clones[0].read_memory(page, PAGE_SIZE) for page in pages[::2]}
        for number, guest in enumerate(clones):
            for page in pages[number::4]:
                guest.write_memory(page, bytes((number + 1,)) * PAGE_SIZE)
        for number, guest in enumerate(clones):
            for place, page in enumerate(pages):
                found = guest.read_memory(page, PAGE_SIZE)
                if place % 4 == number:
                    assert found == bytes((number + 1,)) * PAGE_SIZE
                else:
                    assert found == before.setdefault(page, found)
        with memvm.restore(file, stdout=subprocess.DEVNULL) as alone:
            assert before == {page: alone.read_memory(page, PAGE_SIZE) for page in before}


def test_clones_share_what_they_do_not_touch(saved: Callable[..., Path]) -> None:
    file = saved("ticker", "32", "0", "20", "0", "full", lines=2)
    with memvm.restore_clones(file, 3, stdout=subprocess.PIPE) as clones:
        for guest in clones:
            lines_of(guest, 3)
            status = guest.status()
            assert status.ram_touched < 1 * MIB
            assert status.ram_deferred > 31 * MIB


def test_a_clone_that_is_saved_is_a_whole_guest(saved: Callable[..., Path], tmp_path: Path) -> None:
    file, other = saved("patterns", "8", "0", "10", lines=3), tmp_path / "elsewhere" / "again.ckpt"
    other.parent.mkdir()
    with memvm.restore_clones(file, 3, stdout=subprocess.PIPE) as clones:
        file.unlink()  # nobody needs it any more
        clones[1].checkpoint(other)
        assert all("wrong" not in line for guest in clones for line in lines_of(guest, 3))
    with memvm.restore(other, stdout=subprocess.PIPE) as guest:
        assert all("wrong" not in line for line in lines_of(guest, 3))
        assert guest.status().clone == 0


def test_one_clone_that_ends_or_whose_manager_dies_leaves_the_others_alone(saved: Callable[..., Path]) -> None:
    with memvm.restore_clones(saved("counter", "10", "0", lines=2), 4, stdout=subprocess.PIPE) as clones:
        assert clones[0].kill().code == 137
        os.kill(clones[1].pid, signal.SIGKILL)
        assert "the manager died" in clones[1].wait().reason
        os.kill(clones[2].status().guest_pid, signal.SIGKILL)
        assert clones[2].wait().code == 137
        assert len(lines_of(clones[3], 5)) == 5
        assert [entry.name for entry in running()] == ["counter-4"]


def test_clones_end_by_themselves(saved: Callable[..., Path]) -> None:
    with memvm.restore_clones(saved("counter", "10", "20", calls=FIRST_LINES), 3, stdout=subprocess.PIPE) as clones:
        assert [ending.code for ending in clones.wait()] == [0, 0, 0]
        assert all(guest.stdout is not None and b"20" in guest.stdout.read() for guest in clones)


def test_the_command_marks_lines_and_ends_with_the_highest_status(
    saved: Callable[..., Path], memvm_cli: MemvmCli
) -> None:
    file = saved("counter", "20", "60", calls=FIRST_LINES)
    result = memvm_cli("restore", "--clones", "3", "--name", "c", file, code=0)
    for number in (1, 2, 3):
        mine = [line for line in result.text.splitlines() if line.startswith(f"[c-{number}] ")]
        assert len(mine) >= 30
    assert set(re.findall(r"^\[(.*?)\]", result.text, re.MULTILINE)) == {"c-1", "c-2", "c-3"}
    with memvm_cli.start("restore", "--clones", "3", "--name", "c", "--pause-after-calls", "9", file) as process:
        for name in ("c-1", "c-2", "c-3"):
            wait_for_state(name, RunState.PAUSED, memvm_cli.time_scale)
        memvm_cli("kill", "c-2", code=0)
        for name in ("c-1", "c-3"):
            memvm_cli("resume", name, code=0)
        out, err = process.communicate(timeout=PATIENCE * memvm_cli.time_scale)
    assert process.returncode == 137
    assert b"[c-2] memvm: the guest was ended by `memvm kill`\n" in err
    assert b"[c-3] " in out


def test_output_goes_to_files_if_asked_for(saved: Callable[..., Path], memvm_cli: MemvmCli, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    result = memvm_cli(
        "restore", "--clones", "2", "--output", logs, saved("counter", "10", "60", calls=FIRST_LINES), code=0
    )
    assert (result.out, result.err) == (b"", "")
    assert sorted(file.name for file in logs.iterdir()) == [
        *("counter-1.err", "counter-1.out", "counter-2.err", "counter-2.out")
    ]
    assert logs.joinpath("counter-1.out").read_text() == logs.joinpath("counter-2.out").read_text() != ""


def test_standard_input_is_empty(saved: Callable[..., Path], memvm_cli: MemvmCli) -> None:
    memvm_cli("restore", "--clones", "2", saved("kv", lines=0), stdin=b"dump\n", code=0)


def test_ps_says_which_clone_of_what(saved: Callable[..., Path], memvm_cli: MemvmCli) -> None:
    with memvm.restore_clones(saved("counter", "50", "0"), 2, name="two", stdout=subprocess.DEVNULL):
        text = memvm_cli("ps", code=0).text
        assert not list(location().glob("rehearsal*"))
    assert re.search(r"^two-1 .* counter\.ckpt, clone 1 of 2$", text, re.MULTILINE)
    assert re.search(r"^two-2 .* counter\.ckpt, clone 2 of 2$", text, re.MULTILINE)


def test_a_paused_clone_that_handles_signals_is_closed_at_once(saved: Callable[..., Path]) -> None:
    with memvm.restore_clones(saved("alarms", "2", "0"), 2, stdout=subprocess.DEVNULL) as clones:
        clones[1].pause()
    assert clones[0].wait().code == 3
    assert "was paused" in clones[1].wait().reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_parent_ends_all(
    saved: Callable[..., Path], memvm_cli: MemvmCli, number: signal.Signals
) -> None:
    with memvm_cli.start("restore", "--clones", "3", saved("counter", "20", "0")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        process.communicate(timeout=PATIENCE * memvm_cli.time_scale)
    assert process.returncode == 128 + number
    assert running() == []


def test_a_parent_that_is_killed_takes_the_managers_with_it(
    saved: Callable[..., Path], memvm_cli: MemvmCli, time_scale: float
) -> None:
    with memvm_cli.start("restore", "--clones", "3", saved("counter", "20", "0")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        wait_until(lambda: running() == [], time_scale)


def test_a_reader_that_goes_away_is_a_broken_pipe_to_the_clones(
    saved: Callable[..., Path], memvm_cli: MemvmCli
) -> None:
    with memvm_cli.start("restore", "--clones", "2", saved("counter", "5", "0")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(PATIENCE * memvm_cli.time_scale)
    assert process.returncode == 141


def test_a_damaged_file_is_one_error_and_starts_nothing(saved: Callable[..., Path], memvm_cli: MemvmCli) -> None:
    file = saved("ticker", "8", "0", "50", "0", "full", lines=2)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = memvm_cli("restore", "--clones", "5", file, code=65)
    assert result.out == b""
    assert result.err.count("memvm:") == 1
    with pytest.raises(memvm.CheckpointError):
        memvm.restore_clones(file, 5)


def test_a_name_that_is_taken_starts_nothing(saved: Callable[..., Path], memvm_cli: MemvmCli) -> None:
    file = saved("counter", "50", "0")
    with memvm.restore(file, name="c-3", stdout=subprocess.DEVNULL):
        result = memvm_cli("restore", "--clones", "4", "--name", "c", file, code=memvm.GuestStateError.exit_code)
        assert "a guest called 'c-3' is running already" in result.err
        with pytest.raises(memvm.GuestStateError):
            memvm.restore_clones(file, 4, name="c")
        assert [entry.name for entry in running()] == ["c-3"]


def test_without_a_name_free_ones_are_found(saved: Callable[..., Path]) -> None:
    file = saved("counter", "50", "0")
    with (
        memvm.restore_clones(file, 2, stdout=subprocess.DEVNULL) as first,
        memvm.restore_clones(file, 2, stdout=subprocess.DEVNULL) as second,
    ):
        assert [guest.name for guest in (*first, *second)] == [
            *("counter-1", "counter-2", "counter-2-1", "counter-2-2")
        ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clones", "0"], "0 clones at once"),
        (["--clones", "257"], "1 to 256"),
        (["--clones", "2", "--eager"], "--clones and --eager"),
        (["--output", "."], "--output is for --clones"),
        (["--clones", "2", "--name", "a b"], "cannot be called"),
    ],
)
def test_what_makes_no_sense_is_said(memvm_cli: MemvmCli, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in memvm_cli("restore", *arguments, tmp_path / "no.ckpt", code=64).err
