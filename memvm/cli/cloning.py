"""`memvm restore --clones`: one checkpoint, many guests."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.launching import be_manager, open_standard_streams, rehearse_manager
from memvm.errors import HostError, MemvmError, UsageError
from memvm.linux.libc import use_one_heap
from memvm.manager.family import Clone, Family, names_for
from memvm.manager.process import ENDING_SIGNALS
from memvm.manager.ready import ReadyPipe
from memvm.manager.rundir import RunDir
from memvm.manager.sharing import settle_for_forking
from memvm.report.progress import ProgressBar

if TYPE_CHECKING:
    from memvm.checkpoint.cloning import Original


def execute_clones(arguments: argparse.Namespace) -> int:
    """Start the clones, and wait for them; in the processes forked for that, manage one of them. The exit status."""
    if not arguments.lazy:
        raise UsageError("restore: --clones and --eager exclude each other", hint="clones share what they do not touch")
    open_standard_streams()
    use_one_heap()  # before any thread has one: in each manager they would be a twentieth of its memory
    ready = [ReadyPipe(fd) for fd in arguments.ready_fds]
    try:
        names = names_for(arguments.name, arguments.file.stem, arguments.clones)
        original = _load(arguments)
        _import_what_managers_need()
        original.prepare_to_fork()
        _prepare_to_share(arguments)
        family = Family(_clones(arguments, names))
        clone = family.fork()
    except MemvmError as error:
        if not [pipe for pipe in ready if pipe.failed(error)]:
            raise
        return error.exit_code
    if clone is None:
        original.close()
        return family.wait()
    number = clone.number
    return be_manager(
        arguments,
        clone.name,
        arguments.file.stem,
        lambda options: original.clone(
            options,
            number,
            len(names),
            tuple(arguments.views),
            accept_changed_files=arguments.accept_changed_files,
        ),
        ReadyPipe(clone.ready),
    )


def _load(arguments: argparse.Namespace) -> Original:
    from memvm.checkpoint.cloning import Original

    with ProgressBar(f"reading {arguments.file.name}") as progress:
        return Original.load(arguments.file, arguments.parent, progress, without_disks=arguments.without_disks)


def _import_what_managers_need() -> None:
    """Modules that each of them would import for itself, and have in its own memory then."""
    import memvm.checkpoint.save
    import memvm.files.specs
    import memvm.linux.openat2
    import memvm.manager.process
    import memvm.report.messages  # noqa: F401


def _prepare_to_share(arguments: argparse.Namespace) -> None:
    """Have the managers share what they can of this process's memory. Raises what making a machine raises."""
    from memvm.checkpoint.cloning import rehearse

    # Signals wait until it is over: a rehearsal is not ended in its midst, and does not take them for its guest's end.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        with RunDir() as entries, entries.rehearsal() as directory:
            settle_for_forking(lambda: rehearse_manager(arguments, arguments.file.stem, rehearse, directory))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _clones(arguments: argparse.Namespace, names: Sequence[str]) -> list[Clone]:
    nothing = (None,) * len(names)
    given = (arguments.ready_fds or nothing, arguments.stdout_fds or nothing, arguments.stderr_fds or nothing)
    if any(len(fds) != len(names) for fds in given):
        raise UsageError("restore: there must be as many descriptors as clones")
    clones = [Clone(number, name, *fds) for number, (name, *fds) in enumerate(zip(names, *given, strict=True), 1)]
    if arguments.output is None:
        return clones
    return [_writing_to(arguments.output, clone) for clone in clones]


def _writing_to(directory: Path, clone: Clone) -> Clone:
    """The clone with files for its output. Raises HostError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        directory.mkdir(exist_ok=True)
        out, err = (os.open(directory / f"{clone.name}.{kind}", flags, 0o666) for kind in ("out", "err"))
    except OSError as error:
        raise HostError(
            f"{error.filename}: cannot be written: {error.strerror}", hint="is the directory right?"
        ) from error
    return clone._replace(stdout=out, stderr=err)
