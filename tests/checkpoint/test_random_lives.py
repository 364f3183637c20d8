"""A real guest through a random order of writes, punches, saves and restores of every kind, against a model of it.

It is saved live, stopped and by a suspend, on top of parents and without, and at fault points that fail; files are
merged; it comes back by each policy, and as one of two clones.

After each save the file is compared with the model page by page, before anything is restored from it. A save may come
while the guest is busy with a command: then the file must have each page as it was before or as it was after, with
one page at the boundary, and the guest that is restored from it must finish the command.

What happens follows from the seed, except when: guest, loaders and savers run beside each other. A life that goes
wrong says what happened in it. MEMVM_TEST_LIVES has more of them lived (a number, of each engine), from the seed
MEMVM_TEST_FIRST_LIFE on.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from memvm.checkpoint import incremental
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.cloning import Original
from memvm.checkpoint.job import Progress
from memvm.checkpoint.merge import merge
from memvm.checkpoint.observing import Observing
from memvm.checkpoint.restore import RestoreOptions, restore
from memvm.checkpoint.save import SaveOptions, save
from memvm.checkpoint.suspend import SuspendOptions, suspend
from memvm.errors import SaveError
from memvm.faultpoints import FaultPoint, arm
from memvm.machine.config import EngineChoice, RunOptions
from memvm.memory.pages import DEFERRED, flagged_runs
from memvm.units import KIB, MIB, PAGE_SIZE
from tests.checkpoint.modelled import PATIENCE, SENTINEL, SENTINEL_PAGE, Model, Modelled, pages_of
from tests.memory.conftest import toucher  # noqa: F401  # a fixture
from tests.memory.sources import page_of
from tests.memory.touching import FIRST, PAGES, Touching

LIVES = int(os.environ.get("MEMVM_TEST_LIVES", "6"))
FIRST_SEED = int(os.environ.get("MEMVM_TEST_FIRST_LIFE", "0"))
STEPS = 25
ENOUGH_LIVES = 6
"""In which everything of COMMON happens."""
ZERO = bytes(PAGE_SIZE)
POLICIES = ("demand", "sequential", "active", "recorded", "eager")
COMMON = {*POLICIES, "compared", "suspended", "suspend fails", "save fails", "merged", "cloned"}
POINTS = [point for point in FaultPoint if point.startswith(("save.", "suspend."))]
OPTIONS = RunOptions("touching")
_READ = 0
"""The number of the system call."""


class GivenUp(Exception):
    pass


class File(NamedTuple):
    """A checkpoint, and what a guest has that is restored from it: one of these."""

    path: Path
    models: list[Model]


class Lives(Modelled):
    """One guest at a time, and the files that were saved of it and of those that it was restored from."""

    def __init__(self, program: Path, engine: str, folder: Path, seed: int) -> None:
        super().__init__(program, engine, seed)
        self.folder = folder
        self.files: list[File] = []
        self.original: Original | None = None
        """What the guest is a clone of."""
        self.options = OPTIONS._replace(engine=EngineChoice(engine))
        self.counts: Counter[str] = Counter()

    def live(self, steps: int) -> None:
        """So many things happen, and in the end all is as it should be, before a last restore and after it."""
        likely: dict[Callable[[], None], int] = {
            self.change: 30,
            self.look: 5,
            self.manager_looks: 3,
            self.begin_or_end_watching: 4,
            self.look_for_changes: 4,
            self.begin_or_end_tracing: 4,
            self.save: 15,
            self.save_in_mid_command: 20,
            self.save_is_given_up: 5,
            self.save_fails: 5,
            self.suspend: 3,
            self.suspend_in_mid_command: 6,
            self.suspend_fails: 6,
            self.save_onto_the_parent_is_refused: 2,
            self.merge: 3,
            self.bring_back: 5,
            self.clone: 4,
            self.come_back_and_be_saved: 10,
        }
        for step in self.random.choices(list(likely), list(likely.values()), k=steps):
            step()
        self.save_fails()  # six lives have one such save among their steps, and it fails only if it passes its point
        self.look_at_all()
        if self.files:
            self.bring_back(self.files[-1], "eager")
            self.look_at_all()

    def end(self) -> None:
        """End the guest."""
        super().end()
        if self.original is not None:
            self.original.close()
        self.original = None

    def _file(self) -> File:
        return self.random.choice([self.files[-1], self.random.choice(self.files[-4:])])

    def _parent(self) -> Path | None:
        return self._file().path if self.files and self.random.random() < 0.75 else None

    # Saves.

    def save(self) -> None:
        self._await_idle()
        path = self._save()
        self.files.append(File(path, [dict(self.model)]))
        self._compare(path)

    def save_in_mid_command(self) -> None:
        before = dict(self.model)
        page, count, value = self.begin_command()
        path = self._save()
        self.guest.finish()
        self.changes(page, count, value)
        self.files.append(File(path, [before, dict(self.model)]))
        self._compare_with_both(path, before)

    def _await_idle(self) -> None:
        """Wait until it is in its read, or it would go on after it was saved."""
        machine = self.guest.machine
        self.guest.wait_for(lambda: (call := machine.guest.main.blocked) is not None and call.number == _READ)

    def save_is_given_up(self) -> None:
        """What it has seen of the guest's writes must not be lost to the next save."""
        left = [self.random.randrange(4)]

        def progress(_done: int, _total: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise GivenUp

        try:
            path = self._save(progress)
        except GivenUp:
            self.tell("  given up")
            return
        self.files.append(File(path, [dict(self.model)]))

    def _save(self, progress: Progress = lambda _done, _total: None) -> Path:
        path = self._next_path()
        live, parent = self.random.random() < 0.6, self._parent()
        self.tell("save", path.name, "live" if live else "stopped", "on", parent.name if parent else "nothing")
        options = SaveOptions(live, self._level(), self._block_size(), parent)
        report = save(self.guest.machine, path, options, progress)
        self.tell("  changes known:", report.changes_known)
        self.counts[report.changes_known] += 1
        assert report.bytes_file == path.stat().st_size
        return path

    def _next_path(self) -> Path:
        return self.folder / f"{len(self.files)}"

    def _level(self) -> int:
        return self.random.choice((-5, 1))

    def _block_size(self) -> int:
        return self.random.choice((64 * KIB, 4 * MIB))

    def save_fails(self) -> None:
        """At a fault point: what it would have been on top of is whole, and the guest goes on."""
        self._fails(self._save, "save fails")

    def suspend_fails(self) -> None:
        """The same, and the guest has not ended."""
        if self.random.random() < 0.5:
            self._fails(self._suspend, "suspend fails")
            return
        page, count, value = self.begin_command()
        self._fails(self._suspend, "suspend fails", lambda: self.changes(page, count, value))

    def _fails(self, store: Callable[[], Path], what: str, meanwhile: Callable[[], None] | None = None) -> None:
        whole = {file.path: file.path.read_bytes() for file in self.files[-4:]}
        points = [point for point in POINTS if what == "suspend fails" or point.startswith("save.")]
        point, code = self.random.choice(points), self.random.choice((errno.EIO, errno.ENOSPC))
        self.tell("armed:", point)
        before = dict(self.model)
        with arm(point, OSError(code, os.strerror(code)), at=1):
            try:
                path = store()
            except (SaveError, OSError) as error:
                self.tell("  failed:", error)
                self.counts[what] += 1
                path = None
        if path is not None and what == "suspend fails":
            if meanwhile is not None:
                meanwhile()
            self._was_suspended(path, before)
            return
        if meanwhile is not None:
            self.guest.finish()
            meanwhile()
        if path is not None:
            self.files.append(File(path, [dict(self.model)]))
        assert all(path.read_bytes() == data for path, data in whole.items())

    def suspend(self) -> None:
        """Store the guest and end it; it comes back from the file."""
        self._await_idle()
        self._was_suspended(self._suspend(), dict(self.model))

    def suspend_in_mid_command(self) -> None:
        before = dict(self.model)
        page, count, value = self.begin_command()
        path = self._suspend()
        self.changes(page, count, value)
        self._was_suspended(path, before)

    def _suspend(self) -> Path:
        path = self._next_path()
        bounds = self.random.choice([(30.0, None), (30.0, None), (0.0, None), (0.01, None), (30.0, 2 * MIB)])
        self.tell("suspend to", path.name, "within", *bounds)
        options = SuspendOptions(self._level(), self._block_size(), *bounds)
        report = suspend(self.guest.machine, path, options, lambda _done, _total: None)
        assert report.bytes_file == path.stat().st_size
        return path

    def _was_suspended(self, path: Path, before: Model) -> None:
        assert self.guest.ended().code == 0
        self.counts["suspended"] += 1
        self.files.append(File(path, [before, dict(self.model)]))
        self._compare_with_both(path, before)
        self.bring_back(self.files[-1])

    def _compare_with_both(self, path: Path, before: Model) -> None:
        """The guest was busy: the file may have what was, or what was to be, or half of it in one page."""
        found = _contents_of(path)
        mixed = 0
        for number in range(PAGES):
            then, now = page_of(before.get(number, 0)), page_of(self.model.get(number, 0))
            mixed += found.get(FIRST + number, ZERO) not in (then, now)
        assert mixed <= 1

    def _compare(self, path: Path) -> None:
        """The guest waits for a command: the file has to be as its memory is now."""
        found = _contents_of(path)
        for number in range(PAGES):
            assert found.get(FIRST + number, ZERO) == page_of(self.model.get(number, 0)), f"page {number}"
        ram = self.guest.ram
        deferred = {page for run in flagged_runs(ram.flags, 0, ram.page_count, DEFERRED) for page in pages_of(run)}
        for page in {page for run in ram.touched() for page in pages_of(run)} - deferred:
            buffer = bytearray(PAGE_SIZE)
            ram.copy_out(page, memoryview(buffer))
            assert found.pop(page, ZERO) == buffer, f"page {page} of guest RAM"
        assert all(data == ZERO or page in deferred for page, data in found.items())

    def save_onto_the_parent_is_refused(self) -> None:
        if not self.files:
            return
        path = self._file().path
        self.tell("save onto", path.name)
        was = path.read_bytes()
        with pytest.raises(SaveError) as raised:
            save(self.guest.machine, path, SaveOptions(parent=path), lambda _done, _total: None)
        assert raised.value.hint
        assert path.read_bytes() == was

    def merge(self) -> None:
        if not self.files:
            return
        file, merged = self._file(), self.folder / f"{len(self.files)}"
        self.tell("merge", file.path.name, "into", merged.name)
        merge(file.path, merged, lambda _done, _total: None)
        self.counts["merged"] += 1
        assert _contents_of(merged) == _contents_of(file.path)
        with Chain.open(merged) as chain:
            assert len(chain.files) == 1
        self.files.append(File(merged, file.models))

    # Restores.

    def bring_back(self, file: File | None = None, policy: str = "") -> None:
        if not self.files:
            return
        file, policy = file or self._file(), policy or self.random.choice(POLICIES)
        background, observed = self.random.random() < 0.6, self.random.random() < 0.3
        self.tell("bring back", file.path.name, policy, "in the background" * background, "observed" * observed)
        self.end()
        observing = Observing(report=True, score=True, record=True, window=0.02) if observed else None
        how = RestoreOptions(policy != "eager", background, policy=policy, observing=observing)
        machine = restore(file.path, self.options, how, lambda _done, _total: None)
        self.counts[policy] += 1
        self.guest = Touching.again(machine, PATIENCE)
        self.model = _revive(self.guest, file)

    def clone(self) -> None:
        """One of two clones lives on; the other one changes what it has, and nobody but it sees that."""
        if not self.files:
            return
        file = self._file()
        self.tell("clone", file.path.name)
        self.end()
        self.original = Original.load(file.path, (), lambda _done, _total: None)
        self.guest = Touching.again(self.original.clone(self.options, 1, 2), PATIENCE)
        self.model = _revive(self.guest, file)
        with Touching.again(self.original.clone(self.options, 2, 2), PATIENCE) as other:
            theirs = _revive(other, file)
            first, count = self.pages()
            other.fill(first, 1, count)
            theirs.update(dict.fromkeys(range(first, first + count), 1))
            pages = self.random.sample(sorted(theirs), min(len(theirs), 20))
            assert [other.read(page) for page in pages] == [theirs[page] for page in pages]
            assert [self.guest.read(page) for page in pages] == [self.model.get(page, 0) for page in pages]
        self.counts["cloned"] += 1

    def come_back_and_be_saved(self) -> None:
        """With most pages still deferred."""
        if self.files:
            if self.random.random() < 0.7:
                self.bring_back(policy=self.random.choice([policy for policy in POLICIES if policy != "eager"]))
            else:
                self.clone()
            self.random.choice([self.save, self.save_in_mid_command, self.suspend_in_mid_command])()
            self.save()


def _revive(guest: Touching, file: File) -> Model:
    """Let a guest go on from a file; returns which of the file's models it has."""
    guest.go_on(SENTINEL_PAGE, SENTINEL)
    before, after = file.models[0], file.models[-1]
    different = [page for page in after if before.get(page, 0) != after[page]]
    done = different and guest.read(different[0]) != before.get(different[0], 0)
    return dict(after if done else before)


def _contents_of(path: Path) -> dict[int, bytes]:
    """What a checkpoint has of each page that is not zero, or is zero and was touched."""
    with Chain.open(path) as chain:
        pages = {page: ZERO for run in chain.index.zero_runs() for page in pages_of(run)}
        for chunk in filter(chain.index.alive.__getitem__, range(chain.index.chunk_count)):
            data = chain.decompress(chunk, chain.read_frame(chunk))
            numbers = [page for run in chain.index.runs_of(chunk) for page in pages_of(run)]
            for place, page in enumerate(numbers):
                assert page not in pages, f"page {page} is in {path.name} twice"
                pages[page] = data[place * PAGE_SIZE : (place + 1) * PAGE_SIZE]
        return pages


@pytest.mark.parametrize("room", [64, 8192])
@pytest.mark.parametrize("engine", [EngineChoice.AUTO, EngineChoice.MPROTECT])
def test_any_life(
    engine: str,
    room: int,
    toucher: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incremental, "ROOM", room * PAGE_SIZE)  # what changed mostly fits, or mostly does not
    counts: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + LIVES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        lives = Lives(toucher, engine, folder, seed)
        try:
            lives.live(STEPS)
        except BaseException as error:
            error.add_note("\n".join([f"seed {seed}:", *lives.story]))
            raise
        finally:
            lives.end()
        counts += lives.counts
        shutil.rmtree(folder)
    assert LIVES < ENOUGH_LIVES or counts.keys() >= COMMON
