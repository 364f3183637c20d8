"""What `memvm run` and `memvm restore` share: the options of a manager, and its life from this process on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from memvm.attest.places import platform_directory
from memvm.cli.disks import DiskOptions, open_disks
from memvm.cli.parser import parse_calls
from memvm.errors import MemvmError, UsageError
from memvm.machine.config import EngineChoice, ExitStatus, RunOptions
from memvm.machine.settings import Name
from memvm.say import say
from memvm.units import parse_duration

if TYPE_CHECKING:
    from memvm.checkpoint.save import SaveReport
    from memvm.checkpoint.suspend import SuspendReport
    from memvm.disk.device import Disk
    from memvm.machine.machine import Machine
    from memvm.manager.guest import ManagedGuest, Progress
    from memvm.manager.process import SaveGuest, SuspendGuest
    from memvm.manager.ready import ReadyPipe

G = TypeVar("G", bound="ManagedGuest")


def add_manager_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how a guest is run; nothing of them is part of the guest."""
    parser.add_argument("--name", help="what to call the guest; made from the program's name if not given")
    parser.add_argument(
        "--time-limit",
        metavar="TIME",
        type=parse_duration,
        help="end the guest after this long (90, 250ms, 10s, 2m), with exit status 124",
    )
    parser.add_argument(
        "--engine",
        choices=[choice.value for choice in EngineChoice],
        default=EngineChoice.AUTO.value,
        help="how page faults come to memvm; auto takes userfaultfd where the machine allows it",
    )
    parser.add_argument("--strict", action="store_true", help="end the guest at a system call that memvm does not know")
    parser.add_argument("--strace", action="store_true", help="print each system call and its answer on standard error")
    parser.add_argument(
        "--verifier", metavar="URL", default="", help="where the guest is attested if it asks for a token"
    )
    parser.add_argument("--audience", metavar="NAME", default="", help="whom that token is for")
    parser.add_argument("--verifier-ca", metavar="FILE", default="", help="the certificates to believe for that")
    parser.add_argument("--tpm", action="store_true", help="anchor the guest's run-time register in the platform's TPM")
    parser.add_argument("--broker", metavar="URL", default="", help="where the guest may ask for the keys of its disks")
    parser.add_argument("--broker-ca", metavar="FILE", default="", help="the certificates to believe for that")
    parser.add_argument("--cpu", type=int, metavar="N", help="keep guest and manager's loops on this CPU")
    parser.add_argument(
        "--pause-after-calls",
        metavar="N",
        type=parse_calls,
        default=0,
        help="pause the guest when it has made so many system calls",
    )
    # For programs that start managers, memvm.api first of all: see memvm.manager.ready.
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)


def manage(
    arguments: argparse.Namespace,
    program: str,
    load: Callable[[RunOptions], Machine],
) -> int:
    """Be the manager of the guest that `load` makes until its end; the exit status.

    What goes wrong is raised, unless a program waits for the ready message and is told that way.
    """
    from memvm.manager.ready import ReadyPipe

    open_standard_streams()
    return be_manager(arguments, arguments.name, program, load, ReadyPipe(arguments.ready_fd))


def be_manager(
    arguments: argparse.Namespace,
    name: str | None,
    program: str,
    load: Callable[[RunOptions], Machine],
    ready: ReadyPipe,
) -> int:
    """As `manage`, under this name, once the standard streams are what they shall be."""

    def make(chosen: str) -> Machine:
        return settled(load(run_options(arguments, chosen)), arguments)

    return be_manager_of(name, program, make, _save, _suspend, ready)


class _Rehearsed(Exception):
    """All has been done that there is to rehearse."""


def rehearse_manager(
    arguments: argparse.Namespace, program: str, make: Callable[[RunOptions], None], directory: Path
) -> None:
    """Do what `be_manager` does up to where it has a guest, and undo it, in another run-time directory.

    `make` makes a machine and closes it. Raises what that raises.
    """
    from memvm.manager.ready import ReadyPipe

    def load(name: str) -> Machine:
        make(run_options(arguments, name))
        raise _Rehearsed

    with suppress(_Rehearsed):
        be_manager_of("rehearsal", program, load, _save, _suspend, ReadyPipe(None), directory)


def be_manager_of(
    name: str | None,
    program: str,
    make: Callable[[str], G],
    save: SaveGuest[G],
    suspend: SuspendGuest[G],
    ready: ReadyPipe,
    directory: Path | None = None,
) -> int:
    """As `be_manager`, of any kind of guest: `make` makes it, by its name."""
    from memvm.manager.process import run
    from memvm.report.messages import ending_text

    try:
        ending: ExitStatus = run(name, program, make, save, suspend, ready, directory)
    except MemvmError as error:
        if not ready.failed(error):
            raise
        return error.exit_code
    message = ending_text(ending)
    if message and not ready.is_read:
        say(message)
    return ending.code


def settled(
    guest: Machine,
    arguments: argparse.Namespace,
    open_disks: Callable[[Sequence[DiskOptions]], tuple[Disk, ...]] = open_disks,
) -> Machine:
    """The guest anchored in the TPM, with the time limit that is given, if it had another, its disks, and the verifier.

    Raises AttestationError, DiskError, HostError, SettingRefused, UsageError.
    """
    try:
        if arguments.tpm:
            from memvm.attest.anchoring import anchor_guest, anchoring_of

            if anchoring_of(guest) is None:  # that of a sealed guest has begun before it was restored
                anchor_guest(guest)
        if arguments.time_limit is not None:
            guest.settings.change(Name.TIME_LIMIT, f"{arguments.time_limit:.9f}")
        if arguments.disks:
            from memvm.linux.secret_memory import swap_warning

            guest.guest.disks = open_disks(arguments.disks)
            guest.guest.launched.disks = len(guest.guest.disks)
            if warning := swap_warning():
                guest.warn(warning)
    except BaseException:
        guest.close()
        raise
    if arguments.broker:
        from memvm.attest.relay import HttpRelay

        guest.guest.broker = HttpRelay(arguments.broker, arguments.broker_ca)
    if arguments.verifier:
        url, audience = arguments.verifier, arguments.audience

        def ask() -> None:
            from memvm.attest.rounds import rounds_of

            rounds_of(guest).attest(url, audience, "ietf", arguments.verifier_ca)

        guest.guest.verifier, guest.guest.ask_for_token = url, ask
    return guest


def run_options(arguments: argparse.Namespace, name: str) -> RunOptions:
    """How the arguments say that a guest is to be run."""
    return RunOptions(
        name=name,
        engine=EngineChoice(arguments.engine),
        strict=arguments.strict,
        strace=arguments.strace,
        cpu=arguments.cpu,
        pause_after=arguments.pause_after_calls,
    )


def _save(
    guest: Machine,
    path: Path,
    *,
    live: bool,
    parent: Path | None,
    level: int,
    block_size: int,
    progress: Progress,
) -> SaveReport:
    from memvm.checkpoint.save import SaveOptions, save

    options = SaveOptions(live=live, level=level, block_size=block_size, parent=parent)
    report = save(guest, path, options, progress)
    _seal(guest, path)
    return report


def _suspend(
    guest: Machine, path: Path, *, level: int, block_size: int, time: float, data: int | None, progress: Progress
) -> SuspendReport:
    from memvm.checkpoint.suspend import SuspendOptions, suspend

    report = suspend(guest, path, SuspendOptions(level, block_size, time, data), progress)
    _seal(guest, path)
    return report


def _seal(guest: Machine, path: Path) -> None:
    """Where there is a platform, it vouches for what was saved."""
    if not (platform_directory() / "device.key").exists():
        return
    from memvm.attest.seals import seal_saved

    try:
        seal_saved(guest, path)
    except (MemvmError, OSError) as error:
        guest.warn(f"{path} is saved, and the platform cannot vouch for it: {error}")


def open_standard_streams() -> None:
    """Fill the places of standard streams that are closed: the next file opened would be taken for one."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def parse_assignment(text: str) -> tuple[str, str]:
    """A variable and its value from "K=V", or from "K" and this process's environment. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not name:
        raise UsageError(f"--env {text!r} names no variable", hint="write it like --env LANG=C")
    if equals:
        return name, value
    if name not in os.environ:
        raise UsageError(f"--env {name}: there is no such variable here", hint=f"write --env {name}=VALUE")
    return name, os.environ[name]
