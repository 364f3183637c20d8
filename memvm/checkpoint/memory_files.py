"""The files that a guest has in memory, or had at a checkpoint: listed, and extracted to a directory.

A listing names what was made or changed in each view with a layer, and what the guest took away there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from memvm.checkpoint.file_reader import CheckpointFile
from memvm.errors import HostError, UsageError
from memvm.machine.files_state import FilesState, NodeState
from memvm.machine.state import GuestState

_GONE = -1


class MemoryFile(NamedTuple):
    """A name in memory."""

    path: str
    """In the guest's tree."""
    kind: str
    """file, directory, link, or gone."""
    size: int
    """Bytes; of a link, those of where it leads."""
    mode: int
    """Permission bits."""
    target: str = ""
    """Where a link leads."""


def files_in(path: Path) -> FilesState:
    """What a checkpoint has of files. Raises CheckpointError."""
    with CheckpointFile.open(path) as file:
        header = file.header
        return GuestState.from_json(file.state, header.ram_base, header.ram_size, str(path)).files


def memory_files(state: FilesState) -> list[MemoryFile]:
    """The files in memory, by path."""
    return sorted(_shown(name, node) for name, node, _ in _walk(state))


def extract(state: FilesState, folder: Path) -> list[MemoryFile]:
    """Write the files to a new directory, each at its path in there; what was written.

    Raises UsageError if the directory is there, HostError if it cannot be written.
    """
    written: list[MemoryFile] = []
    first: dict[int, Path] = {}
    try:
        folder.mkdir()
        for name, node, index in _walk(state):
            if node is None:
                continue
            target = folder / os.fsdecode(name.lstrip(b"/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(node, target, first.get(index))
            first.setdefault(index, target)
            written.append(_shown(name, node))
    except FileExistsError as error:
        raise UsageError(f"{folder} is there already", hint="give the name of a new directory") from error
    except OSError as error:
        raise HostError(f"{error.filename or folder}: {error.strerror}") from error
    return sorted(written)


def _walk(state: FilesState) -> Iterator[tuple[bytes, NodeState | None, int]]:
    """Every name with its node (None if it is gone) and the node's index; directories before what is in them."""
    left = [(point, index) for point, index in state.layers]
    while left:
        place, index = left.pop()
        for name, inner in state.nodes[index].entries:
            path = place.rstrip(b"/") + b"/" + name
            if inner == _GONE:
                yield path, None, inner
                continue
            node = state.nodes[inner]
            yield path, node, inner
            if stat.S_ISDIR(node.mode):
                left.append((path, inner))


def _shown(path: bytes, node: NodeState | None) -> MemoryFile:
    shown = os.fsdecode(path)
    if node is None:
        return MemoryFile(shown, "gone", 0, 0)
    mode = stat.S_IMODE(node.mode)
    if stat.S_ISDIR(node.mode):
        return MemoryFile(shown, "directory", 0, mode)
    if stat.S_ISLNK(node.mode):
        return MemoryFile(shown, "link", len(node.content), mode, os.fsdecode(node.content))
    return MemoryFile(shown, "file", len(node.content), mode)


def _write(node: NodeState, target: Path, earlier: Path | None) -> None:
    """Make what is not there yet, so that nothing is written through a link: directories come from here alone."""
    if stat.S_ISDIR(node.mode):
        target.mkdir(mode=0o700, exist_ok=True)
    elif earlier is not None:
        target.hardlink_to(earlier)
    elif stat.S_ISLNK(node.mode):
        target.symlink_to(os.fsdecode(node.content))
    else:
        with target.open("xb") as file:
            file.write(node.content)
            os.fchmod(file.fileno(), stat.S_IMODE(node.mode) & 0o777)
