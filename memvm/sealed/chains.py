"""What the platform of a sealed guest does with the files that its manager gives it: a checkpoint, and its parents.

The manager has found them by their headers, and is not believed. Before anybody is asked for a key the headers have to
be those of one chain, and of one guest. With the key, which all files of a guest have in common, each has to decrypt,
and to have the contents that its child says.

What is attested, and what the verifier compares with the saves that it has seen, is the youngest file alone. Those
that it was saved on top of are older, and have to be: they give pages, as they were pinned when it was saved, and no
state; none of them can be what is restored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from memvm.attest.checkpoint_keys import CheckpointKey, launched_by
from memvm.checkpoint.basis import Parent
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.encrypted_files import EncryptedFile, require_encrypted_chain
from memvm.checkpoint.format import FormatError
from memvm.checkpoint.sections import ParentLink
from memvm.errors import CheckpointError, ControlError, SaveError
from memvm.machine.launched import Launched
from memvm.machine.state import GuestState


class SealedParent(NamedTuple):
    """What an encrypted checkpoint is saved on top of."""

    parent: Parent
    outer: ParentLink
    """What the new file's header says of it."""


def adopt(paths: Sequence[Path], descriptors: Sequence[int]) -> list[EncryptedFile]:
    """The files that came, one chain of them, which are taken over. Raises CheckpointError, and closes them then."""
    files: list[EncryptedFile] = []
    try:
        for path, fd in zip(paths, descriptors, strict=True):
            files.append(EncryptedFile(path, fd))
        if files:
            require_encrypted_chain(files)
    except BaseException:
        for fd in descriptors[len(files) + 1 :]:
            os.close(fd)
        close(files)
        raise
    return files


def close(files: Sequence[EncryptedFile]) -> None:
    """Close them all."""
    for file in files:
        file.close()


def require_lineage(files: Sequence[EncryptedFile]) -> None:
    """Raises CheckpointError unless the headers of a chain claim one guest and its saves, and AttestationError."""
    header = files[0].header
    launched = launched_by(header)
    if wrong := _no_ancestry(files[1:], launched, launched.saves, header.wrapped_key):
        raise CheckpointError(f"{files[0].path}: {wrong}", hint="take another copy of it and of its parents")


def _no_ancestry(parents: Sequence[EncryptedFile], launched: Launched, saves: int, wrapped_key: bytes) -> str:
    """Why files cannot be what save number `saves` of a guest, with this wrapped key, is on top of, by their claims.

    Nothing if they can be. Raises AttestationError for claims that make no sense.
    """
    for file in parents:
        claimed = launched_by(file.header)
        same = (claimed.identity, claimed.digest) == (launched.identity, launched.digest)
        if not same or file.header.wrapped_key != wrapped_key:
            return f"{file.path} is of another guest: it has another key, or was launched as another one"
        if claimed.saves >= saves:
            return f"{file.path} is of save {claimed.saves} of the guest, and cannot be what save {saves} is on top of"
        saves = claimed.saves
    return ""


def open_claimed(files: Sequence[EncryptedFile], key: CheckpointKey) -> Chain:
    """The checkpoint, which has to be the one that its header claims. Closing it closes the files.

    Raises CheckpointError, and closes nothing then.
    """
    chain = Chain.of([file.decrypt(key.key.view) for file in files])
    path, header = str(chain.path), chain.header
    state = GuestState.from_json(chain.state, header.ram_base, header.ram_size, path)
    if state.launched != launched_by(files[0].header).to_fields():
        raise CheckpointError(f"{path}: it holds another guest than its header says", hint="take another copy of it")
    return chain


def open_sealed_parent(
    files: Sequence[EncryptedFile], launched: Launched, key: CheckpointKey, name: str
) -> SealedParent:
    """What the next checkpoint of a guest can be saved on top of, which is called `name` there; the files stay open.

    Raises CheckpointError, SaveError, and ControlError for a name that no file has.
    """
    if wrong := _no_ancestry(files, launched, launched.saves + 1, key.wrapped):
        raise SaveError(wrong, hint="only an older checkpoint of the same guest can be the parent")
    chain = Chain.of([file.decrypt(key.key.view) for file in files])
    try:
        link = chain.link(os.fsencode(name))
        link.pack()
    except (UnicodeError, FormatError):
        raise ControlError("a parent between manager and platform whose name makes no sense") from None
    return SealedParent(Parent(chain, link), files[0].link(link.name))
