"""`memvm disk`: encrypted disks for guests, made, shown, filled, read, and given other keys."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json
from memvm.errors import UsageError
from memvm.say import say
from memvm.units import format_size, parse_size

if TYPE_CHECKING:
    from typing import BinaryIO

_LONGEST_KEY_FILE = 8 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm disk`."""
    parser.epilog = """\
A disk is a LUKS2 file, which cryptsetup opens as well; memvm opens what cryptsetup made, if it is encrypted
with aes-xts-plain64. What FILE2 is: for import a plain file whose contents go onto the disk, for export the
file to write; - stands for a standard stream.

A passphrase is asked for, or is all that is in --key-file, byte for byte. rekey gives a disk another one,
and with --volume-key encrypts the data anew, with another volume key.

With --integrity, the platform (memvm platform init) keeps a counter and the root of a tree of tags, which lie
in FILE.tags: sectors that were changed, exchanged or brought back from an old copy are errors from then on.
cryptsetup does not know of it, and must not write such a disk.

examples:
  memvm disk create --size 64M --key-file secret.key data.img
  memvm disk import --key-file secret.key data.img words.txt
  memvm disk export --key-file secret.key data.img - | head -c 100
  memvm disk info data.img
  memvm run --disk data.img --disk-key-file secret.key -- ./worker
  memvm disk rekey --key-file secret.key --new-key-file new.key data.img
"""
    parser.add_argument("action", choices=("create", "info", "import", "export", "rekey"), help="what to do")
    parser.add_argument("file", metavar="FILE", type=Path, help="the disk")
    parser.add_argument("other", metavar="FILE2", nargs="?", help="for import and export: the plain file")
    parser.add_argument("--size", metavar="SIZE", type=parse_size, help="create: bytes of data, as 64M or 1.5G")
    parser.add_argument(
        "--key-file", metavar="FILE", type=Path, help="a file with the passphrase; asked for if not given"
    )
    parser.add_argument("--new-key-file", metavar="FILE", type=Path, help="rekey: a file with the new passphrase")
    parser.add_argument("--volume-key", action="store_true", help="rekey: encrypt the data anew as well")
    parser.add_argument(
        "--pbkdf", choices=("argon2id", "pbkdf2"), default="argon2id", help="how a passphrase is hashed"
    )
    parser.add_argument(
        "--pbkdf-iterations", metavar="N", type=int, default=0, help="how often; what takes a second here"
    )
    parser.add_argument(
        "--sector-size", metavar="N", type=int, default=4096, help="create: 512 to 4096; 4096 if not given"
    )
    parser.add_argument("--label", default="", help="create: a name for people")
    parser.add_argument("--integrity", action="store_true", help="create: have the platform keep an integrity tree")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Do it."""
    from memvm.linux.prctl import refuse_inspection

    if arguments.action != "info":
        refuse_inspection()  # from here on there are keys in memory
    {"create": _create, "info": _info, "import": _import, "export": _export, "rekey": _rekey}[arguments.action](
        arguments
    )
    return 0


def _create(arguments: argparse.Namespace) -> None:
    from memvm.attest.places import platform_directory
    from memvm.disk.integrity import protect
    from memvm.disk.volume import create, open_volume

    if arguments.size is None:
        raise UsageError("disk create: how large shall it be?", hint="--size 64M")
    platform = platform_directory()
    if arguments.integrity and not (platform / "device.key").exists():
        raise UsageError("an integrity tree needs a platform, and there is none", hint="memvm platform init")
    path: Path = arguments.file
    create(
        path,
        arguments.size,
        ask_passphrase(arguments.key_file, "a passphrase for the new disk", twice=True),
        kind=arguments.pbkdf,
        iterations=arguments.pbkdf_iterations,
        sector_size=arguments.sector_size,
        label=arguments.label,
    )
    if arguments.integrity:
        try:
            with open_volume(path) as volume:
                protect(path, volume.header.uuid, volume.size // volume.sector_size, platform)
        except BaseException:
            path.unlink()  # it would be taken for a disk that nobody protects
            raise


def _info(arguments: argparse.Namespace) -> None:
    from memvm.attest.places import platform_directory
    from memvm.disk.told import tell
    from memvm.report.records import to_json, to_text

    told = tell(arguments.file, platform_directory())
    print(to_json(told) if arguments.json else to_text(told))


def _import(arguments: argparse.Namespace) -> None:
    from memvm.attest.places import platform_directory
    from memvm.disk.device import open_disk
    from memvm.disk.transfer import import_disk

    other = _other(arguments)
    passphrase = ask_passphrase(arguments.key_file, f"the passphrase of {arguments.file}")
    with open_disk(arguments.file, passphrase=passphrase, platform=platform_directory()) as disk:
        if other == "-":
            length = import_disk(disk, sys.stdin.buffer)
        else:
            with _opened(other, "rb") as source:
                length = import_disk(disk, source)
    say(f"memvm: {format_size(length)} are on {arguments.file}")


def _export(arguments: argparse.Namespace) -> None:
    from memvm.attest.places import platform_directory
    from memvm.disk.device import open_disk
    from memvm.disk.transfer import export_disk

    other = _other(arguments)
    passphrase = ask_passphrase(arguments.key_file, f"the passphrase of {arguments.file}")
    with open_disk(arguments.file, passphrase=passphrase, platform=platform_directory()) as disk:
        if other == "-":
            export_disk(disk, sys.stdout.buffer)
            sys.stdout.flush()
        else:
            target = _opened(other, "xb")
            try:
                with target:
                    export_disk(disk, target)
            except BaseException as error:
                Path(other).unlink()  # it would be taken for the whole disk, and be in the way of the next try
                if isinstance(error, OSError):
                    raise OSError(error.errno, error.strerror, other) from error
                raise


def _rekey(arguments: argparse.Namespace) -> None:
    from memvm.attest.places import platform_directory
    from memvm.disk.transfer import renew
    from memvm.disk.volume import open_volume

    path: Path = arguments.file
    old = ask_passphrase(arguments.key_file, f"the passphrase of {path}")
    new = ask_passphrase(arguments.new_key_file, f"the new passphrase of {path}", twice=True)
    how = {"kind": arguments.pbkdf, "iterations": arguments.pbkdf_iterations}
    if arguments.volume_key:
        renew(path, old, new, platform_directory(), **how)
        return
    with open_volume(path, writable=True) as volume:
        volume.replace_passphrase(old, new, **how)


def _other(arguments: argparse.Namespace) -> str:
    if arguments.other is None:
        raise UsageError(f"disk {arguments.action}: which file?", hint=f"memvm disk {arguments.action} FILE FILE2")
    return str(arguments.other)


def _opened(name: str, mode: str) -> BinaryIO:
    try:
        return open(name, mode)  # type: ignore[return-value]  # the mode is a binary one
    except FileExistsError:
        raise UsageError(f"{name} is there already") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None


def ask_passphrase(path: Path | None, what: str, *, twice: bool = False) -> bytes:
    """A passphrase from a file, or from whoever sits at the terminal. Raises UsageError."""
    if path is not None:
        return read_key_file(path)
    import getpass

    if not sys.stdin.isatty():
        raise UsageError(f"{what} is needed, and there is no terminal to ask for it", hint="--key-file FILE")
    found = getpass.getpass(f"{what}: ")
    if twice and getpass.getpass("once more: ") != found:
        raise UsageError("these are two passphrases")
    if not found:
        raise UsageError("an empty passphrase protects nothing")
    return found.encode()


def read_key_file(path: Path) -> bytes:
    """A passphrase: all that is in a file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            found = file.read(_LONGEST_KEY_FILE + 1)
    except OSError as error:
        raise UsageError(f"{path}: the key cannot be read: {error.strerror}") from None
    if not 0 < len(found) <= _LONGEST_KEY_FILE:
        raise UsageError(f"{path}: a key has 1 to {format_size(_LONGEST_KEY_FILE)}, and this has {len(found)} bytes")
    return found
