"""Files, directories and links that are in memory: the manager's, not the guest's, and bounded by a budget.

Nodes are what Linux calls inodes: a file can have several names and still be there, open, when it has none. What they
hold goes into checkpoints.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from memvm.files.description import O_ACCMODE, Description, Mapped
from memvm.files.facts import BLOCK, USER, Facts
from memvm.units import MIB, format_size

DEVICE = 0x6D76
"""st_dev of everything that is in memory."""
MOST_BYTES = 256 * MIB
NODE_COST = 512
"""Bytes that a node costs beside what is in it; its name counts too."""


class Budget:
    """How many bytes the files in memory may have. Raises OSError(ENOSPC) when there are no more."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most = most
        self.used = 0
        self.was_full = False
        """Whether more was asked for than there is."""
        self.next_inode = 2

    def take(self, amount: int) -> None:
        """Use some bytes, or give some back."""
        if amount > 0 and self.used + amount > self.most:
            self.was_full = True
            raise OSError(errno.ENOSPC, f"files in memory may have {format_size(self.most)}")
        self.used += amount

    def inode(self) -> int:
        """A number that no other node has."""
        self.next_inode += 1
        return self.next_inode - 1


class Node:
    """What all nodes have. `device` and `inode` are what stat(2) tells, also when a file of the host's was copied
    here."""

    __slots__ = ("accessed", "budget", "changed", "device", "group", "inode", "mode", "modified", "names", "owner")

    def __init__(self, budget: Budget, mode: int) -> None:
        budget.take(NODE_COST)
        self.budget = budget
        self.mode = mode
        self.device, self.inode = DEVICE, budget.inode()
        self.owner = self.group = USER
        self.names = 1
        """How many names it has (st_nlink of a file)."""
        self.accessed = self.modified = self.changed = time.time_ns()

    @property
    def size(self) -> int:
        """st_size."""
        return 0

    def facts(self) -> Facts:
        """What stat(2) tells."""
        size = self.size
        return Facts(
            self.device,
            self.inode,
            self.mode,
            2 if isinstance(self, Directory) else self.names,
            self.owner,
            self.group,
            0,
            size,
            -(-size // BLOCK),
            self.accessed,
            self.modified,
            self.changed,
        )

    def take_identity(self, facts: Facts) -> None:
        """Go on for what this is a copy of."""
        self.device, self.inode, self.mode = facts.device, facts.inode, facts.mode
        self.owner, self.group = facts.owner, facts.group
        self.accessed, self.modified, self.changed = facts.accessed, facts.modified, facts.changed

    def may(self, wanted: int) -> None:
        """Raises EACCES unless the mode lets the guest's user do what is `wanted`."""
        bits = self.mode >> 6 if self.owner == USER else self.mode >> 3 if self.group == USER else self.mode
        if wanted & ~bits & 7:
            raise PermissionError(errno.EACCES, "not allowed")

    def set_mode(self, mode: int) -> None:
        """Set the permission bits."""
        self.mode = stat.S_IFMT(self.mode) | mode & 0o7777
        self.touch_changed()

    def set_times(self, accessed: int, modified: int) -> None:
        """Set the times, in ns."""
        self.accessed, self.modified = accessed, modified
        self.touch_changed()

    def forget(self) -> None:
        """Its last name has gone."""
        self.budget.take(-NODE_COST)

    def touch_changed(self) -> None:
        """Something about it is another now."""
        self.changed = time.time_ns()

    def touch_modified(self) -> None:
        """Its contents are others now."""
        self.modified = self.changed = time.time_ns()


class File(Node):
    """A regular file."""

    __slots__ = ("data", "mapped", "opened")

    def __init__(self, budget: Budget, mode: int) -> None:
        super().__init__(budget, stat.S_IFREG | mode & 0o7777)
        self.data = bytearray()
        self.opened = 0
        """How many descriptions refer to it."""
        self.mapped: Mapped | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def resize(self, size: int) -> None:
        """Cut it, or let it grow with zeros. Raises OSError(ENOSPC)."""
        self.budget.take(size - len(self.data))
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))
        self.touch_modified()
        if self.mapped is not None:
            self.mapped.changed(0, 0)

    def write(self, offset: int, views: list[memoryview]) -> int:
        """Store bytes; how many."""
        end = offset + sum(map(len, views))
        if end > len(self.data):
            self.budget.take(end - len(self.data))
            if offset > len(self.data):
                self.data.extend(bytes(offset - len(self.data)))
        start = offset
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)
        self.touch_modified()
        if self.mapped is not None:
            self.mapped.changed(start, end - start)
        return end - start

    def read(self, offset: int, views: list[memoryview]) -> int:
        """Fetch bytes; how many."""
        if self.mapped is not None:
            self.mapped.collect(offset, sum(map(len, views)))
        done = 0
        with memoryview(self.data) as data:
            for view in views:
                part = data[offset + done : offset + done + len(view)]
                view[: len(part)] = part
                done += len(part)
                if len(part) < len(view):
                    break
        return done

    def forget(self) -> None:
        if not self.opened:
            self.budget.take(-len(self.data))
            self.data = bytearray()
            super().forget()


class Link(Node):
    """A symbolic link."""

    __slots__ = ("target",)

    def __init__(self, budget: Budget, target: bytes) -> None:
        super().__init__(budget, stat.S_IFLNK | 0o777)
        self.target = target

    @property
    def size(self) -> int:
        return len(self.target)


class Directory(Node):
    """A directory. In a layer (layer.py) an entry that is None hides what is below; an opaque one hides all."""

    __slots__ = ("entries", "opaque")

    def __init__(self, budget: Budget, mode: int, *, opaque: bool = True) -> None:
        super().__init__(budget, stat.S_IFDIR | mode & 0o7777)
        self.entries: dict[bytes, Node | None] = {}
        self.opaque = opaque

    @property
    def size(self) -> int:
        return 4096


class OpenFile(Description):
    """An open file that is in memory."""

    is_file = True

    def __init__(self, node: File, path: bytes, flags: int) -> None:
        super().__init__(flags)
        self.node = node
        self.path = path
        self.position = 0
        node.opened += 1

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        self.check_access(os.O_RDONLY)
        if offset is not None:
            return self.node.read(offset, views)
        done = self.node.read(self.position, views)
        self.position += done
        return done

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        self.check_access(os.O_WRONLY)
        if self.flags & os.O_APPEND:  # pwrite(2) too, on Linux
            done = self.node.write(len(self.node.data), views)
            if offset is None:
                self.position = len(self.node.data)
            return done
        if offset is not None:
            return self.node.write(offset, views)
        done = self.node.write(self.position, views)
        self.position += done
        return done

    def seek(self, offset: int, whence: int) -> int:
        size = len(self.node.data)
        if whence == os.SEEK_CUR:
            offset += self.position
        elif whence == os.SEEK_END:
            offset += size
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            if not 0 <= offset < size:
                raise OSError(errno.ENXIO, "beyond the end")
            offset = offset if whence == os.SEEK_DATA else size
        elif whence != os.SEEK_SET:
            raise OSError(errno.EINVAL, "no such way to move")
        if not 0 <= offset < 1 << 63:
            raise OSError(errno.EINVAL, "no such position")
        self.position = offset
        return offset

    def facts(self) -> Facts:
        return self.node.facts()

    def truncate(self, size: int) -> None:
        if self.flags & O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EINVAL, "not opened for writing")
        self.node.resize(size)

    def set_mode(self, mode: int) -> None:
        self.node.set_mode(mode)

    def set_times(self, accessed: int, modified: int) -> None:
        self.node.set_times(accessed, modified)

    def settle(self, offset: int, size: int) -> None:
        if self.node.mapped is not None:
            self.node.mapped.collect(offset, size)

    def contents(self, offset: int, size: int) -> bytes:
        self.settle(offset, size)
        return bytes(self.node.data[offset : offset + size])

    def sync(self) -> None:
        self.settle(0, self.node.size)

    def close(self) -> None:
        self.node.opened -= 1
        if not self.node.names:
            self.node.forget()


def drop_name(node: Node) -> None:
    """A node has one name less; with the last one, and its last description, it goes."""
    node.names -= 1
    node.touch_changed()
    if not node.names:
        node.forget()
