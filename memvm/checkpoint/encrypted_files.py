"""Encrypted checkpoints for whoever has no key: their headers, and which file was saved on top of which.

So a manager finds the files of a chain, and the platform of its sealed guest checks those that it was given, before
anybody is asked for a key. That the headers are the right ones, only the key shows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from memvm.checkpoint.encrypted_records import EncryptedInput
from memvm.checkpoint.encryption import EncryptedHeader, read_header
from memvm.checkpoint.file_bytes import PlainInput
from memvm.checkpoint.file_reader import CheckpointFile, checkpoint_error
from memvm.checkpoint.finding import another_file, find_parents, require_chain
from memvm.checkpoint.format import FormatError
from memvm.checkpoint.sections import ParentLink
from memvm.errors import CheckpointError
from memvm.linux.secret_memory import Buffer


class EncryptedFile:
    """An open encrypted checkpoint. A context manager."""

    def __init__(self, path: Path, fd: int) -> None:
        """Takes the descriptor over; `path` is what messages call it. Raises CheckpointError."""
        self.path = path
        try:
            self._source = PlainInput(fd)
            self.header: EncryptedHeader = read_header(self._source)
        except (FormatError, OSError) as error:
            os.close(fd)
            raise checkpoint_error(str(path), error) from error

    @classmethod
    def open(cls, path: Path) -> EncryptedFile:
        """Opens a file, and reads its header. Raises CheckpointError."""
        try:
            # Not blocking: somebody may have given a named pipe.
            return cls(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            raise checkpoint_error(str(path), error) from error

    def __enter__(self) -> EncryptedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; idempotent."""
        self._source.close()

    @property
    def fd(self) -> int:
        """Its descriptor, which stays its own."""
        return self._source.fd

    @property
    def checkpoint_id(self) -> bytes:
        return self.header.checkpoint_id

    @property
    def parent(self) -> ParentLink | None:
        return self.header.parent

    def link(self, name: bytes) -> ParentLink:
        """What the header of a file says that is saved on top of this one, and calls it so."""
        return ParentLink(self.checkpoint_id, self.header.digest, name)

    def decrypt(self, key: Buffer) -> CheckpointFile:
        """The checkpoint in it, by its guest's checkpoint key; closing either closes both.

        Raises CheckpointError, also if it is not the checkpoint that the header names.
        """
        try:
            file = CheckpointFile(self.path, EncryptedInput(self._source, self.header, key))
        except (FormatError, OSError) as error:
            raise checkpoint_error(str(self.path), error) from error
        if file.checkpoint_id != self.checkpoint_id:
            raise CheckpointError(
                f"{self.path}: it holds another checkpoint than its header says", hint="take another copy of it"
            )
        return file


def open_encrypted(path: Path, opened: ExitStack, given: Sequence[Path] = ()) -> list[EncryptedFile]:
    """A file and its parents, the youngest first, to be closed with `opened`; as find_parents has it."""
    first = opened.enter_context(EncryptedFile.open(path))
    files = find_parents(first, EncryptedFile.open, _what_is_wrong, given)
    for file in files[1:]:
        opened.push(file)
    return files


def require_encrypted_chain(files: Sequence[EncryptedFile]) -> None:
    """Raises CheckpointError unless the headers of some files are those of a whole chain."""
    require_chain(files, _what_is_wrong)


def _what_is_wrong(_child: EncryptedFile, link: ParentLink, file: EncryptedFile) -> str:
    return another_file(link, file.checkpoint_id, file.header.digest)
