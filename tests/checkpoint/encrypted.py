"""Encrypted checkpoints for tests, made of plain ones, with a key that tests know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.encrypted_files import EncryptedFile, open_encrypted
from memvm.checkpoint.encrypted_records import EncryptedOutput
from memvm.checkpoint.encryption import MIN_RECORD_SIZE, WRAPPED_SIZE, EncryptedHeader
from memvm.checkpoint.file_reader import CheckpointFile

KEY = bytes(range(32))


def encrypt(plain: Path, path: Path, parent: Path | None = None, key: bytes = KEY, claims: bytes = b"{}") -> None:
    """Write a plain checkpoint encrypted to `path`, as one on top of the encrypted `parent`, if it is on top of one."""
    with CheckpointFile.open(plain) as file:
        checkpoint_id = file.checkpoint_id
    link = None
    if parent is not None:
        with EncryptedFile.open(parent) as file:
            link = file.link(os.fsencode(parent.name))
    header = EncryptedHeader(checkpoint_id, bytes(32), claims, bytes(WRAPPED_SIZE), b"signed", MIN_RECORD_SIZE, link)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    output = EncryptedOutput(fd, header, key, lambda: None)
    data = plain.read_bytes()
    output.write([data], 0)
    output.truncate(len(data))
    output.publish()


def encrypt_chain(plain: Sequence[Path], folder: Path) -> list[Path]:
    """A chain of plain checkpoints, the oldest first, encrypted in a folder under the same names."""
    paths = [folder / path.name for path in plain]
    for number, (path, source) in enumerate(zip(paths, plain, strict=True)):
        encrypt(source, path, paths[number - 1] if number else None)
    return paths


Contents = tuple[bytes, dict[int, bytes], list[tuple[int, int]]]


def contents_of(chain: Chain) -> Contents:
    """All that a chain has: state, data pages, zero pages. Raises CheckpointError."""
    pages: dict[int, bytes] = {}
    for chunk in range(chain.index.chunk_count):
        if chain.index.alive[chunk]:
            data = chain.decompress(chunk, chain.read_frame(chunk))
            for run in chain.index.runs_of(chunk):
                for page in range(run.first, run.end):
                    pages[page], data = data[:4096], data[4096:]
    return chain.state, pages, [(run.first, run.count) for run in chain.index.zero_runs()]


def read_encrypted(path: Path, given: Sequence[Path] = (), key: bytes = KEY) -> Contents:
    """All that an encrypted chain has. Raises CheckpointError."""
    with ExitStack() as opened:
        files = open_encrypted(path, opened, given)
        return contents_of(Chain.of([file.decrypt(key) for file in files]))
