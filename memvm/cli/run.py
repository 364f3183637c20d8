"""`memvm run`: a new guest."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.disks import add_disks
from memvm.cli.launching import add_manager_options, manage, parse_assignment
from memvm.cli.views import add_views
from memvm.errors import ImageError, UsageError
from memvm.machine.config import GuestConfig, RunOptions
from memvm.machine.settings import (
    Name,
    Setting,
    default_settings,
    locked_settings,
    parse_setting,
    parse_value,
    require_sealed,
    sealed_settings,
)
from memvm.units import parse_size

if TYPE_CHECKING:
    from memvm.machine.machine import Machine

INHERITED = ("PATH", "TERM", "LANG", "HOME")
"""The variables that a guest gets from the caller's environment unless told otherwise."""
_MOST_CPUS = 64
_LONGEST_NAME = 64


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm run`."""
    parser.usage = "memvm run [OPTIONS] [--] PROGRAM [ARGUMENTS]"
    parser.epilog = f"""\
PROGRAM is an x86-64 Linux program; without a slash it is looked up in PATH. It gets the variables
{", ".join(INHERITED)} of this environment, what --env gives, and no others. Its standard streams are memvm's
own, and its exit status is memvm's. SIGINT, SIGTERM and SIGHUP are its to handle or ignore, or end it.

The program sees a file tree of its own: /dev, /proc and an empty /tmp in memory, and what --ro, --rw
and --pass give it. A dynamically linked program needs its libraries there; --ro / gives it all files,
to read. Where one directory is given inside another, the inner one counts.

examples:
  memvm run -- busybox sort -n < numbers.txt
  memvm run --ram 256M --name counter --env LANG=C -- ./counter 100
  memvm run --ro / -- python3 -c 'print(6 * 7)'
  memvm run --ro / --rw ~/project -- sqlite3 ~/project/data.db .dump
  memvm run --disk data.img --disk-key-file secret.key -- ./program
  memvm run --strace --time-limit 10s -- ./program
"""
    add_guest_options(parser)
    add_disks(parser)
    add_manager_options(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="PROGRAM", help=argparse.SUPPRESS)


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what a guest is: all of them go into its launch digest."""
    parser.add_argument("--ram", metavar="SIZE", default="1G", help="the guest's RAM, as 64M or 1.5G; 1G if not given")
    parser.add_argument(
        "--env",
        metavar="K[=V]",
        action="append",
        default=[],
        help="a variable for the guest; K alone copies ours",
    )
    add_views(parser)
    parser.add_argument("--cwd", metavar="PATH", default="", help="the directory in the guest's tree to begin in")
    parser.add_argument("--hostname", metavar="NAME", default="memvm", help="what the guest takes for its host's name")
    parser.add_argument("--cpus", metavar="N", type=int, default=1, help="how many CPUs the guest is told of")
    parser.add_argument("--clear-env", action="store_true", help="give the guest what --env gives, and no more")
    parser.add_argument("--env-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--setting",
        metavar="NAME=VALUE:BEHAVIOUR",
        action="append",
        default=[],
        help="a security setting, and what happens if it is changed (memvm config --list)",
    )
    parser.add_argument("--locked", action="store_true", help="the strictest settings, unless --setting says otherwise")
    parser.add_argument(
        "--sealed", action="store_true", help="keep its memory from everybody, its manager included, but root"
    )
    parser.add_argument(
        "--key-keeper",
        metavar="FILE",
        type=Path,
        help="with --sealed: who keeps the key of its checkpoints (his X25519 public key, in PEM)",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run the program to its end; its exit status."""
    command: list[str] = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise UsageError("run: no program was given", hint="memvm run --help")

    if arguments.sealed:
        from memvm.cli.sealing import run_sealed

        return run_sealed(arguments, guest_config(arguments, command), command[0])

    def load(options: RunOptions) -> Machine:
        config = guest_config(arguments, command)
        from memvm.machine.machine import Machine

        return Machine.launch(config, options)

    return manage(arguments, command[0], load)


def guest_config(arguments: argparse.Namespace, command: Sequence[str]) -> GuestConfig:
    """The guest that options and command line describe. Raises ImageError, UsageError."""
    if not 1 <= arguments.cpus <= _MOST_CPUS or not 1 <= len(os.fsencode(arguments.hostname)) <= _LONGEST_NAME:
        raise UsageError(f"a guest has 1 to {_MOST_CPUS} CPUs, and a host name of 1 to {_LONGEST_NAME} bytes")
    views = tuple(arguments.views)
    settings = locked_settings() if arguments.locked else {}
    keeper = _key_keeper(arguments)
    if arguments.sealed:
        settings.update(sealed_settings(saved=bool(keeper)))
    if (limit := getattr(arguments, "time_limit", None)) is not None:
        behaviour = settings.get(Name.TIME_LIMIT, default_settings()[Name.TIME_LIMIT]).behaviour
        settings[Name.TIME_LIMIT] = Setting(parse_value(Name.TIME_LIMIT, f"{limit:.9f}"), behaviour)
    settings.update(map(parse_setting, arguments.setting))
    if arguments.sealed:
        require_sealed(settings, saved=bool(keeper))
    return GuestConfig(
        program=command[0] if views else find_program(command[0]),
        argv=tuple(command),
        env=_environment(arguments),
        ram_size=parse_size(arguments.ram),
        views=views,
        cwd=arguments.cwd,
        hostname=arguments.hostname,
        cpus=arguments.cpus,
        settings=settings,
        key_keeper=keeper,
    )


def _key_keeper(arguments: argparse.Namespace) -> bytes | None:
    """The key keeper's public key; empty for a sealed guest without one, None for an open guest."""
    if arguments.key_keeper is None:
        return b"" if arguments.sealed else None
    if not arguments.sealed:
        raise UsageError("--key-keeper is for sealed guests", hint="add --sealed")
    from memvm.attest.key_files import load_public_to_encrypt

    return load_public_to_encrypt(arguments.key_keeper).public_bytes_raw()


def find_program(name: str) -> str:
    """The file to run, found as a shell finds it (execvp(3)). Raises ImageError."""
    if "/" in name:
        return name  # whether it is there, and a program, the loader says better
    import shutil  # not for a guest whose program has its path given

    found = shutil.which(name)
    if found is None:
        hint = f"./{name} is here: with a slash it is found" if Path(name).exists() else "is it installed?"
        raise ImageError(f"there is no program {name!r} in PATH", hint=hint)
    return found


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    env = {}
    if not arguments.clear_env:
        env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    if arguments.env_fd is not None:
        with open(arguments.env_fd, encoding="ascii") as file:
            given = json.load(file)
        if not all(isinstance(value, str) for value in given.values()):
            raise UsageError("the values of a guest's environment have to be text")
        env.update(given)
    env.update(parse_assignment(text) for text in arguments.env)
    return env
