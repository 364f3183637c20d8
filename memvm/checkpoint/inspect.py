"""What is in a checkpoint file, as one frozen object: for people by report/, for programs as JSON.

Header, index and state are always read and checked, which takes a moment whatever the size of the file. Only
verifying reads the pages, and only verifying needs the parents.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.format import HEADER_SIZE
from memvm.checkpoint.index import PageIndex
from memvm.checkpoint.sections import WRITTEN
from memvm.checkpoint.verify import Progress, verify
from memvm.machine import machine  # noqa: F401 - its import fills the table of hypercalls
from memvm.machine.clocks import SECOND
from memvm.machine.hypercalls.table import TABLE, Call
from memvm.machine.signals import SIG_DFL, SIG_IGN, signal_name
from memvm.machine.state import GuestState
from memvm.memory.pages import PageRun
from memvm.memory.protection import Prot
from memvm.units import PAGE_SIZE

_FOREIGN_CALL = 1 << 32


@dataclass(frozen=True)
class RamFacts:
    """Guest RAM. Every page is of one of four kinds."""

    base_address: int
    ram_size: int
    pages_data: int
    """In a chunk of this file."""
    pages_inherited: int
    """As in the parent: an entry in the index and nothing else."""
    pages_zero: int
    """Touched, and holding zeros: likewise."""
    pages_untouched: int


@dataclass(frozen=True)
class ChunkShape:
    """How many chunks hold so many pages."""

    pages: int
    chunks: int


@dataclass(frozen=True)
class StorageFacts:
    """What the pages became in the file."""

    bytes_raw: int
    """Of all data pages."""
    bytes_superseded: int
    """Of pages in chunks that were stored again later in the save, before compression."""
    bytes_compressed: int
    """Of all chunks."""
    ratio: float
    """Raw, superseded pages too, by compressed; 1 if there is nothing."""
    block_size: int
    """Of the staging buffer that the writer had."""
    blocks: int
    """Storage blocks, each of which was one write."""
    chunks: int
    shapes: tuple[ChunkShape, ...]


@dataclass(frozen=True)
class RegionFacts:
    """A range of guest addresses that is allocated."""

    start: int
    end: int
    size: int
    protection: str
    """As in /proc/PID/maps: "r-x"."""
    kind: str
    pages_data: int
    pages_inherited: int
    pages_zero: int


@dataclass(frozen=True)
class ParentFacts:
    """The file that inherited pages come from."""

    file: str
    """Its path, relative to the checkpoint's directory, when that was saved."""
    checkpoint_id: str


@dataclass(frozen=True)
class ActiveFacts:
    """Pages that were seen accessed during the save."""

    pages: int
    pages_written: int


@dataclass(frozen=True)
class VcpuFacts:
    """The guest's thread."""

    registers: dict[str, int]
    xsave_size: int
    xsave_features: tuple[str, ...]
    """Parts of the processor's state that are not as after a reset."""


@dataclass(frozen=True)
class BlockedCall:
    """The hypercall that the guest waited in."""

    name: str
    arguments: tuple[int, ...]
    remaining_seconds: float | None
    """Until it gives up waiting; None if it waits for ever."""
    bytes_done: int
    answered: bool
    """Whether it had its answer already, and the guest had not heard it."""


@dataclass(frozen=True)
class StreamFacts:
    """A standard stream."""

    name: str
    descriptors: tuple[int, ...]
    """Under which numbers the guest has it open."""
    nonblocking: bool
    file_offset: int | None
    """Bytes into a regular file; None if it was something else."""


@dataclass(frozen=True)
class SignalFacts:
    """What the guest wants to happen at a signal, where that is not the default."""

    signal: str
    action: str
    """"ignored", or the address of a handler."""


@dataclass(frozen=True)
class ClockFacts:
    """The guest's clocks at the save."""

    monotonic_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Inspection:
    """A checkpoint file."""

    file: str
    file_size: int
    version: int
    checkpoint_id: str
    saved_at: str
    """ISO 8601, UTC."""
    verified: bool
    """Whether every byte was checked, of the parents too; otherwise all but the contents of pages, and no parents."""
    parent: ParentFacts | None
    program: str
    arguments: tuple[str, ...]
    thread_name: str
    generation: int
    """How many restores lay behind the guest."""
    disks: int
    """How many it had: a restore is given as many. 0 also if an older version saved it, which did not say."""
    index_size: int
    state_size: int
    """Bytes of the state in the file, compressed."""
    ram: RamFacts
    storage: StorageFacts
    active: ActiveFacts
    clocks: ClockFacts
    blocked: BlockedCall | None
    streams: tuple[StreamFacts, ...]
    signals: tuple[SignalFacts, ...]
    signal_mask: tuple[str, ...]
    """Signals that the guest has blocked."""
    regions: tuple[RegionFacts, ...]
    vcpu: VcpuFacts


def inspect(path: Path, verify_all: bool, progress: Progress, parents: Sequence[Path] = ()) -> Inspection:
    """Look at a checkpoint file; with `verify_all`, read and check every byte of it and its parents.

    `parents` are where parents may be, besides where Chain.open looks. Raises CheckpointError if anything that was
    read is damaged; when verifying, it names the bad chunks and their pages, and says how many there are. Raises what
    `progress` raises.
    """
    with ExitStack() as opened:
        if verify_all:
            chain = opened.enter_context(Chain.open(path, parents))
            verify(chain.files, progress)
            file = chain.files[0]
        else:
            file = opened.enter_context(CheckpointFile.open(path))
        header = file.header
        state = GuestState.from_json(file.state, header.ram_base, header.ram_size, str(path))
        return Inspection(
            file=_text(str(path)),
            file_size=file.size,
            version=header.version,
            checkpoint_id=header.checkpoint_id.hex(),
            saved_at=_date(state.saved_at),
            verified=verify_all,
            parent=_parent(file),
            program=_text(state.program),
            arguments=tuple(map(_text, state.argv)),
            thread_name=_text(os.fsdecode(state.threads[0].name)),
            generation=state.generation,
            disks=state.disks,
            index_size=file.commit_record.index_length,
            state_size=file.commit_record.state_length,
            ram=_ram(file),
            storage=_storage(file),
            active=ActiveFacts(len(file.active.pages), sum(kind & WRITTEN > 0 for kind in file.active.kinds)),
            clocks=ClockFacts(state.monotonic / SECOND, state.cpu_time / SECOND),
            blocked=_blocked(state),
            streams=_streams(state),
            signals=_signals(state),
            signal_mask=tuple(signal_name(bit + 1) for bit in range(64) if state.threads[0].signal_mask >> bit & 1),
            regions=_regions(state, file),
            vcpu=VcpuFacts(state.vcpu.registers, len(state.vcpu.xstate), state.vcpu.features_in_use),
        )


def _ram(file: CheckpointFile) -> RamFacts:
    header, index = file.header, file.index
    data, inherited, zero = index.data_pages, index.inherited_pages, index.zero_pages
    untouched = header.ram_pages - data - inherited - zero
    return RamFacts(header.ram_base, header.ram_size, data, inherited, zero, untouched)


def _parent(file: CheckpointFile) -> ParentFacts | None:
    if file.parent is None:
        return None
    return ParentFacts(_text(str(file.parent.hint)), file.parent.checkpoint_id.hex())


def _storage(file: CheckpointFile) -> StorageFacts:
    index = file.index
    raw, superseded = index.data_pages * PAGE_SIZE, index.superseded_pages * PAGE_SIZE
    compressed = sum(index.chunk_length)
    shapes = Counter(index.frame_pages(chunk) for chunk in range(index.chunk_count))
    return StorageFacts(
        bytes_raw=raw,
        bytes_superseded=superseded,
        bytes_compressed=compressed,
        ratio=(raw + superseded) / compressed if compressed else 1.0,
        block_size=file.header.block_size,
        blocks=_count_blocks(index.chunk_length, file.header.block_size),
        chunks=index.chunk_count,
        shapes=tuple(ChunkShape(pages, count) for pages, count in sorted(shapes.items())),
    )


def _count_blocks(lengths: Iterable[int], block_size: int) -> int:
    """How often a staging buffer was written: when it was full. There may be one more, if there are active chunks."""
    blocks, staged = 0, HEADER_SIZE
    for length in lengths:
        staged += length
        if staged >= block_size:
            blocks, staged = blocks + 1, 0
    return blocks + bool(staged)


class _PageCounts:
    """How many pages of some runs lie in a range, in the time of two binary searches."""

    def __init__(self, runs: Iterable[PageRun]) -> None:
        ascending = sorted(runs)
        self._firsts = [run.first for run in ascending]
        self._before = [0, *accumulate(run.count for run in ascending)]

    def between(self, first: int, end: int) -> int:
        return self._below(end) - self._below(first)

    def _below(self, page: int) -> int:
        run = bisect_right(self._firsts, page - 1)
        if not run:
            return 0
        begun = self._before[run - 1]
        return min(self._before[run], begun + page - self._firsts[run - 1])


def _regions(state: GuestState, file: CheckpointFile) -> tuple[RegionFacts, ...]:
    index: PageIndex = file.index
    data = _PageCounts(index.united_runs())
    inherited = _PageCounts(index.iter_inherited_runs())
    zero = _PageCounts(index.iter_zero_runs())
    facts = []
    for region in state.regions:
        first, end = ((address - file.header.ram_base) // PAGE_SIZE for address in (region.start, region.end))
        facts.append(
            RegionFacts(
                start=region.start,
                end=region.end,
                size=region.size,
                protection=_protection(region.protection),
                kind=region.kind.value,
                pages_data=data.between(first, end),
                pages_inherited=inherited.between(first, end),
                pages_zero=zero.between(first, end),
            )
        )
    return tuple(facts)


def _protection(protection: Prot) -> str:
    letters = ((Prot.READ, "r"), (Prot.WRITE, "w"), (Prot.EXEC, "x"))
    return "".join(letter if protection & bit else "-" for bit, letter in letters)


def _blocked(state: GuestState) -> BlockedCall | None:
    call = state.blocked
    if call is None:
        return None
    remaining = None if call.deadline is None else max(0, call.deadline - state.monotonic) / SECOND
    return BlockedCall(_call_name(call), call.arguments, remaining, call.progress, call.answer is not None)


def _call_name(call: Call) -> str:
    if call.number >= _FOREIGN_CALL:
        return f"32-bit system call {call.number - _FOREIGN_CALL}"
    entry = TABLE.get(call.number)
    return entry.name if entry is not None else f"system call {call.number}"


def _streams(state: GuestState) -> tuple[StreamFacts, ...]:
    return tuple(
        StreamFacts(
            name=name,
            descriptors=tuple(number for number, stream, _ in state.descriptors if stream == index),
            nonblocking=saved.nonblocking,
            file_offset=saved.offset,
        )
        for index, (name, saved) in enumerate(
            zip(("standard input", "standard output", "standard error"), state.streams, strict=True)
        )
    )


def _signals(state: GuestState) -> tuple[SignalFacts, ...]:
    facts = []
    for number, action in sorted(state.actions.items()):
        handler = int.from_bytes(action[:8], "little")
        if handler != SIG_DFL:
            shown = "ignored" if handler == SIG_IGN else f"handler at {handler:#x}"
            facts.append(SignalFacts(signal_name(number), shown))
    return tuple(facts)


def _date(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds // SECOND, UTC).isoformat()


def _text(name: str) -> str:
    """A file name or argument, which need not be text, as text."""
    return os.fsencode(name).decode(errors="backslashreplace")
