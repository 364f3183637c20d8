"""The guest's state as JSON: what was written comes back, and whatever else it holds is one clear error."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvm.errors import CheckpointError
from memvm.linux import ptrace
from memvm.machine.clocks import Clock, thread_clock
from memvm.machine.files_state import FilesState, NodeState, OpenState
from memvm.machine.hypercalls.table import Call
from memvm.machine.launched import Launched
from memvm.machine.layout import RAM_BASE
from memvm.machine.settings import locked_settings
from memvm.machine.shared_files import SavedMapping
from memvm.machine.signals import Signal, make_signal
from memvm.machine.space import Region, RegionKind
from memvm.machine.state import GuestState, StreamState
from memvm.machine.thread import MOST_THREADS
from memvm.machine.thread_state import ThreadState
from memvm.machine.timers import Timer
from memvm.machine.vcpu import VcpuState
from memvm.machine.waiting_state import (
    EpollState,
    EventState,
    InterestState,
    MessageState,
    SignalsState,
    SocketState,
    TimerState,
)
from memvm.memory.protection import Prot
from memvm.units import MIB, PAGE_SIZE

RAM_SIZE = 64 * MIB
U64 = (1 << 64) - 1
I64 = (1 << 63) - 1

u64 = st.integers(0, U64)
i64 = st.integers(0, I64)
times = st.integers(0, I64 // 2)
descriptors = st.integers(0, 1023)
texts = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"").decode(errors="surrogateescape"))


@st.composite
def regions(draw: st.DrawFn) -> tuple[Region, ...]:
    borders = draw(st.lists(st.integers(0, RAM_SIZE // PAGE_SIZE), unique=True, max_size=12).map(sorted))
    return tuple(
        Region(
            RAM_BASE + first * PAGE_SIZE,
            RAM_BASE + last * PAGE_SIZE,
            Prot(draw(st.integers(0, 7))),
            draw(st.sampled_from(RegionKind)),
        )
        for first, last in zip(borders[::2], borders[1::2], strict=False)
    )


@st.composite
def calls(draw: st.DrawFn) -> Call:
    call = Call(draw(st.integers(0, (1 << 33) - 1)), tuple(draw(st.lists(u64, min_size=6, max_size=6))))
    call.deadline = draw(st.none() | i64)
    call.progress = draw(i64)
    call.answer = draw(st.none() | st.integers(-4095, I64))
    call.place = draw(st.none() | st.tuples(u64, st.integers(0, (1 << 32) - 1), i64))
    call.woken = draw(st.booleans())
    return call


SAMPLE_FILES = FilesState(
    views=(("ro", "/usr", "/"), ("rw", "/home/data", "/data")),
    cwd=b"/data/\xff",
    hostname="host",
    cpus=2,
    boot_id=bytes(range(16)),
    pipes=3,
    next_inode=9,
    nodes=(
        NodeState(0o041777, 1000, 1000, 1, 2, (1, 2, 3), entries=((b"a", 1), (b"b", 1), (b"gone", -1), (b"l", 2))),
        NodeState(0o100644, 1000, 1000, 1, 3, (1, 2, 3), content=b"\0contents"),
        NodeState(0o120777, 1000, 1000, 1, 4, (1, 2, 3), content=b"a/../b"),
    ),
    layers=((b"/tmp", 0),),
    opened=(
        OpenState("memory", b"/tmp/a", 2, False, position=3, number=1),
        OpenState("host", b"/usr/file", 0, False, position=4, facts=(5, 6)),
        OpenState("pipe", b"", 0, True, number=1, content=b"inside"),
        OpenState("directory", b"/tmp", 0o200000, False, position=1, names=((b"a", 3, 0o100000),)),
        OpenState("device", b"/dev/null", 1, False),
        OpenState("event", b"", 2, True, waiting=EventState(7, True)),
        OpenState("timer", b"", 2, True, waiting=TimerState(0, 1, 5, 6, True, 2)),
        OpenState("signals", b"", 2, False, waiting=SignalsState(1 << 9)),
        OpenState(
            "epoll",
            b"",
            2,
            False,
            waiting=EpollState((InterestState(5, 8, 1, U64), InterestState(0, 0, 0x80000001, 3)), (1, 0)),
        ),
        OpenState(
            "socket",
            b"",
            2,
            False,
            waiting=SocketState(
                5, 6, 1, 104, False, (4608, 212992), (0, 9), ((16, 1),), (MessageState(b"text", 2, (8, 12)),)
            ),
        ),
        OpenState("socket", b"", 2, False, waiting=SocketState(5, 7, 0, 0, True, (0, 0), (0, 0), (), ())),
    ),
)


infos = st.binary(max_size=40).map(lambda data: data.ljust(128, b"\0"))
signals = st.lists(st.builds(Signal, st.integers(1, 64), infos), max_size=3).map(tuple)
clocks = st.sampled_from(Clock) | st.integers(1, 1 << 30).map(thread_clock)
timers = st.builds(
    Timer, clocks, st.integers(0, 64), i64, u64, st.none() | i64, st.integers(0, I64 // 2), clocks, st.integers(0, I64)
)


def threads(tid: int) -> st.SearchStrategy[ThreadState]:
    return st.builds(
        ThreadState,
        vcpu=st.builds(
            VcpuState,
            registers=st.fixed_dictionaries(dict.fromkeys(ptrace.REGISTERS, u64)),
            xstate=st.binary(min_size=576, max_size=700),
        ),
        tid=st.just(tid),
        signal_mask=u64,
        mask_afterwards=st.none() | u64,
        waiting_signals=signals,
        alternate_stack=st.just(b"") | st.binary(min_size=24, max_size=24),
        blocked=st.none() | calls(),
        clear_child_tid=u64,
        robust_list=st.tuples(u64, u64),
        name=st.binary(max_size=15),
        cpu_time=times,
    )


MAPPINGS = st.builds(
    lambda borders, page, opened: SavedMapping(
        RAM_BASE + min(borders) * PAGE_SIZE, RAM_BASE + max(borders) * PAGE_SIZE, page * PAGE_SIZE, opened
    ),
    st.lists(st.integers(0, RAM_SIZE // PAGE_SIZE), min_size=2, max_size=2, unique=True),
    st.integers(0, 1 << 50),
    st.sampled_from([3, 4]),  # SAMPLE_FILES' regular files
)


def states() -> st.SearchStrategy[GuestState]:
    return states_without_files() | st.builds(
        lambda state, shared: state._replace(files=SAMPLE_FILES, shared=tuple(shared)),
        states_without_files(),
        st.lists(MAPPINGS, max_size=3),
    )


def states_without_files() -> st.SearchStrategy[GuestState]:
    addresses = st.integers(RAM_BASE, RAM_BASE + RAM_SIZE)
    return st.builds(
        GuestState,
        program=texts,
        argv=st.lists(texts, max_size=4).map(tuple),
        image_bias=st.integers(0, RAM_BASE + RAM_SIZE),
        regions=regions(),
        heap=st.tuples(addresses, addresses).map(lambda pair: (min(pair), max(pair))),
        threads=st.integers(1, 3).flatmap(lambda count: st.tuples(*map(threads, range(1000, 1000 + count)))),
        monotonic=times,
        cpu_time=times,
        saved_at=i64,
        actions=st.dictionaries(st.integers(1, 64), st.binary(min_size=32, max_size=32), max_size=4),
        waiting_signals=signals,
        timers=st.dictionaries(st.integers(-3, 1023), timers, max_size=3),
        descriptors=st.lists(st.tuples(descriptors, st.integers(0, 2), st.booleans()), max_size=4).map(tuple),
        streams=st.tuples(*[st.builds(StreamState, st.booleans(), st.none() | i64, u64, u64)] * 3),
        umask=st.integers(0, 0o777),
        generation=i64,
        files=st.just(FilesState()),
        shared=st.just(()),
        launched=st.none() | st.builds(lambda saves: launched_with(saves).to_fields(), st.integers(0, 1 << 20)),
    )


def launched_with(saves: int) -> Launched:
    launched = Launched(locked_settings())
    launched.saves = saves
    launched.came_from(bytes(16), bytes(32))
    return launched


def read(raw: bytes) -> GuestState:
    return GuestState.from_json(raw, RAM_BASE, RAM_SIZE, "a file")


@given(states())
@settings(max_examples=100, deadline=None)
def test_what_was_written_comes_back(state: GuestState) -> None:
    assert read(state.to_json()) == state


def test_a_call_that_goes_on_changes_no_state_that_was_captured() -> None:
    call = Call(1, (1, 2, 3, 4, 5, 6))
    call.deadline, call.progress, call.answer = 7, 8, None
    then = call.as_now()
    call.progress, call.answer = 9, 9
    assert (then.number, then.arguments) == (call.number, call.arguments)
    assert (then.deadline, then.progress, then.answer) == (7, 8, None)


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """A state as JSON has it, with something in every field."""
    state = GuestState(
        program="/bin/program",
        argv=("program", "-x"),
        image_bias=0x400000,
        regions=(
            Region(RAM_BASE, RAM_BASE + PAGE_SIZE, Prot.READ, RegionKind.IMAGE),
            Region(RAM_BASE + 2 * PAGE_SIZE, RAM_BASE + 4 * PAGE_SIZE, Prot.READ, RegionKind.STACK),
        ),
        heap=(RAM_BASE + 5 * PAGE_SIZE, RAM_BASE + 5 * PAGE_SIZE + 7),
        threads=(
            ThreadState(
                vcpu=VcpuState(dict.fromkeys(ptrace.REGISTERS, 1), bytes(832)),
                tid=1000,
                signal_mask=4,
                mask_afterwards=5,
                waiting_signals=(make_signal(10),),
                alternate_stack=bytes(24),
                blocked=Call(35, (1, 2, 3, 4, 5, 6)),
                clear_child_tid=5,
                robust_list=(6, 24),
                name=b"name",
            ),
        ),
        monotonic=1,
        cpu_time=2,
        saved_at=3,
        actions={10: bytes(32)},
        waiting_signals=(make_signal(12),),
        timers={-1: Timer(Clock.MONOTONIC, 14, due=7), 0: Timer(Clock.REALTIME, 10)},
        descriptors=((0, 0, False), (5, 2, True)),
        streams=(StreamState(False, 7, 8, 9), StreamState(True, None, 0, 0), StreamState(False, None, 0, 0)),
        umask=0o22,
        generation=1,
        files=SAMPLE_FILES,
        shared=(SavedMapping(RAM_BASE + 2 * PAGE_SIZE, RAM_BASE + 4 * PAGE_SIZE, 8 * PAGE_SIZE, 4),),
    )
    fields: dict[str, Any] = json.loads(state.to_json())
    assert read(json.dumps(fields).encode()) == state
    return fields


def refused(fields: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(fields if isinstance(fields, bytes) else json.dumps(fields).encode())
    assert caught.value.hint
    return caught.value.message


NEWER = {"tid", "mask_afterwards", "waiting_signals", "shared_signals", "timers", "threads", "files", "launched"} | {
    "thread_cpu_time",
    "shared",
}
"""What the first checkpoints do not have."""


def test_a_file_without_the_newer_fields_is_read(good: dict[str, Any]) -> None:
    older = {name: value for name, value in good.items() if name not in NEWER}
    state = read(json.dumps(older | {"descriptors": [[0, 0, False], [5, 2, True]]}).encode())
    assert (state.threads[0].tid, state.threads[0].waiting_signals, state.waiting_signals) == (1000, (), ())
    assert (state.timers, len(state.threads), state.files) == ({}, 1, FilesState())


def test_every_older_field_is_needed(good: dict[str, Any]) -> None:
    for name in good.keys() - NEWER:
        assert f"{name} is missing" in refused({key: value for key, value in good.items() if key != name})
    for name in ptrace.REGISTERS:
        lacking = {key: value for key, value in good["registers"].items() if key != name}
        assert f"{name} is missing" in refused(good | {"registers": lacking})


END = RAM_BASE + RAM_SIZE
MAPPING = [RAM_BASE, RAM_BASE + PAGE_SIZE, 0, 3]
TIMER = [1, 14, 0, 0, None, 0, 1, 0]
STREAM = [False, None, 0, 0]
CALL = {"number": 1, "arguments": [0] * 6, "deadline": None, "progress": 0, "answer": None}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("program", [1, "not base64!", "é", "A" * 100_000]),
        ("argv", [{}, ["a", 1], [None]]),
        ("image_bias", [-1, END + 1, 1.0, "1", None, True]),
        ("regions", [1, [1], [[RAM_BASE, RAM_BASE + 4096, 1]], [[RAM_BASE, RAM_BASE + 4096, 1, "attic"]]]),
        ("regions", [[[RAM_BASE, RAM_BASE, 1, "heap"]], [[RAM_BASE + 1, RAM_BASE + 4096, 1, "heap"]]]),
        ("regions", [[[RAM_BASE - 4096, RAM_BASE, 1, "heap"]], [[END, END + 4096, 1, "heap"]]]),
        ("regions", [[[RAM_BASE, RAM_BASE + 4096, 8, "heap"]], [[RAM_BASE, RAM_BASE + 4096, 1, []]]]),
        ("regions", [[[RAM_BASE, RAM_BASE + 8192, 1, "heap"], [RAM_BASE + 4096, RAM_BASE + 8192, 1, "heap"]]]),
        ("heap", [[RAM_BASE], [RAM_BASE + 1, RAM_BASE], [0, END], [RAM_BASE, END + 1], [RAM_BASE] * 3]),
        ("registers", [[], {}, 7]),
        ("xstate", ["", "A" * 700, 7, "A" * 100_000]),
        ("monotonic", [-1, I64, 0.5]),
        ("cpu_time", [-1, I64, "x"]),
        ("saved_at", [-1, I64 + 1]),
        ("actions", [[[0, ""]], [[65, ""]], [[1, "AAAA"]], [[1]], [[1, None]] * 65]),
        ("signal_mask", [-1, U64 + 1]),
        ("alternate_stack", ["A" * 100, "AAAA", 1]),
        (
            "descriptors",
            [[[1024, 0, False]], [[-1, 0, False]], [[0, 3 + len(SAMPLE_FILES.opened), False]], [[0, 0, 1]], [[0, 0]]],
        ),
        ("streams", [[], [STREAM] * 2, [STREAM] * 4, [[1, None, 0, 0]] * 3, [[False, -1, 0, 0]] * 3]),
        ("blocked", [1, [], {}, CALL | {"arguments": [0] * 5}, CALL | {"arguments": [0] * 7}]),
        ("blocked", [CALL | {"number": 1 << 33}, CALL | {"deadline": -1}, CALL | {"progress": -1}]),
        ("blocked", [CALL | {"answer": -4096}, CALL | {"answer": I64 + 1}, CALL | {"arguments": [U64 + 1] * 6}]),
        ("blocked", [CALL | {"place": [1, 2]}, CALL | {"place": [1, 1 << 32, 3]}, CALL | {"woken": 1}]),
        ("umask", [0o1000, -1]),
        ("clear_child_tid", [U64 + 1, -1]),
        ("robust_list", [[], [1], [1, 2, 3], [1, -1]]),
        ("thread_name", ["A" * 24, None]),
        ("generation", [-1, I64 + 1]),
        ("tid", [0, 1 << 30, None]),
        ("mask_afterwards", [-1, U64 + 1, "1"]),
        ("waiting_signals", [1, [[0, ""]], [[65, ""]], [[1, "A" * 200]], [[1]], [[1, ""]] * 1025]),
        ("shared_signals", [1, [[0, ""]], [[65, ""]], [[1, "A" * 200]], [[1]], [[1, ""]] * 1025]),
        ("timers", [1, [[-4, *TIMER]], [[1024, *TIMER]], [[0, 77, *TIMER[1:]]], [TIMER], [[0, 0, 65, *TIMER[2:]]]]),
        ("threads", [1, [1], [{}], [{}] * MOST_THREADS]),
        (
            "shared",
            [1, [1], [[*MAPPING[:3], 2]], [[*MAPPING[:3], 5]], [[*MAPPING[:2], 1, 3]], [[*MAPPING[:2], -4096, 3]]],
        ),
        ("shared", [[[RAM_BASE, RAM_BASE, 0, 3]], [[RAM_BASE - 4096, *MAPPING[1:]]], [[RAM_BASE, END + 4096, 0, 3]]]),
    ],
)
def test_every_field_has_its_bounds(name: str, values: list[Any], good: dict[str, Any]) -> None:
    for value in values:
        assert "a file" in refused(good | {name: value}), value


NODE = [0o100644, 0, 0, 1, 3, [1, 2, 3], "", [], True]
FOLDER = [0o040755, 0, 0, 1, 3, [1, 2, 3], "", [], True]
OPEN = ["host", "L2E=", 0, False, 0, 0, [0, 0], "", None]
NAME, SLASH, DOTS = "YQ==", "L2E=", "Li4="
SOCKET = [1, 6, 0, 0, False, [0, 0], [0, 0], [], []]


def awaited(kind: str, fields: Any) -> list[Any]:
    return [kind, "", 2, False, 0, 0, [0, 0], "", None, fields]


def each(kind: str, *fields: Any) -> list[Any]:
    """Lists with one thing each that is waited for."""
    return [[awaited(kind, one)] for one in fields]


def end(number: int, kind: int = 1, messages: Any = ()) -> list[Any]:
    return awaited("socket", [kind, number, *SOCKET[2:8], list(messages)])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("views", [[1], [["ro", "/a"]], [["rx", "/a", "/a"]], [["ro", "a", "/a"]], [["ro", "/a", "/../a"]]]),
        ("cwd", [1, "", "YQ==", "L2EvLi4vYg=="]),
        ("hostname", [1, "x" * 65, "a\0"]),
        ("cpus", [0, 65, 1.0]),
        ("boot_id", ["", "AAAA"]),
        ("pipes", [-1]),
        ("next_inode", [-1, "x"]),
        ("nodes", [[NODE[:-1]], [[0o010644, *NODE[1:]]], [[*NODE[:5], [1, 2], *NODE[6:]]], [[*NODE[:-1], 1]]]),
        ("nodes", [[[*FOLDER[:7], [[NAME, 1]], True]], [[*FOLDER[:7], [[NAME, -2]], True]]]),
        ("nodes", [[[*FOLDER[:7], [[SLASH, 0]], True]], [[*FOLDER[:7], [[DOTS, 0]], True]]]),
        ("nodes", [[[*FOLDER[:7], [[NAME, 0]], True]]]),
        ("nodes", [[[*NODE[:7], [[NAME, 0]], True]], [[*FOLDER[:6], NAME, [], True]]]),
        ("nodes", [[[0o120777, *NODE[1:]]], [[0o120777, *NODE[1:6], "AGE=", [], True]]]),
        ("layers", [[["L3RtcA==", 1]], [["L3RtcA==", 9]], [["L3RtcA==", 0], ["L2E=", 0]], [["L3RtcA==", -1]]]),
        ("opened", [[OPEN[:-1]], [["film", *OPEN[1:]]], [[OPEN[0], NAME, *OPEN[2:]]], [["memory", *OPEN[1:]]]]),
        ("opened", [[[*OPEN[:2], -1, *OPEN[3:]]], [[*OPEN[:6], [0], *OPEN[7:]]], [[*OPEN[:8], [[NAME, 1]]]]]),
        ("opened", each("event", [], [U64, True], [1, 2], None, {})),
        ("opened", [[awaited("event", [1, True])[:-1]], [[*OPEN, [1, True]]]]),
        (
            "opened",
            [[awaited("timer", [1, 1, None, 0, False, 0][:-1])], [awaited("timer", [77, 1, None, 0, False, 0])]],
        ),
        ("opened", each("timer", [1, 1, -1, 0, False, 0], [1, 1, None, I64, False, 0])),
        ("opened", each("signals", [], [-1], [U64 + 1], 5)),
        ("opened", each("epoll", [[]], [[[1, 0, 1]], []], [[[1024, 0, 1, 0]], []])),
        ("opened", each("epoll", [[[1, 4, 1, 0]], []], [[[1, 0, 1 << 32, 0]], []])),
        ("opened", each("epoll", [[[1, 0, 1, 0]], [1]], [[], [0]], [[[1, 0, 1, 0]], [-1]])),
        ("opened", [[awaited("socket", [*SOCKET[:at], -1, *SOCKET[at + 1 :]])] for at in range(9)]),
        ("opened", [[end(6, 3)], [end(6), end(6)], [end(6, 1), end(7, 2)], [end(6, 1, [["", 0, [4]]])]]),
        ("opened", [[end(6, 1, [["", 0, [0] * 254]])], [end(6, 1, [["", 1 << 20, []]])], [end(6, 1, [1] * 1025)]]),
    ],
)
def test_every_field_of_its_files_has_its_bounds(name: str, values: list[Any], good: dict[str, Any]) -> None:
    for value in values:
        assert "a file" in refused(good | {"files": good["files"] | {name: value}}), value


MEMORY = ["memory", *OPEN[1:]]
WRITE_ONLY = [*MEMORY[:2], 1, *MEMORY[3:]]
PIPE = ["pipe", *OPEN[1:]]


@pytest.mark.parametrize(
    ("mapping", "opened"),
    [
        ([RAM_BASE, RAM_BASE + 4096, 0], MEMORY),
        ([RAM_BASE, RAM_BASE, 0, 3], MEMORY),
        ([RAM_BASE - 4096, RAM_BASE + 4096, 0, 3], MEMORY),
        ([RAM_BASE, END + 4096, 0, 3], MEMORY),
        ([RAM_BASE + 1, RAM_BASE + 4096, 0, 3], MEMORY),
        ([RAM_BASE, RAM_BASE + 4096, 100, 3], MEMORY),
        ([RAM_BASE, RAM_BASE + 4096, -4096, 3], MEMORY),
        ([RAM_BASE, RAM_BASE + 4096, 0, 2], MEMORY),
        ([RAM_BASE, RAM_BASE + 4096, 0, 4], MEMORY),
        ([RAM_BASE, RAM_BASE + 4096, 0, 3], WRITE_ONLY),
        ([RAM_BASE, RAM_BASE + 4096, 0, 3], PIPE),
    ],
)
def test_a_shared_mapping_is_of_pages_and_of_an_open_file(
    mapping: list[int], opened: list[Any], good: dict[str, Any]
) -> None:
    files = good["files"] | {"nodes": [NODE], "layers": [], "opened": [opened]}
    whole = good | {"files": files, "shared": [[RAM_BASE, RAM_BASE + 4096, 0, 3]]}
    if opened is MEMORY:
        assert read(json.dumps(whole).encode()).shared == ((RAM_BASE, RAM_BASE + 4096, 0, 3),)
    assert any(word in refused(whole | {"shared": [mapping]}) for word in ("mapping", "open file"))


def test_a_state_without_files_is_that_of_an_older_version(good: dict[str, Any]) -> None:
    older = {name: value for name, value in good.items() if name not in ("files", "shared")} | {
        "descriptors": [[0, 2, False]]
    }
    assert read(json.dumps(older).encode()).files == FilesState()


def test_a_state_without_a_launch_is_that_of_an_older_version(good: dict[str, Any]) -> None:
    older = {name: value for name, value in good.items() if name != "launched"}
    assert read(json.dumps(older).encode()).launched is None


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"umask":' + b"9" * 5000 + b"}", b"NaN"]
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    refused(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(data=st.data(), value=JSON)
@settings(max_examples=200, deadline=None)
def test_any_json_anywhere_is_taken_or_refused(data: st.DataObject, value: Any, good: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(good))
    place, key = changed, data.draw(st.sampled_from(sorted(changed)))
    while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = value
    try:
        state = read(json.dumps(changed).encode())
    except CheckpointError:
        return
    assert read(state.to_json()) == state


def test_damaged_bytes_are_taken_or_refused(good: dict[str, Any]) -> None:
    chance = random.Random(1)
    whole = json.dumps(good).encode()
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            read(bytes(raw[: chance.randrange(len(raw))] if chance.random() < 0.2 else raw))
        except CheckpointError:
            continue
