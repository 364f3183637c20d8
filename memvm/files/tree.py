"""The guest's file tree: which view is where, and the way from a path to a place in a view.

A *place* is an absolute path without links, `.`, `..` and doubled slashes. The tree finds the view whose mount point
is the longest beginning of it. Views follow no links. So a path is tried as it is, and if a link is on its way
(ELOOP) it is walked here, name by name: a link leads where it says in the guest's tree, `..` leads to where the name
before it was, and neither knows of a world outside.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from memvm.files.description import Description, OpenDirectory
from memvm.files.facts import Entry, Facts
from memvm.files.view import View

T = TypeVar("T")

_MOST_LINKS = 40  # path_resolution(7)
_LONGEST_PATH = 4096
_PLAIN = (b"", b".", b"..")
_NEW = os.O_CREAT | os.O_EXCL


class Place(NamedTuple):
    """A path in the tree, without links."""

    view: View
    inside: bytes
    """In the view."""
    path: bytes
    """In the tree, from `/` on."""


class Tree:
    """The views of one guest. Paths are bytes; `base` is the place that a relative one starts from."""

    def __init__(self, root: View) -> None:
        self._mounts: dict[bytes, View] = {b"": root}
        """By mount point, without its final slash."""

    def mount(self, point: bytes, view: View) -> None:
        """Have a view cover what is at an absolute path without links."""
        point = point.rstrip(b"/")
        before = self._mounts.pop(point, None)
        if before is not None:
            before.close()
        self._mounts[point] = view

    @property
    def mounts(self) -> dict[bytes, View]:
        """The views by mount point; that of the root is empty."""
        return self._mounts

    def close(self) -> None:
        """Let go of all views."""
        for view in self._mounts.values():
            view.close()

    def place(self, path: bytes) -> Place:
        """The place of an absolute path that is one."""
        point = path if path != b"/" else b""
        while point not in self._mounts:
            point = point[: point.rindex(b"/")]
        return Place(self._mounts[point], path[len(point) + 1 :], path)

    def on(self, base: bytes, path: bytes, act: Callable[[Place], T], *, follow: bool = True) -> T:
        """Do something where a path leads. With `follow`, a link at its end is followed. Raises OSError."""
        if not path:
            raise FileNotFoundError(errno.ENOENT, "an empty path")
        if len(path) >= _LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, "a path that is too long")
        names = path.split(b"/")
        if path[0] == 47 and not any(name in _PLAIN for name in names[1:]):
            whole = path
        else:
            if names[-1] in _PLAIN:
                return act(self.walk(base, path, follow=True))
            if b".." in names:
                return act(self.walk(base, path, follow=follow))
            plain = [name for name in names if name not in _PLAIN]
            whole = (b"" if path[0] == 47 or base == b"/" else base) + b"/" + b"/".join(plain)
        place = self.place(whole)
        try:
            return act(place)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        return act(self.walk(base, path, follow=follow))

    def walk(self, base: bytes, path: bytes, *, follow: bool) -> Place:
        """Where a path leads, name by name. Its last name need not be there. Raises OSError."""
        done: list[bytes] = [] if path[0] == 47 else [name for name in base.split(b"/") if name]
        left = path.split(b"/")[::-1]
        links = 0
        must_be_directory = left[0] in _PLAIN
        while left:
            name = left.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if done:
                    done.pop()
                continue
            place = self.place(b"/" + b"/".join([*done, name]))
            last = not any(other for other in left)
            if last and not left and not follow:
                done.append(name)
                break
            try:
                facts = self.facts_at(place)
            except FileNotFoundError:
                if last and not must_be_directory:
                    done.append(name)
                    break
                raise
            if facts.is_link and not (last and place.view.behind(place.inside)):
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, "too many links")
                target = self.target_at(place)
                if not target:
                    raise FileNotFoundError(errno.ENOENT, "a link that leads nowhere")
                if target[0] == 47:
                    done = []
                left += target.split(b"/")[::-1]
                continue
            if (not last or must_be_directory) and not facts.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            done.append(name)
        return self.place(b"/" + b"/".join(done))

    def facts_at(self, place: Place) -> Facts:
        """lstat(2) at a place."""
        return place.view.facts(place.inside)

    def target_at(self, place: Place) -> bytes:
        """readlink(2) at a place."""
        return place.view.target(place.inside)

    # What calls do.

    def facts(self, base: bytes, path: bytes, *, follow: bool) -> Facts:
        """stat(2), or lstat(2) if a link at the end is not followed."""

        def look(place: Place) -> Facts:
            facts = place.view.facts(place.inside)
            if follow and facts.is_link:
                behind = place.view.behind(place.inside)
                if behind is None:
                    raise OSError(errno.ELOOP, "a link")
                return behind.facts()
            return facts

        return self.on(base, path, look, follow=follow)

    def target(self, base: bytes, path: bytes) -> bytes:
        """readlink(2)."""
        return self.on(base, path, self.target_at, follow=False)

    def open(self, base: bytes, path: bytes, flags: int, mode: int) -> Description:
        """open(2). `mode` has the umask taken off."""
        follow = not flags & os.O_NOFOLLOW and (flags & _NEW) != _NEW
        if path.endswith(b"/"):
            if flags & os.O_CREAT:
                raise IsADirectoryError(errno.EISDIR, "a directory")
            flags |= os.O_DIRECTORY

        def act(place: Place) -> Description:
            try:
                return place.view.open(place.inside, flags, mode, place.path)
            except OSError as error:
                # Only where it is the last name: a link on the way has to be walked.
                if error.errno == errno.ELOOP and flags & os.O_PATH and not follow and self.facts_at(place).is_link:
                    raise OSError(errno.EOPNOTSUPP, "a link itself cannot be opened") from error
                raise

        return self.on(base, path, act, follow=follow)

    def directory(self, base: bytes, path: bytes) -> bytes:
        """The place of a directory, as chdir(2) wants it."""

        def look(place: Place) -> bytes:
            facts = place.view.facts(place.inside)
            if facts.is_link:
                raise OSError(errno.ELOOP, "a link")
            if not facts.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            place.view.may(place.inside, os.X_OK)
            return place.path

        return self.on(base, path, look)

    def may(self, base: bytes, path: bytes, wanted: int, *, follow: bool) -> None:
        """access(2)."""

        def ask(place: Place) -> None:
            if follow and place.view.facts(place.inside).is_link and place.view.behind(place.inside) is None:
                raise OSError(errno.ELOOP, "a link")
            place.view.may(place.inside, wanted)

        self.on(base, path, ask, follow=follow)

    def names(self, directory: OpenDirectory) -> list[Entry]:
        """What is in an open directory, with `.` and `..` and what is mounted in it."""
        if directory.names is None:
            place = self.place(directory.path)
            found = {entry.name: entry for entry in place.view.names(place.inside)}
            prefix = b"" if directory.path == b"/" else directory.path
            for point, view in self._mounts.items():
                parent, _, name = point.rpartition(b"/")
                if name and parent == prefix:
                    found[name] = Entry(name, view.facts(b"").inode, 0o040000)
            own = directory.facts().inode
            above = self._inode_above(prefix, own)
            directory.names = [Entry(b".", own, 0o040000), Entry(b"..", above, 0o040000), *found.values()]
        return directory.names

    def _inode_above(self, path: bytes, own: int) -> int:
        """The inode of `..`; a view of the host's may lack the directory that a mount point is in."""
        try:
            return self.facts_at(self.place(path[: path.rindex(b"/")] or b"/" if path else b"/")).inode
        except FileNotFoundError:
            return own

    def change(self, base: bytes, path: bytes, act: Callable[[View, bytes], None], *, follow: bool = False) -> None:
        """Do something to a name: `act` gets its view and its path there."""

        def at(place: Place) -> None:
            if follow and place.view.facts(place.inside).is_link:
                raise OSError(errno.ELOOP, "a link")
            if place.path in self._mounts or place.path == b"/":
                raise OSError(errno.EBUSY, "a mount point")
            act(place.view, place.inside)

        self.on(base, path, at, follow=follow)

    def pair(
        self, old: tuple[bytes, bytes], new: tuple[bytes, bytes], act: Callable[[View, bytes, bytes], None]
    ) -> tuple[bytes, bytes]:
        """Do something to two names, each with its base, that have to be in one view (EXDEV); their places."""

        def first(place: Place) -> tuple[bytes, bytes]:
            def second(other: Place) -> tuple[bytes, bytes]:
                for each in (place, other):
                    if each.path in self._mounts or each.path == b"/":
                        raise OSError(errno.EBUSY, "a mount point")
                if other.view is not place.view:
                    raise OSError(errno.EXDEV, "another view")
                act(place.view, place.inside, other.inside)
                return place.path, other.path

            return self.on(*new, second, follow=False)

        return self.on(*old, first, follow=False)
