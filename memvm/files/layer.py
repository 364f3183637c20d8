"""A view whose changes stay in memory, on top of another view, or of nothing.

    upper     directories, files and links in memory: what was made or changed here
    lower     a view of the host's, which is never written; none for a directory that is all in memory

A name is looked up in the upper directories first. Where one has no entry and is not opaque, the lower view has the
word; an entry that is None says that the name is gone. A file of the lower view that is opened for writing is copied
up as a whole, and keeps its identity. A directory of the lower view cannot be renamed (EXDEV, as overlayfs has it:
programs copy then).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from memvm.files.description import O_ACCMODE, Description, OpenDirectory
from memvm.files.facts import Entry, Facts
from memvm.files.nodes import Budget, Directory, File, Link, Node, OpenFile, drop_name
from memvm.files.view import View, refuse_writing

_COPY_STEP = 1 << 20
_LONGEST_NAME = 255

N = TypeVar("N", bound=Node)


class _Found(NamedTuple):
    """Where a path leads: a node in memory, or the lower view's business; else FileNotFoundError was raised."""

    node: Node | None


_BELOW = _Found(None)


class LayeredView(View):
    """Changes in memory on top of `lower`."""

    def __init__(self, budget: Budget, root: Directory, lower: View | None = None, *, writable: bool = True) -> None:
        self.budget = budget
        self.root = root
        self.lower = lower
        self.writable = writable

    def close(self) -> None:
        if self.lower is not None:
            self.lower.close()

    def _find(self, path: bytes) -> _Found:
        """Raises FileNotFoundError, NotADirectoryError, and ELOOP for a link on the way."""
        node: Node = self.root
        if not path:
            return _Found(node)
        for name in path.split(b"/"):
            if not isinstance(node, Directory):
                if isinstance(node, Link):
                    raise OSError(errno.ELOOP, "a link on the way")
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            entry = node.entries.get(name, _BELOW)
            if entry is None or (entry is _BELOW and (node.opaque or self.lower is None)):
                if len(name) > _LONGEST_NAME:
                    raise OSError(errno.ENAMETOOLONG, "a name that is too long")
                raise FileNotFoundError(errno.ENOENT, "not there")
            if isinstance(entry, _Found):
                return _BELOW
            node = entry
        return _Found(node)

    def _lower(self) -> View:
        assert self.lower is not None
        return self.lower

    def facts(self, path: bytes) -> Facts:
        node = self._find(path).node
        return self._lower().facts(path) if node is None else node.facts()

    def target(self, path: bytes) -> bytes:
        node = self._find(path).node
        if node is None:
            return self._lower().target(path)
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, "not a link")
        return node.target

    def names(self, path: bytes) -> list[Entry]:
        node = self._find(path).node
        if node is None:
            return self._lower().names(path)
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        above = [Entry(name, n.inode, stat.S_IFMT(n.mode)) for name, n in node.entries.items() if n is not None]
        if node.opaque or self.lower is None:
            return above
        return above + [entry for entry in self.lower.names(path) if entry.name not in node.entries]

    def may(self, path: bytes, wanted: int) -> None:
        node = self._find(path).node
        if wanted & os.W_OK and not self.writable:
            refuse_writing()
        if node is not None:
            node.may(wanted)
        else:  # whoever may read a file here may have a changed copy of it
            self._lower().may(path, wanted & ~os.W_OK | (os.R_OK if wanted & os.W_OK else 0))

    def open(self, path: bytes, flags: int, mode: int, place: bytes) -> Description:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no files without a name")
        changes = flags & O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if changes and not self.writable:
            self.facts(path)
            refuse_writing()
        try:
            node = self._find(path).node
            facts = self._lower().facts(path) if node is None else node.facts()
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            return self._create(path, flags, mode, place)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "is there")
        if facts.is_link:
            raise OSError(errno.ELOOP, "a link")
        if facts.is_directory:
            if changes or flags & os.O_CREAT:
                raise IsADirectoryError(errno.EISDIR, "a directory")
            return OpenDirectory(place, flags, facts)
        if flags & os.O_DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        if node is None:
            if not changes:
                return self._lower().open(path, flags & ~(os.O_CREAT | os.O_EXCL), 0, place)
            node = self._copy_up(path)
        else:
            node.may((os.R_OK, os.W_OK, os.R_OK | os.W_OK, 0)[flags & O_ACCMODE])
        assert isinstance(node, File)
        if flags & os.O_TRUNC and node.data:
            node.resize(0)
        return OpenFile(node, place, flags)

    def _create(self, path: bytes, flags: int, mode: int, place: bytes) -> Description:
        if flags & os.O_DIRECTORY:
            raise OSError(errno.EINVAL, "a directory cannot be made so")
        node = self._insert(path, lambda: File(self.budget, mode))
        return OpenFile(node, place, flags)

    def _parent(self, path: bytes) -> tuple[Directory, bytes]:
        """The upper directory that a path's last name is in, and that name; made of the lower one where needed."""
        if not self.writable:
            refuse_writing()
        parent, _, name = path.rpartition(b"/")
        if not name:
            raise OSError(errno.EBUSY, "the root of a view")
        if len(name) > _LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, "a name that is too long")
        node: Node | None = self._find(parent).node
        if node is None:
            node = self._copy_directories(parent)
        if isinstance(node, Link):
            raise OSError(errno.ELOOP, "a link on the way")
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        node.may(os.W_OK | os.X_OK)
        return node, name

    def _copy_directories(self, path: bytes) -> Directory:
        """Upper directories for all on the way to a lower one."""
        node, way = self.root, b""
        for name in path.split(b"/"):
            way = way + b"/" + name if way else name
            entry = node.entries.get(name)
            if entry is None:
                facts = self._lower().facts(way)
                if facts.is_link:
                    raise OSError(errno.ELOOP, "a link on the way")
                if not facts.is_directory:
                    raise NotADirectoryError(errno.ENOTDIR, "not a directory")
                entry = Directory(self.budget, facts.mode, opaque=False)
                entry.take_identity(facts)
                entry.owner = entry.group = node.owner  # who may read it may change what he sees of it
                node.entries[name] = entry
            assert isinstance(entry, Directory)
            node = entry
        return node

    def _exists(self, path: bytes) -> bool:
        try:
            self.facts(path)
        except FileNotFoundError:
            return False
        return True

    def _insert(self, path: bytes, make: Callable[[], N]) -> N:
        """Put a new node where nothing is. Raises FileExistsError."""
        if self._exists(path):
            raise FileExistsError(errno.EEXIST, "is there")
        directory, name = self._parent(path)
        self.budget.take(len(name))
        node = make()
        directory.entries[name] = node
        directory.touch_modified()
        return node

    def _copy_up(self, path: bytes) -> Node:
        """A node for what only the lower view has."""
        facts = self._lower().facts(path)
        directory, name = self._parent(path)
        node: Node
        if facts.is_directory:
            return self._copy_directories(path)
        if facts.is_link:
            node = Link(self.budget, self._lower().target(path))
        elif stat.S_ISREG(facts.mode):
            node = self._copied(path, facts)
        else:
            raise OSError(errno.ENXIO, "neither a file nor a directory")
        node.take_identity(facts)
        node.owner = node.group = directory.owner
        directory.entries[name] = node
        return node

    def _copied(self, path: bytes, facts: Facts) -> File:
        source = self._lower().open(path, os.O_RDONLY, 0, b"")
        try:
            node = File(self.budget, facts.mode)
            node.resize(facts.size)
            offset = 0
            with memoryview(node.data) as data:
                while offset < len(data) and (step := source.read([data[offset : offset + _COPY_STEP]], offset)):
                    offset += step
            return node
        finally:
            source.close()

    def _own(self, path: bytes) -> Node:
        """The node of a path, copied up where needed."""
        if not self.writable:
            refuse_writing()
        return self._find(path).node or self._copy_up(path)

    def make_directory(self, path: bytes, mode: int) -> None:
        self._insert(path, lambda: Directory(self.budget, mode))

    def make_link(self, path: bytes, target: bytes) -> None:
        self._insert(path, lambda: Link(self.budget, target))

    def add_name(self, path: bytes, new: bytes) -> None:
        node = self._own(path)
        if isinstance(node, Directory):
            raise PermissionError(errno.EPERM, "a directory has one name")
        self._insert(new, lambda: node)
        node.names += 1
        node.touch_changed()

    def remove(self, path: bytes) -> None:
        if self.facts(path).is_directory:
            raise IsADirectoryError(errno.EISDIR, "a directory")
        self._take(path)

    def remove_directory(self, path: bytes) -> None:
        if not self.facts(path).is_directory:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        if self.names(path):
            raise OSError(errno.ENOTEMPTY, "not empty")
        self._take(path)

    def _take(self, path: bytes) -> None:
        """Take a name away, and hide what the lower view has by it."""
        directory, name = self._parent(path)
        node = directory.entries.pop(name, None)
        if self._lower_has(directory, path):
            directory.entries[name] = None
        directory.touch_modified()
        if node is not None:
            self.budget.take(-len(name))
            drop_name(node)

    def _lower_has(self, directory: Directory, path: bytes) -> bool:
        if directory.opaque or self.lower is None:
            return False
        try:
            self.lower.facts(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def rename(self, path: bytes, new: bytes, *, replace: bool) -> None:
        facts = self.facts(path)
        if new == path:
            return
        if new.startswith(path + b"/"):
            raise OSError(errno.EINVAL, "into itself")
        try:
            there: Facts | None = self.facts(new)
        except FileNotFoundError:
            there = None
        if there is not None:
            if not replace:
                raise FileExistsError(errno.EEXIST, "is there")
            if facts.is_directory and not there.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, "a directory does not replace a file")
            if there.is_directory and not facts.is_directory:
                raise IsADirectoryError(errno.EISDIR, "a file does not replace a directory")
            if (there.device, there.inode) == (facts.device, facts.inode) and not there.is_directory:
                return
        node = self._find(path).node
        if facts.is_directory and not (isinstance(node, Directory) and node.opaque):
            raise OSError(errno.EXDEV, "a directory of the lower view")
        node = node or self._copy_up(path)
        self._parent(new)
        if there is not None:
            (self.remove_directory if there.is_directory else self.remove)(new)
        node.names += 1
        target, name = self._parent(new)
        self.budget.take(len(name))
        target.entries[name] = node
        target.touch_modified()
        self._take(path)

    def set_mode(self, path: bytes, mode: int) -> None:
        self._own(path).set_mode(mode)

    def set_times(self, path: bytes, accessed: int, modified: int) -> None:
        self._own(path).set_times(accessed, modified)
