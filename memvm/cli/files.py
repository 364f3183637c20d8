"""`memvm files`: what a guest has of files in memory, or had when it was saved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json
from memvm.errors import NoSuchGuest

if TYPE_CHECKING:
    from memvm.machine.files_state import FilesState


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm files`."""
    parser.epilog = """\
Shows what the guest made, changed and took away in /tmp and in directories that it was given with --rw.
The host's files are as they were. --extract writes what is there to a new directory, in which each file
has its whole path. Of a running guest it is what is there at one instant; it stands still for that.

examples:
  memvm files hub.ckpt
  memvm files --extract changes hub.ckpt
  memvm files hub
"""
    parser.add_argument("what", metavar="FILE|NAME", help="a checkpoint, or a guest that runs")
    parser.add_argument("--extract", metavar="DIR", type=Path, help="write the files to a new directory")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the guest or read the file, and show or write what is there."""
    from memvm.checkpoint.memory_files import extract, memory_files
    from memvm.report.memory_files import memory_files_text
    from memvm.report.records import to_json

    state = _files_of(arguments.what)
    files = memory_files(state) if arguments.extract is None else extract(state, arguments.extract)
    print(to_json(files) if arguments.json else memory_files_text(files))
    return 0


def _files_of(what: str) -> FilesState:
    """Of a file if there is one, or what looks like one, and of a guest otherwise. Raises MemvmError."""
    from memvm.checkpoint.memory_files import files_in
    from memvm.manager.client import connect

    path = Path(what)
    if path.exists() or "/" in what:
        return files_in(path)
    try:
        with connect(what) as client:
            return client.files()
    except NoSuchGuest as error:
        raise NoSuchGuest(f"there is no file {what}, and no guest of that name") from error
