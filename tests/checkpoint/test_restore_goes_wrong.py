"""Restores of damaged and hostile files by real guests: an error where it belongs, and never a wrong byte."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import memvm
from memvm.checkpoint.restore import RestoreOptions, restore
from memvm.errors import CheckpointError
from memvm.machine.config import EngineChoice, RunOptions
from memvm.machine.layout import RAM_BASE
from memvm.manager.client import running as running_guests
from memvm.memory.pages import BAD
from memvm.units import PAGE_SIZE
from tests.checkpoint.lives import (
    PATIENCE,
    SCALE,
    Gate,
    Life,
    await_end,
    change_state,
    chunk_of,
    damage,
    look,
    restored,
    running,
)
from tests.checkpoint.parts import take_apart

PATTERNS = ("4", "0", "10", "0", "0", "plain")
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


@pytest.fixture(params=[EngineChoice.AUTO, EngineChoice.MPROTECT])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def saved_patterns(guests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of a guest that soon reads every page that it has."""
    folder = tmp_path_factory.mktemp("patterns")
    with running(folder / "life", guests["patterns"], *PATTERNS) as life:
        life.await_lines(1)
        life.save(folder / "a", live=False)  # nothing is active: a lazy restore defers every page
    return (folder / "a").read_bytes()


@pytest.fixture
def checkpoint(saved_patterns: bytes, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    path = tmp_path / "patterns.ckpt"
    path.write_bytes(saved_patterns)
    return path


def largest_region(path: Path) -> int:
    """The address of a page in the middle of the region with the most memory."""
    region = max(look(path).regions, key=lambda region: region.pages_data)
    return (region.start + region.end) // 2


def test_guest_meets_a_damaged_chunk(engine: str, checkpoint: Path, tmp_path: Path) -> None:
    chunk = chunk_of(checkpoint, largest_region(checkpoint))
    pages = damage(checkpoint, chunk)
    with restored(tmp_path / "life", checkpoint, engine=engine) as life:
        ending = life.guest.wait(PATIENCE * SCALE)
        assert ending.code == 135
        assert b"should be" not in life.output(), "the guest has seen no wrong byte"
        assert mentioned_pages(life.complaints()) >= {min(pages), max(pages)}
        assert f"chunk {chunk}: damaged" in life.complaints()
        assert mentioned_pages(ending.reason) & pages, ending.reason


def mentioned_pages(reason: str) -> set[int]:
    """The pages that a report names."""
    return {int(word) for word in reason.replace(",", " ").split() if word.isdigit()}


def test_guest_meets_a_damaged_chunk_after_everything_else_was_loaded(
    engine: str, guests: dict[str, Path], tmp_path: Path
) -> None:
    """It stays an error for as long as the guest lives."""
    path = tmp_path / "a"
    with memvm.Guest([guests["kv"]], ram="64M", engine=engine, **PIPES) as guest:
        for number in range(100):
            assert ask(guest, f"set key{number} " + f"{number} " * 4000) == "ok"
        guest.checkpoint(path)
    heap = next(region for region in look(path).regions if region.kind == "heap")
    # The heap's middle: values in the middle of the list, and nothing that another command needs.
    damage(path, chunk_of(path, heap.start + heap.size // 2))
    with memvm.restore(path, engine=engine, **PIPES) as guest:
        while guest.status().ram_deferred:
            assert ask(guest, "count") == "count 100"
        with pytest.raises(memvm.BadPage):
            guest.read_memory(heap.start, heap.size)
        with pytest.raises(memvm.SaveError, match="could not be verified"):
            guest.checkpoint(tmp_path / "b")
        values = [ask(guest, f"get key{number}") for number in (0, 99)]
        assert values == [f"value {f'{number} ' * 4000}" for number in (0, 99)]
        for number in range(100):
            answer = ask(guest, f"get key{number}")
            assert answer in ("", f"value {f'{number} ' * 4000}"), "what comes is right, or nothing comes"
            if not answer:
                break
        assert guest.wait(PATIENCE * SCALE).code == 135


def test_bad_pages_that_are_thrown_away_are_zero(
    engine: str, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As any memory is that the guest gives back and gets again."""
    pages = damage(checkpoint, chunk_of(checkpoint, largest_region(checkpoint)))
    options = RunOptions(name="patterns", engine=EngineChoice(engine))
    machine = restore(checkpoint, options, RestoreOptions(), lambda done, total: None)
    try:
        assert machine.ram.loader is not None
        for page in pages:
            machine.ram.loader.bring(page, 1)
            assert machine.ram.flags[page] & BAD
            machine.ram.discard(page, 1)
        machine.start()
        ending = machine.wait(PATIENCE * SCALE)
    finally:
        machine.close()
    assert ending is not None and ending.code == 1, "the guest itself finds them changed"
    # The first byte that is wrong: one in 256 of the guest's patterns begins with zero.
    assert re.search(r"byte \d is 00, and should be", capfd.readouterr().out)


def ask(guest: memvm.Guest, line: str) -> str:
    """The guest's answer to a line; empty if it has ended."""
    assert guest.stdin is not None and guest.stdout is not None
    with suppress(BrokenPipeError):
        guest.stdin.write(line.encode() + b"\n")
        guest.stdin.flush()
    return guest.stdout.readline().decode().rstrip("\n")


def test_hypercall_meets_a_damaged_chunk(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    """The manager is the first to touch the page: where a read puts its data."""
    path = tmp_path / "a"
    with memvm.Guest([guests["kv"]], ram="64M", engine=engine, **PIPES) as guest:
        assert ask(guest, "set colour blue") == "ok"
        while True:
            guest.checkpoint(path)
            if (call := look(path).blocked) is not None and not call.answered:
                break
    assert call.name == "read"
    pages = damage(path, chunk_of(path, call.arguments[1]))
    with memvm.restore(path, engine=engine, **PIPES) as guest:
        assert ask(guest, "get colour") == ""
        ending = guest.wait(PATIENCE * SCALE)
    assert ending.code == 135
    assert mentioned_pages(ending.reason) & pages, ending.reason


def test_damaged_chunk_that_nobody_touches(engine: str, guests: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a"
    with running(tmp_path / "1", guests["ticker"], "8", "1", "4", "250", engine=engine, pause_after_calls=1) as life:
        life.stand_at_line(5)
        life.save(path, live=False)  # so that its pages are stored in their order
    region = max(look(path).regions, key=lambda region: region.pages_data)
    pages = damage(path, chunk_of(path, region.start + 100 * PAGE_SIZE))  # cold: only the end is used
    with restored(tmp_path / "2", path, engine=engine) as life:
        life.await_complaint("could not be verified")
        assert life.guest.wait(PATIENCE * SCALE).code == 0
        assert life.output().splitlines()[-1].startswith(b"tick 250 ")
        assert f"pages {min(pages)} to {max(pages)} of guest RAM" in life.complaints()
        assert life.complaints().count("could not be verified") == 1


def test_eager_restore_of_a_damaged_file_starts_nothing(checkpoint: Path) -> None:
    chunk = chunk_of(checkpoint, largest_region(checkpoint))
    damage(checkpoint, chunk)
    with pytest.raises(CheckpointError, match=f"patterns.ckpt: chunk {chunk}: damaged") as raised:
        memvm.restore(checkpoint, lazy=False)
    assert raised.value.hint
    assert running_guests() == []


@pytest.mark.parametrize("lazy", [True, False])
def test_cut_file_starts_nothing(lazy: bool, checkpoint: Path) -> None:
    with open(checkpoint, "r+b") as file:
        file.truncate(checkpoint.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="incomplete"):
        memvm.restore(checkpoint, lazy=lazy)
    assert running_guests() == []


def test_file_is_cut_while_the_guest_is_being_restored(
    engine: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate")
    gate.shut()
    monkeypatch.setenv("MEMVM_FAULTS", f"load.chunks=hold={gate}")
    with restored(tmp_path / "life", checkpoint, engine=engine) as life:
        with open(checkpoint, "r+b") as file:
            file.truncate(4096)
        gate.open()
        assert life.guest.wait(PATIENCE * SCALE).code == 135
        assert "cut while it was being read" in life.complaints()
        assert b"should be" not in life.output()


def test_file_may_be_replaced_and_removed_meanwhile(
    engine: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate")
    gate.shut()
    monkeypatch.setenv("MEMVM_FAULTS", f"load.chunks=hold={gate}")
    with restored(tmp_path / "life", checkpoint, engine=engine) as life:
        checkpoint.unlink()
        checkpoint.write_bytes(b"something else")
        gate.open()
        life.await_lines(2)
        assert life.complaints() == ""


@pytest.fixture
def slow_life(engine: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    """A guest that is still being loaded, slowly."""
    gate = Gate(tmp_path / "gate")
    gate.shut()
    monkeypatch.setenv("MEMVM_FAULTS", f"load.chunks=hold={gate},load.read=stall=0.05")
    with restored(tmp_path / "life", checkpoint, engine=engine) as life:
        assert life.guest.status().ram_deferred > 0
        gate.open()
        yield life


def test_guest_is_killed_while_it_is_being_restored(slow_life: Life) -> None:
    ending = slow_life.guest.kill()
    assert (ending.code, ending.reason) == (137, "killed by the program that started it")
    assert slow_life.complaints() == ""


def test_manager_is_killed_while_a_guest_is_being_restored(slow_life: Life) -> None:
    pid = slow_life.guest.status().guest_pid
    slow_life.guest._manager.process.kill()
    assert slow_life.guest.wait(PATIENCE * SCALE).code == 137
    await_end(pid)
    assert running_guests() == []


Fields = dict[str, Any]


def setting(name: str, value: Any) -> Callable[[Fields], object]:
    return lambda fields: fields.update({name: value})


def register(name: str, value: Any) -> Callable[[Fields], object]:
    return lambda fields: fields["registers"].update({name: value})


def region(index: int, value: Any) -> Callable[[Fields], object]:
    return lambda fields: fields["regions"][0].__setitem__(index, value)


NONSENSE: dict[str, Callable[[Fields], object]] = {
    "no registers": lambda fields: fields.pop("registers"),
    "a register that is text": register("rip", "0x401000"),
    "a register that is too large": register("rip", 1 << 64),
    "a register that is true": register("rax", True),
    "no XSAVE area": setting("xstate", ""),
    "an XSAVE area that is no base64": setting("xstate", "?" * 4000),
    "an XSAVE area that is too large": setting("xstate", "A" * (1 << 20)),
    "a region outside RAM": region(0, 0),
    "a region of no size": lambda fields: fields["regions"][0].__setitem__(1, fields["regions"][0][0]),
    "a region that is not aligned": lambda fields: fields["regions"][0].__setitem__(0, RAM_BASE + 1),
    "a region of another kind": region(3, "kernel"),
    "a region of the kind of a list": region(3, []),
    "a region with strange rights": region(2, 8),
    "overlapping regions": lambda fields: fields["regions"].insert(0, fields["regions"][0]),
    "a heap outside RAM": setting("heap", [0, 1 << 60]),
    "a heap that ends before it starts": setting("heap", [RAM_BASE + PAGE_SIZE, RAM_BASE]),
    "a stream that there is not": setting("descriptors", [[0, 3, False]]),
    "a negative descriptor": setting("descriptors", [[-1, 0, False]]),
    "two streams": lambda fields: fields["streams"].pop(),
    "a call with seven arguments": setting("blocked", {"number": 0, "arguments": [0] * 7}),
    "a call that is a number": setting("blocked", 1),
    "a clock before the beginning": setting("monotonic", -1),
    "a clock that is a float": setting("monotonic", 1e300),
    "a clock at the end of time": setting("monotonic", (1 << 63) - 1),
    "a program that is a number": setting("program", 1),
    "a signal that there is not": setting("actions", [[65, "A" * 43 + "="]]),
    "an action that is too short": setting("actions", [[10, "AAAA"]]),
    "a long name": setting("thread_name", "A" * 400),
    "everything nothing": lambda fields: fields.update(dict.fromkeys(fields)),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_state_that_makes_no_sense(what: str, checkpoint: Path, tmp_path: Path) -> None:
    change_state(checkpoint, tmp_path / "hostile", NONSENSE[what])
    with pytest.raises(CheckpointError, match="hostile: the guest's state makes no sense"):
        look(tmp_path / "hostile")


@pytest.mark.parametrize(
    "state", [b"", b"null", b"[]", b"[" * 100_000, b'{"registers": ' * 100_000, b"\xff\xfe", b"1" * 5000]
)
def test_state_that_is_no_object(state: bytes, checkpoint: Path) -> None:
    import zstandard

    parts = take_apart(checkpoint)
    parts.state_frame, parts.state_length = zstandard.ZstdCompressor().compress(state), len(state)
    checkpoint.write_bytes(parts.assemble())
    for lazy in (True, False):
        with pytest.raises(CheckpointError, match="makes no sense"):
            memvm.restore(checkpoint, lazy=lazy)


IMPOSSIBLE: dict[str, Callable[[Fields], object]] = {
    "a segment register of the kernel's": register("ds", 0x10),
    "a base address that no program has": register("fs_base", 1 << 63),
    "an XSAVE header with reserved bits": lambda fields: fields.update(
        xstate=changed_base64(fields["xstate"], 512 + 16, b"\xff" * 48)
    ),
    "XSAVE features that no processor has": lambda fields: fields.update(
        xstate=changed_base64(fields["xstate"], 512, b"\xff" * 8)
    ),
    "an MXCSR with reserved bits": lambda fields: fields.update(
        xstate=changed_base64(fields["xstate"], 24, b"\xff" * 4)
    ),
}


def changed_base64(text: str, offset: int, new: bytes) -> str:
    from base64 import b64decode, b64encode

    data = bytearray(b64decode(text))
    data[offset : offset + len(new)] = new
    return b64encode(data).decode()


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_state_that_no_processor_takes(what: str, checkpoint: Path, tmp_path: Path) -> None:
    change_state(checkpoint, tmp_path / "hostile", IMPOSSIBLE[what])
    with pytest.raises(CheckpointError):
        memvm.restore(tmp_path / "hostile")
    assert running_guests() == []


HARMFUL: dict[str, tuple[Callable[[Fields], object], set[int]]] = {
    "it goes on in the kernel": (register("rip", 0xFFFF_FFFF_8000_0000), {139}),
    "it goes on at an address that nobody has": (register("rip", 0x8000_0000_0000_0000), {139}),
    "it goes on at the stub": (register("rip", 0x10_0000), {139, 133}),
    "its stack is nowhere": (register("rsp", 8), {139}),
    "it waits in a call that there is not": (
        setting("blocked", {"number": 4095, "arguments": [0] * 6, "deadline": 0, "progress": 0, "answer": None}),
        {0, 143},
    ),
    "it is single-stepped": (lambda fields: fields["registers"].__setitem__("eflags", 0x302), {133}),
    "its program is a device that never ends": (
        lambda fields: (fields.update(program="L2Rldi96ZXJv"), fields["registers"].update(rip=0)),
        {139},
    ),
    "its program's name has a null byte": (
        lambda fields: (fields.update(program="AAAA"), fields["registers"].update(rip=0)),
        {139},
    ),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_state_that_harms_only_the_guest(what: str, engine: str, checkpoint: Path, tmp_path: Path) -> None:
    change, codes = HARMFUL[what]
    change_state(checkpoint, tmp_path / "hostile", change)
    with restored(tmp_path / "life", tmp_path / "hostile", engine=engine, time_limit=20) as life:
        if codes == {0, 143}:
            life.await_lines(2)
            return
        ending = life.guest.wait(60 * SCALE)
        assert ending.code in codes, ending
        assert "internal error" not in ending.reason


def test_inspection_of_hostile_names_is_text(checkpoint: Path, tmp_path: Path) -> None:
    change_state(checkpoint, tmp_path / "hostile", setting("argv", ["//4bWzJK", "AA=="]))
    found = look(tmp_path / "hostile")
    assert found.arguments == ("\\xff\\xfe\x1b[2J", "\0")
    assert json.loads(json.dumps(found.arguments)) == list(found.arguments)
