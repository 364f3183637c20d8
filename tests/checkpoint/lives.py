"""Guests that are saved and brought back, for tests: each life in a manager of its own, its output in files.

Output goes to a file because a checkpoint then says how many bytes of it had been written at the instant
of the save: what a guest printed up to there, and what it prints after its restore, must be what it would
have printed without either.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import zstandard

import memvm
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.inspect import Inspection, inspect
from memvm.checkpoint.unchanged import unchanged
from memvm.faultpoints import FaultPoint
from memvm.manager.guest import Progress
from memvm.memory.pages import PageRun, runs_of
from memvm.units import PAGE_SIZE
from tests.checkpoint.parts import take_apart

SCALE = float(os.environ.get("MEMVM_TEST_TIME_SCALE", "1"))
PATIENCE = 30.0
"""Seconds in which everything that a test waits for has to happen."""


class Life:
    """One life of a guest, from a start or a restore to its end."""

    def __init__(self, guest: memvm.Guest, folder: Path) -> None:
        self.guest = guest
        self._out, self._err = folder / "out", folder / "err"

    def output(self) -> bytes:
        """What the guest has written so far."""
        return self._out.read_bytes()

    def complaints(self) -> str:
        """What its manager has written on standard error."""
        return self._err.read_text()

    def await_lines(self, count: int) -> None:
        """Wait until the guest has written so many lines."""
        self.wait_for(lambda: self.output().count(b"\n") >= count)

    def await_complaint(self, words: str) -> None:
        """Wait until the manager has said this."""
        self.wait_for(lambda: words in self.complaints())

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Look again and again until something has happened; fail if the guest ends before, or never does."""
        deadline = time.monotonic() + PATIENCE * SCALE
        while not happened():
            alive = self.guest._manager.process.poll() is None
            if happened():
                return
            said = f"\n{self.output()[-1000:]!r}\n{self.complaints()[-3000:]}"
            assert alive, f"the guest ended: {self.guest.wait()}{said}"
            assert time.monotonic() < deadline, f"it did not happen within {PATIENCE} s{said}"
            time.sleep(0.005)

    def stand_at_line(self, count: int) -> None:
        """Let a guest that was started to stand still after a call go on until it has written so many lines; it stands
        still again, however long nobody looks."""
        while True:
            self.guest.wait_until_paused(PATIENCE * SCALE)
            if self.output().count(b"\n") >= count:
                return
            self.guest.resume(1)

    def save(self, path: Path, live: bool = True, **options: Any) -> bytes:
        """Save the guest; returns what it had written at that instant."""
        self.guest.checkpoint(path, live=live, **options)
        offset = look(path).streams[1].file_offset
        assert offset is not None
        return self.output()[:offset]


@contextmanager
def running(
    folder: Path, *command: str | Path, stdin: int | IO[bytes] = subprocess.DEVNULL, **options: Any
) -> Iterator[Life]:
    """A new guest."""
    with _files(folder) as (out, err):
        guest = memvm.Guest(list(command), stdin=stdin, stdout=out, stderr=err, **{"ram": "256M", **options})
    with guest:
        yield Life(guest, folder)


@contextmanager
def restored(folder: Path, path: Path, stdin: int | IO[bytes] = subprocess.DEVNULL, **options: Any) -> Iterator[Life]:
    """A guest that was saved."""
    with _files(folder) as (out, err):
        guest = memvm.restore(path, stdin=stdin, stdout=out, stderr=err, **options)
    with guest:
        yield Life(guest, folder)


@contextmanager
def _files(folder: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        yield out, err


def look(path: Path) -> Inspection:
    """What is in a checkpoint."""
    return inspect(path, False, lambda done, total: None)


def go_on_once(life: Life) -> Progress:
    """A progress of a save that lets a guest that stands still go on, when the save has begun."""
    gone_on: list[bool] = []

    def progress(_done: int, _total: int) -> None:
        if not gone_on:
            gone_on.append(True)
            life.guest.resume()

    return progress


class Gate:
    """A file as long as which exists a fault point holds whoever passes it: `MEMVM_FAULTS=POINT=hold=FILE`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __str__(self) -> str:
        return str(self._file)

    def shut(self) -> None:
        """From now on they are held."""
        self._file.touch()

    def open(self) -> None:
        """Those that are held go on."""
        self._file.unlink(missing_ok=True)

    @property
    def holds_somebody(self) -> bool:
        """Whether anybody has come there since it was shut."""
        return self._file.stat().st_size > 0

    @contextmanager
    def shut_for_lines(self, life: Life, count: int) -> Iterator[None]:
        """Who comes there within the block is held until the guest has written so many lines meanwhile."""

        def open_then() -> None:
            try:
                life.wait_for(lambda: self.holds_somebody)
                life.await_lines(life.output().count(b"\n") + count)
            finally:
                self.open()

        self.shut()
        watching = ThreadPoolExecutor(1)
        try:
            seen = watching.submit(open_then)
            yield
            seen.result()
        finally:
            watching.shutdown()


@contextmanager
def traced_saves_held(file: Path) -> Iterator[Gate]:
    """A gate at which the live saves of guests that are started within the block are held, as long as it is shut, when
    they have placed their traces: what the guest does then is active."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMVM_FAULTS", f"{FaultPoint.SAVE_TRACED}=hold={file}")
        yield Gate(file)


def await_end(pid: int) -> None:
    """Wait for the end of a process, which the kernel brings about in milliseconds."""
    deadline = time.monotonic() + PATIENCE * SCALE
    while _runs(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.005)


def _runs(pid: int) -> bool:
    """Whether there is such a process: it has ended also if whoever adopted it has not asked for its status yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def chunk_of(path: Path, address: int) -> int:
    """The chunk of a checkpoint that holds the page at a guest address."""
    with CheckpointFile.open(path) as file:
        chunk = file.index.chunk_of((address - file.header.ram_base) // file.header.page_size)
        assert chunk is not None
        return chunk


def damage(path: Path, chunk: int) -> set[int]:
    """Flip one bit in the middle of a chunk; returns the numbers of its pages."""
    with CheckpointFile.open(path) as file:
        place = file.index.chunk_offset[chunk] + file.index.chunk_length[chunk] // 2
        runs = file.index.runs_of(chunk)
    with open(path, "r+b", buffering=0) as raw:
        byte = os.pread(raw.fileno(), 1, place)[0]
        os.pwrite(raw.fileno(), bytes([byte ^ 0x10]), place)
    return {page for run in runs for page in range(run.first, run.end)}


def change_state(path: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A copy of a checkpoint whose state was changed, with every checksum right."""
    parts = take_apart(path)
    with CheckpointFile.open(path) as file:
        fields = json.loads(file.state)
    change(fields)
    state = json.dumps(fields).encode()
    parts.state_frame = zstandard.ZstdCompressor().compress(state)
    parts.state_length = len(state)
    target.write_bytes(parts.assemble())


def on_top_of(parent: Path, path: Path, target: Path) -> None:
    """The checkpoint at `path` once more, as a child of another one of the same guest: equal pages are inherited."""
    with Chain.open(parent) as base, Chain.open(path) as whole:
        zeros = bytes(PAGE_SIZE)
        pages = dict(_pages_of(whole)) | {page: zeros for run in whole.index.zero_runs() for page in range(*_span(run))}
        header = whole.header._replace(checkpoint_id=os.urandom(16))
        same = unchanged(base, runs_of(sorted(pages)), lambda run: b"".join(map(pages.__getitem__, range(*_span(run)))))
        with CheckpointWriter(target, header) as writer:
            writer.set_parent(base.link_from(target))
            for run in same:
                writer.add_inherited(run)
            rest = sorted(set(pages) - {page for run in same for page in range(*_span(run))})
            for page in rest:
                if pages[page] == zeros:
                    writer.add_zero(PageRun(page, 1))
                else:
                    writer.add_chunk(zstandard.compress(pages[page]), [PageRun(page, 1)])
            writer.commit(whole.state, whole.active)


def _pages_of(chain: Chain) -> Iterator[tuple[int, bytes]]:
    for chunk in range(chain.index.chunk_count):
        data = chain.decompress(chunk, chain.read_frame(chunk))
        numbers = (page for run in chain.index.runs_of(chunk) for page in range(*_span(run)))
        yield from ((page, data[place * PAGE_SIZE :][:PAGE_SIZE]) for place, page in enumerate(numbers))


def _span(run: PageRun) -> tuple[int, int]:
    return run.first, run.end
