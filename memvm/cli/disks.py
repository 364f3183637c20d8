"""The options that give a guest disks, for `memvm run` and `memvm restore`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.errors import DiskError, UsageError

if TYPE_CHECKING:
    from memvm.disk.device import Disk
    from memvm.disk.files import DiskFiles


class DiskOptions(NamedTuple):
    """One disk, as it is given."""

    path: Path
    key_file: Path | None = None
    digest: bytes | None = None
    writable: bool = True


def add_disks(parser: argparse.ArgumentParser) -> None:
    """The options that give a guest disks."""
    parser.add_argument(
        "--disk",
        metavar="FILE",
        dest="disks",
        default=(),
        action=_Disk,
        help="give the guest a disk (memvm disk): what it reads is ciphertext, unless the manager has the key",
    )
    for name, metavar, text in (
        ("key-file", "FILE", "the passphrase of the --disk before it: the guest gets its contents in the clear"),
        ("digest", "HEX", "the digest that the header of the --disk before it has to have (memvm disk info)"),
    ):
        parser.add_argument(f"--disk-{name}", metavar=metavar, dest="disks", action=_OfDisk, help=text)
    parser.add_argument(
        "--disk-read-only", dest="disks", nargs=0, action=_OfDisk, help="let the guest only read the --disk before it"
    )


class _Disk(argparse.Action):
    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, _option: Any = None) -> None:
        namespace.disks = (*namespace.disks, DiskOptions(Path(value)))


class _OfDisk(argparse.Action):
    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        if not namespace.disks:
            raise UsageError(f"{option} is about the disk before it, and there is none", hint="--disk FILE comes first")
        *others, last = namespace.disks
        if option == "--disk-key-file":
            last = last._replace(key_file=Path(value))
        elif option == "--disk-digest":
            last = last._replace(digest=_digest(value))
        else:
            last = last._replace(writable=False)
        namespace.disks = (*others, last)


def _digest(text: str) -> bytes:
    from memvm.disk.volume import DIGEST_SIZE

    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != DIGEST_SIZE:
        raise UsageError(f"not the digest of a disk's header: {text!r:.120}", hint="memvm disk info shows it")
    return found


def open_disks(given: Sequence[DiskOptions]) -> tuple[Disk, ...]:
    """Open them all, or none. Raises DiskError, HostError, UsageError."""
    return disks_in(open_disk_files(given), given)


def open_disk_files(given: Sequence[DiskOptions]) -> tuple[DiskFiles, ...]:
    """The files of all of them, locked. Raises DiskError."""
    from memvm.disk.files import open_files

    with ExitStack() as opened:
        found = tuple(opened.enter_context(open_files(options.path, writable=options.writable)) for options in given)
        opened.pop_all()
    return found


def disks_in(files: Sequence[DiskFiles], given: Sequence[DiskOptions]) -> tuple[Disk, ...]:
    """The disks in these files, which it takes over. Raises DiskError, HostError, UsageError."""
    from memvm.attest.places import platform_directory
    from memvm.cli.disk import read_key_file
    from memvm.disk.device import disk_in
    from memvm.linux.prctl import refuse_core_dumps

    refuse_core_dumps()
    with ExitStack() as opened:
        for each in files:
            opened.callback(each.close)
        if [each.is_writable for each in files] != [options.writable for options in given]:
            raise DiskError("the files that came for a guest's disks are not those of the disks that it is given")
        found = []
        for each, options in zip(files, given, strict=True):
            passphrase = read_key_file(options.key_file) if options.key_file is not None else None
            found.append(disk_in(each, passphrase=passphrase, pinned=options.digest, platform=platform_directory()))
            opened.callback(found[-1].abandon)
        opened.pop_all()
    return tuple(found)
