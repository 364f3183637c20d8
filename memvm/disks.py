"""Disks for guests, as Python programs give them (memvm.Guest, memvm.restore)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from memvm.errors import UsageError


class Disk(NamedTuple):
    """A disk (memvm disk), and how a guest is given it."""

    path: str | os.PathLike[str]
    key_file: str | os.PathLike[str] | None = None
    """A file with its passphrase: then the guest has its contents in the clear, and without it ciphertext."""
    digest: str = ""
    """The digest in hexadecimal digits that its header has to have (memvm disk info); any, if empty."""
    writable: bool = True


def disk_options(disks: Sequence[str | os.PathLike[str] | Disk]) -> list[str]:
    """Those of `memvm run` and `memvm restore` that give a guest these disks. Raises UsageError."""
    if isinstance(disks, str | Disk):
        raise UsageError("disks has to be a sequence of disks", hint='say ["data.img"]')
    options = []
    for given in disks:
        disk = given if isinstance(given, Disk) else Disk(given)
        options.append(f"--disk={os.fspath(disk.path)}")
        options += [f"--disk-key-file={os.fspath(disk.key_file)}"] if disk.key_file is not None else []
        options += [f"--disk-digest={disk.digest}"] * bool(disk.digest)
        options += ["--disk-read-only"] * (not disk.writable)
    return options
