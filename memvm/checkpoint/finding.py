"""Finds the files of a chain, and checks that they are one: each says which other one it was saved on top of.

A plain checkpoint says so in its parent section, which CheckpointFile reads. An encrypted one says so in its header,
too, for whoever has no key (encrypted_files.py). Digests decide which file is the parent; its name only helps to look.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

from memvm.checkpoint.sections import ParentLink
from memvm.errors import CheckpointError, SaveError

MAX_FILES = 64
"""Of a chain: each costs a descriptor and an index in memory for as long as the chain is open."""
_TRY = "put the file that it was saved on top of beside it, or say where that is with --parent FILE"


class ChainFile(Protocol):
    """An open file that may have a parent."""

    @property
    def path(self) -> Path: ...
    @property
    def checkpoint_id(self) -> bytes: ...
    @property
    def parent(self) -> ParentLink | None: ...
    def close(self) -> None: ...


File = TypeVar("File", bound=ChainFile)
WhatIsWrong = Callable[[File, ParentLink, File], str]
"""Says why a file is not what the link of another one (the first) means; nothing if it is."""


def find_parents(
    first: File, open_file: Callable[[Path], File], what_is_wrong: WhatIsWrong[File], given: Sequence[Path] = ()
) -> list[File]:
    """The file and all its parents, the youngest first; `open_file` opens one, or raises CheckpointError.

    `given` are looked at first, files and directories; then each parent is looked for where it was, and beside its
    child. Raises CheckpointError, which names child and parent if a parent is missing, wrong or damaged, and also if
    a file of `given` is none; what was opened is closed then, but for the first.
    """
    folders = [path for path in given if path.is_dir()]
    unused = [path for path in given if path not in folders]
    with ExitStack() as opened:
        files = [first]
        while (link := files[-1].parent) is not None:
            _check_link(files, link)
            places = [*unused, *_places(files[-1].path, link, folders)]
            files.append(_open_parent(files[-1], link, places, open_file, what_is_wrong))
            if files[-1].path in unused:
                unused.remove(files[-1].path)
            opened.callback(files[-1].close)
        if unused:
            names = ", ".join(str(file.path) for file in files[1:]) or "it has none"
            raise CheckpointError(f"{unused[0]}: this is no parent of {first.path}", hint=f"its parents: {names}")
        opened.pop_all()
    return files


def require_chain(files: Sequence[File], what_is_wrong: WhatIsWrong[File]) -> None:
    """Raises CheckpointError unless some files are a whole chain, the youngest first: somebody else has found them."""
    for number, (child, file) in enumerate(pairwise(files), 1):
        link = child.parent
        if link is None:
            raise CheckpointError(f"{child.path}: it has no parent, and {file.path} was given for one")
        _check_link(files[:number], link)
        if wrong := what_is_wrong(child, link, file):
            raise _wrong_parent(child, link, file.path, wrong)
    if (link := files[-1].parent) is not None:
        raise _missing(files[-1], link)


def another_file(link: ParentLink, checkpoint_id: bytes, digest: bytes) -> str:
    """Why a file with this id, and this digest to pin it, is not what a link means; nothing if it is."""
    if checkpoint_id != link.checkpoint_id:
        return f"another checkpoint: its id is {checkpoint_id.hex()}, not {link.checkpoint_id.hex()}"
    if digest != link.digest:
        return "not as it was any more: its id is right, its contents are others"
    return ""


def require_apart(path: Path, files: Sequence[ChainFile], first: int = 0) -> None:
    """Raises SaveError if a new file at `path` would replace one of a chain, from number `first` on."""
    for file in files[first:]:
        if path.exists() and path.samefile(file.path):
            needs_it = "the new checkpoint" if file is files[0] else files[0].path
            raise SaveError(
                f"{path} cannot be replaced: {needs_it} needs it to stay as it is", hint="choose another name"
            )


def _check_link(files: Sequence[ChainFile], link: ParentLink) -> None:
    """Raises CheckpointError for a chain without end, before anything is opened for it."""
    if any(file.checkpoint_id == link.checkpoint_id for file in files):
        raise CheckpointError(
            f"{files[-1].path}: its parent, {link.hint}, is a file that has it as a parent itself",
            hint="take another copy of the file, or another checkpoint",
        )
    if len(files) >= MAX_FILES:
        raise CheckpointError(
            f"{files[0].path}: it has more than {MAX_FILES - 1} parents; no more are allowed",
            hint="memvm writes no such files: take another checkpoint",
        )


def _open_parent(
    child: File,
    link: ParentLink,
    places: Sequence[Path],
    open_file: Callable[[Path], File],
    what_is_wrong: WhatIsWrong[File],
) -> File:
    """The parent of a file, in the first of the places that has it."""
    problem: CheckpointError | None = None
    for path in places:
        try:
            file = open_file(path)
        except CheckpointError as error:
            problem = CheckpointError(f"{child.path}: its parent {path} cannot be used: {error.message}", hint=_TRY)
            continue
        wrong = what_is_wrong(child, link, file)
        if not wrong:
            return file
        file.close()
        problem = _wrong_parent(child, link, path, wrong)
    raise problem or _missing(child, link)


def _wrong_parent(child: ChainFile, link: ParentLink, path: Path, wrong: str) -> CheckpointError:
    return CheckpointError(f"{child.path}: its parent was {link.hint}, but {path} is {wrong}", hint=_TRY)


def _missing(child: ChainFile, link: ParentLink) -> CheckpointError:
    return CheckpointError(
        f"{child.path}: its parent {link.hint} is missing; pages that did not change are in there", hint=_TRY
    )


def _places(child: Path, link: ParentLink, given: Sequence[Path]) -> list[Path]:
    """Where the parent may be: in given directories, where it was, beside the child; each file that is there, once."""
    folders = (child.parent, Path(os.path.realpath(child)).parent)
    guesses = [folder / link.hint.name for folder in given]
    guesses += [folder / name for folder in folders for name in (link.hint, Path(link.hint.name))]
    found: dict[tuple[int, int], Path] = {}
    for guess in guesses:
        try:
            status = guess.stat()
        except OSError:
            continue
        found.setdefault((status.st_dev, status.st_ino), guess)
    return list(found.values())
