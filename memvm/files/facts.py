"""What stat(2) tells of a file, wherever the file is; and what a directory tells of its entries."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

USER = 1000
"""The guest's user and group, in every guest; who owns what is in memory."""
BLOCK = 512
"""Bytes that st_blocks counts in."""
BLOCK_SIZE = 4096
"""What a guest is told to read and write at a time."""


class Facts(NamedTuple):
    """struct stat. Times are ns since the epoch, sizes bytes, `blocks` of 512 bytes."""

    device: int
    inode: int
    mode: int
    links: int
    owner: int
    group: int
    special: int
    """The device number that a device file stands for."""
    size: int
    blocks: int
    accessed: int
    modified: int
    changed: int

    @classmethod
    def of_host(cls, told: os.stat_result) -> Facts:
        """As the host has them, but for the owner: what is of the user whose rights the guest has is the guest's.

        Programs want to know that (git, ssh). Who has the guest's number on the
        host is told the other one, so that two who are different stay so.
        """
        return cls(
            told.st_dev,
            told.st_ino,
            told.st_mode,
            told.st_nlink,
            _exchanged(told.st_uid, os.geteuid()),
            _exchanged(told.st_gid, os.getegid()),
            told.st_rdev,
            told.st_size,
            told.st_blocks,
            told.st_atime_ns,
            told.st_mtime_ns,
            told.st_ctime_ns,
        )

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


def _exchanged(number: int, ours: int) -> int:
    return {ours: USER, USER: ours}.get(number, number)


class Entry(NamedTuple):
    """One name in a directory; `kind` is the upper part of the mode (S_IFMT)."""

    name: bytes
    inode: int
    kind: int
