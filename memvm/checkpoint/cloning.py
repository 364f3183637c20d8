"""One checkpoint becomes any number of guests, which share the pages that they do not touch.

The file is read, decompressed and verified once, into a template (memory/template.py); nothing is started if any of it
is damaged. After that it is not needed any more. Each clone then costs a process, registers and page metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.loading import load_all
from memvm.checkpoint.restore import read_state
from memvm.errors import CheckpointError, HostError, SettingRefused
from memvm.files.specs import ViewSpec
from memvm.machine.config import RunOptions
from memvm.machine.layout import MIN_RAM, RAM_BASE
from memvm.machine.machine import Machine
from memvm.machine.settings import Name
from memvm.machine.state import GuestState
from memvm.memory.deferred import DeferredPages
from memvm.memory.ram import GuestRam
from memvm.memory.template import Template, TemplateSource
from memvm.units import format_size

Progress = Callable[[int, int], None]


class Original:
    """A checkpoint that is ready to be restored many times, also by processes forked later."""

    def __init__(
        self,
        path: Path,
        state: GuestState,
        template: Template,
        size: int,
        origin: tuple[bytes, bytes],
    ) -> None:
        self._path = path
        self._state = state
        self._template = template
        self._size = size
        self._flags: bytearray | None = None
        self._origin = origin

    @classmethod
    def load(cls, path: Path, parents: Sequence[Path], progress: Progress, *, without_disks: bool = False) -> Original:
        """Read all of a checkpoint, and verify it. `progress` hears bytes loaded, and bytes in all.

        Clones have no disks: those of a guest that had some have to go on `without_disks`.
        Raises CheckpointError if the file or a parent is missing, damaged or does not fit this machine, and HostError
        if there is no memory for it; SettingRefused if the guest was launched so that it cannot be cloned.
        """
        with Chain.open(path, parents) as file:
            state = read_state(file)
            _require_cloning(path, state)
            if state.disks and not without_disks:
                raise CheckpointError(
                    f"{path}: the guest had a disk, which belongs to one guest and cannot be given to clones",
                    hint="--without-disks lets them go on without",
                )
            origin = file.header.checkpoint_id, file.files[0].commit_sha256
            size = file.header.ram_size
            try:
                template = Template(size)
            except OSError as error:
                raise HostError(f"no memory file of {format_size(size)} can be made: {error.strerror}") from error
            try:
                load_all(file, template, progress)
                template.seal(file.index.united_runs())
            except BaseException:
                template.close()
                raise
        return cls(path.absolute(), state, template, size, origin)

    def prepare_to_fork(self) -> None:
        """Make the page flags of the clone that each process forked from now on will make.

        A process gets pages of memory of its own for those flags only that its guest changes.
        """
        self._flags = bytearray(self._template.data)

    def clone(
        self,
        options: RunOptions,
        number: int,
        count: int,
        views: tuple[ViewSpec, ...] = (),
        *,
        accept_changed_files: bool = False,
    ) -> Machine:
        """A machine with the saved guest as clone `number` of `count`, ready to start.

        Each clone opens files of the host's for itself, and has its own of what is in memory. `views` and
        `accept_changed_files` are as for a restore. Raises HostError, and what a restore raises for files.
        """
        ram = self._make_ram()
        try:
            machine = Machine(options, self._size, ram)
        except BaseException:
            ram.close()
            raise
        try:
            machine.guest.views, machine.guest.accepts_changed_files = views, accept_changed_files
            machine.restored_from = str(self._path)
            machine.guest.clone, machine.guest.clones = number, count
            deferred = DeferredPages(machine.ram, machine.engine, TemplateSource(self._template))
            deferred.begin(())  # the flags say so already
            machine.restore_guest(lambda: self._state.adopt_into(machine))
            machine.warn_of_changed_files()
            machine.guest.launched.came_from(*self._origin)
        except BaseException:
            machine.close()
            raise
        return machine

    def _make_ram(self) -> GuestRam:
        """With all data pages deferred. Raises OSError."""
        flags, self._flags = self._flags, None
        if flags is None:
            flags = bytearray(self._template.data)
        return GuestRam(RAM_BASE, self._size, flags)

    def close(self) -> None:
        """Let go of the template, in this process."""
        self._template.close()


def rehearse(options: RunOptions) -> None:
    """Make a machine as a clone has it, but without its guest, and close it. Raises HostError, UsageError."""
    Machine(options, MIN_RAM).close()


def _require_cloning(path: Path, state: GuestState) -> None:
    if state.launched is not None and state.launched["values"][Name.CLONING] != "on":
        raise SettingRefused(f"{path}: the guest has {Name.CLONING}=off", hint="restore it once, without --clones")
