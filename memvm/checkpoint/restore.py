"""Brings a guest back from a checkpoint file: eagerly, with all pages before it runs, or lazily, with few.

No process is started before header, commit record, index and state have been checked. A lazy restore then needs a
process, registers, page metadata, and the pages that its policy names: by default those that the guest was seen to use
while it was saved. The others come when they are touched, and in the background.

A guest that comes back lazily waits for little else than this module and what it imports. So modules that only a
machine needs are imported where it is made, while pages are being read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.loading import BackgroundLoader, CheckpointSource, chunk_groups, load_all
from memvm.checkpoint.prefetch import Around, Loaded, Prefetch, Prefetched, bytes_of, facts_of
from memvm.errors import BadPage, CheckpointError
from memvm.machine.config import RunOptions
from memvm.machine.layout import RAM_BASE
from memvm.memory.ram import GuestRam
from memvm.recording.policies import CheckedPolicy, RestoreFacts, load_policy

if TYPE_CHECKING:
    from memvm.checkpoint.hint_file import Hints
    from memvm.checkpoint.observing import Observing
    from memvm.files.specs import ViewSpec
    from memvm.machine.machine import Machine
    from memvm.machine.state import GuestState

Progress = Callable[[int, int], None]

LAZY, EAGER = "active", "eager"
"""The policies of a restore that is only said to be lazy, or not."""
RECORDED = "recorded"


class RestoreOptions(NamedTuple):
    """How to restore."""

    lazy: bool = True
    """Run before all pages are there, which are loaded when they are touched, and in the background."""
    background: bool = True
    """With lazy: load in the background too, not only what is touched."""
    parents: tuple[Path, ...] = ()
    """Where parents of the file are, if not where Chain.open looks."""
    policy: str = ""
    """With lazy: which pages to load before the guest runs, and with those that it waits for (recording/policies.py);
    LAZY if empty. EAGER means not lazy."""
    views: tuple[ViewSpec, ...] = ()
    """What the guest is given of the host's files in place of what it had there."""
    accept_changed_files: bool = False
    """Let it go on with files that were changed while it had them open."""
    disks: int = 0
    """How many the guest is given."""
    without_disks: bool = False
    """Let it go on with fewer than it had."""
    observing: Observing | None = None
    """What to note of it. The policy `recorded` records all the same if nothing is recorded yet."""


def restore(
    path: Path, options: RunOptions, how: RestoreOptions, progress: Progress, opened: Chain | None = None
) -> Machine:
    """A machine with the saved guest, ready to start. `progress` hears bytes loaded, and bytes in all.

    The checkpoint is opened at `path`, unless it has been `opened`; then it is taken over.

    Raises CheckpointError if the file or a parent is missing, damaged or does not fit this machine, HostError, and
    UsageError, also for a policy that misbehaves.
    """
    began = time.monotonic()
    name = (how.policy or LAZY) if how.lazy else EAGER
    observing = how.observing
    hints, problem = None, ""
    file = opened or Chain.open(path, how.parents)
    try:
        policy = load_policy(name)
        if policy.wants_recorded or (observing is not None and observing.record):
            hints, problem = _hints(file)
        if name == EAGER:
            machine, state, loaded = _eager(options, file, how, progress)
        else:
            machine, state, loaded = _lazy(options, file, policy, hints, how)
    except BaseException:
        file.close()
        raise
    machine.at_release.append(file.close)
    try:
        machine.restored_from = str(path.absolute())
        machine.guest.views, machine.guest.accepts_changed_files = how.views, how.accept_changed_files
        if problem:
            machine.warn(problem)
        if name == RECORDED and hints is not None and not hints.restores:
            observing = _recording(observing)
        if observing is not None:
            _observe(machine, path, observing, began, loaded, hints)
        machine.restore_guest(lambda: state.adopt_into(machine))
        machine.warn_of_changed_files()
        machine.guest.launched.came_from(file.header.checkpoint_id, file.files[0].commit_sha256)
        if name == EAGER:
            _begin_baseline(machine, file)
    except BaseException:
        machine.close()
        raise
    return machine


def read_state(file: Chain) -> GuestState:
    """The guest's state beside its RAM, checked. Raises CheckpointError, also if it does not fit this memvm."""
    from memvm.machine.state import GuestState

    header = file.header
    if header.ram_base != RAM_BASE:
        raise CheckpointError(f"{file.path}: guest RAM at {header.ram_base:#x}, not at {RAM_BASE:#x}")
    return GuestState.from_json(file.state, RAM_BASE, header.ram_size, str(file.path))


def require_disks(path: Path, had: int, how: RestoreOptions) -> None:
    """Raises CheckpointError if a guest that had so many disks is to go on with fewer, and nobody said so."""
    if how.disks < had and not how.without_disks:
        raise CheckpointError(
            f"{path}: the guest had {had} disk{'s' if had > 1 else ''}, and is given {how.disks or 'none'}",
            hint="give it each again, in the same order: --disk FILE, and --disk-key-file FILE if it was in the clear; "
            "--without-disks lets it go on with fewer",
        )


def _begin_baseline(machine: Machine, file: Chain) -> None:
    """All pages are from the file, and the guest does not run yet: a save on top of it needs only what changes."""
    from memvm.machine.baseline import Baseline

    watch = machine.dirty.watch_for_free()
    if watch is not None:
        youngest = file.files[0]
        machine.baseline = Baseline(youngest.header.checkpoint_id, youngest.commit_sha256, watch)


def _eager(
    options: RunOptions, file: Chain, how: RestoreOptions, progress: Progress
) -> tuple[Machine, GuestState, Loaded]:
    """A machine with all pages, and the state that it shall have."""
    machine, state = _make(options, file, how)
    try:
        began = time.monotonic()
        load_all(file, machine.ram, progress)
        groups, data = chunk_groups(file), file.index.united_runs()
        prefetched = Prefetched(data, len(groups), bytes_of(file, groups), time.monotonic() - began)
    except BaseException:
        machine.close()
        raise
    return machine, state, Loaded(EAGER, data, prefetched)


def _lazy(
    options: RunOptions, file: Chain, policy: CheckedPolicy, hints: Hints | None, how: RestoreOptions
) -> tuple[Machine, GuestState, Loaded]:
    """A machine with what the policy names; the rest comes when it is touched, and perhaps in the background."""
    machine: Machine | None = None
    facts = facts_of(file, hints.pages if hints is not None else ())
    ram = GuestRam(RAM_BASE, file.header.ram_size)
    try:
        # Making a process, and importing all that a machine is made of, takes about as long as reading the pages.
        with Prefetch(file, ram, policy, facts) as prefetch:
            machine, state = _make(options, file, how, ram)
            prefetched = prefetch.wait()
        return machine, state, _defer(machine, file, policy, facts, prefetched, how.background)
    except BaseException:
        if machine is not None:
            machine.close()
        ram.close()
        raise


def _make(
    options: RunOptions, file: Chain, how: RestoreOptions, ram: GuestRam | None = None
) -> tuple[Machine, GuestState]:
    """A machine that has nothing yet but perhaps its RAM, and the state that it shall have, which is checked first."""
    from memvm.machine.machine import Machine

    state = read_state(file)
    require_disks(file.path, state.disks, how)
    return Machine(options, file.header.ram_size, ram), state


def _defer(
    machine: Machine, file: Chain, policy: CheckedPolicy, facts: RestoreFacts, prefetched: Prefetched, background: bool
) -> Loaded:
    """Have all pages but those that are there come when they are touched, and perhaps in the background."""
    from memvm.memory.deferred import DeferredPages

    source = CheckpointSource(file)
    deferred = DeferredPages(machine.ram, machine.engine, source)
    deferred.report_bad = lambda error: _report_bad(machine, error)
    deferred.begin(facts.data_runs, prefetched.there)
    around = Around(policy, facts, deferred, machine.warn) if policy.goes_around else None
    deferred.instead = deferred.demand_alone if policy.page_by_page else around
    if background:
        loader = BackgroundLoader(source, deferred, machine.failed)
        machine.at_start.append(loader.start)
        machine.at_close.append(loader.stop)
    return Loaded(policy.name, facts.data_runs, prefetched, deferred, around)


def _recording(observing: Observing | None) -> Observing:
    """What is wanted, and a recording."""
    from memvm.checkpoint.observing import Observing

    return (observing or Observing())._replace(record=True)


def _observe(
    machine: Machine, path: Path, observing: Observing, began: float, loaded: Loaded, hints: Hints | None
) -> None:
    from memvm.checkpoint.observing import Observer

    Observer(machine, path, observing, began, loaded, hints).attach()


def _hints(file: Chain) -> tuple[Hints, str]:
    """What earlier restores of the file used, and why what is noted of that cannot be used, if so."""
    from memvm.checkpoint.hint_file import Hints, read_hints

    return read_hints(file.path, Hints(file.header.checkpoint_id, file.header.ram_size))


def _report_bad(machine: Machine, error: BadPage) -> None:
    machine.warn(f"{error.message}; the guest gets an error where it touches them")
