"""What `memvm run` and `memvm restore` do for a sealed guest: they fork its platform, and then manage what that has."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.disks import disks_in, open_disk_files
from memvm.cli.launching import be_manager_of, open_standard_streams, run_options, settled
from memvm.errors import AttestationError, UsageError
from memvm.machine.config import GuestConfig
from memvm.manager.ready import ReadyPipe

if TYPE_CHECKING:
    from memvm.attest.checkpoint_keys import KeyRelease
    from memvm.checkpoint.encrypted_files import EncryptedFile
    from memvm.checkpoint.restore import RestoreOptions
    from memvm.disk.device import Disk
    from memvm.disk.files import DiskFiles
    from memvm.sealed.making import HowToRun, Verification
    from memvm.sealed.platform import Load


def run_sealed(arguments: argparse.Namespace, config: GuestConfig, program: str) -> int:
    """Be the manager of a new sealed guest until its end; the exit status."""
    from memvm.sealed.making import launching

    load = launching(config, _how_to_run(arguments))
    return _manage(arguments, program, load)


def restore_sealed(arguments: argparse.Namespace, how: RestoreOptions) -> int:
    """Be the manager of a guest from an encrypted checkpoint until its end; the exit status."""
    from memvm.attest.key_service import key_release
    from memvm.sealed.making import restoring

    _refuse(arguments, "what a sealed guest uses is not told", "record", "report", "score", "json", "responsive")
    if how.policy == "recorded":
        raise UsageError("restore: what a sealed guest uses is not recorded", hint="choose another --policy")
    if arguments.verifier and not arguments.key_keeper:  # who asks the verifier first has used the checkpoint up
        raise AttestationError(
            "nobody was named who keeps the key of this checkpoint", hint="say where he is with --key-keeper URL"
        )
    load = restoring(arguments.file, how, _how_to_run(arguments), _verification(arguments))
    release = key_release(arguments.key_keeper, arguments.verifier_ca) if arguments.key_keeper else None
    return _manage(arguments, arguments.file.stem, load, lambda opened: _open_chain(arguments, how, opened), release)


def _open_chain(arguments: argparse.Namespace, how: RestoreOptions, opened: ExitStack) -> list[EncryptedFile]:
    """The checkpoint, and what it was saved on top of. Raises CheckpointError, AttestationError.

    The key is given once for a checkpoint. Until it is asked for, a parent that is missing can still be put there, a
    disk that was forgotten be given, and a keeper that does not run be started.
    """
    from memvm.attest.checkpoint_keys import launched_by
    from memvm.attest.key_service import require_keeper
    from memvm.checkpoint.encrypted_files import open_encrypted
    from memvm.checkpoint.restore import require_disks

    files = open_encrypted(arguments.file, opened, arguments.parent)
    require_disks(files[0].path, launched_by(files[0].header).disks, how)
    audience = arguments.keeper_audience or arguments.audience
    if arguments.verifier:
        require_keeper(files[0].header.keeper, audience, arguments.key_keeper, arguments.verifier_ca)
    return files


def _manage(
    arguments: argparse.Namespace,
    program: str,
    load: Load,
    open_files: Callable[[ExitStack], list[EncryptedFile]] = lambda _opened: [],
    release: KeyRelease | None = None,
) -> int:
    """`open_files` opens the checkpoint that the guest comes from, if it does, and that one's parents."""
    from memvm.sealed.guest import SealedGuest
    from memvm.sealed.isolation import fork_platform
    from memvm.sealed.platform import Platform

    _refuse(arguments, "what a sealed guest says to its platform is not printed", "strace")
    _refuse(arguments, "a sealed guest is not stepped through", "pause_after_calls")
    open_standard_streams()
    ready = ReadyPipe(arguments.ready_fd)
    process = fork_platform(lambda connection: Platform(connection, load).run())

    def make(name: str) -> SealedGuest:
        guest = SealedGuest(process, release)
        try:
            for files in map(disks.enter_context, open_disk_files(arguments.disks)):
                guest.give_disk(files)
            with ExitStack() as opened:
                guest.load(name, open_files(opened))
        except BaseException:
            guest.close()
            raise
        return guest

    with ExitStack() as disks:  # whose journals are taken away when the platform has written what it had to
        try:
            return be_manager_of(arguments.name, program, make, SealedGuest.save, SealedGuest.suspend, ready)
        finally:
            process.close()


def _how_to_run(arguments: argparse.Namespace) -> HowToRun:
    from memvm.sealed.making import HowToRun

    disks: list[Disk] = []

    def open_disks(files: Sequence[DiskFiles]) -> None:
        if files or arguments.disks:
            disks.extend(disks_in(files, arguments.disks))

    return HowToRun(
        lambda name: run_options(arguments, name)._replace(sealed=True),
        open_disks,
        lambda machine: settled(machine, arguments, lambda _given: tuple(disks)),
        arguments.tpm,
    )


def _verification(arguments: argparse.Namespace) -> Verification:
    from memvm.sealed.making import Verification

    # The platform is another user's process perhaps, in the same directory.
    authority = str(Path(arguments.verifier_ca).absolute()) if arguments.verifier_ca else ""
    audience = arguments.keeper_audience or arguments.audience
    return Verification(arguments.verifier, audience, authority)


def _refuse(arguments: argparse.Namespace, why: str, *names: str) -> None:
    for name in names:
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: {why}", hint=f"leave --{option} out")


def is_encrypted(path: Path) -> bool:
    """Whether a checkpoint is encrypted; not, if it cannot be read, which is said elsewhere."""
    from memvm.checkpoint.format import ENCRYPTED_MAGIC

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.pread(fd, len(ENCRYPTED_MAGIC), 0) == ENCRYPTED_MAGIC
    except OSError:  # a pipe, say
        return False
    finally:
        os.close(fd)
