"""The tree of what a guest is given of the host's files; where programs are looked for, before there is a guest."""

from __future__ import annotations

import os
from collections.abc import Iterable

from memvm.files.facts import USER
from memvm.files.host_view import HostView
from memvm.files.layer import LayeredView
from memvm.files.nodes import Budget, Directory
from memvm.files.specs import Access, ViewSpec, open_directory
from memvm.files.tree import Tree
from memvm.files.view import View

OWN_POINTS = (b"/dev", b"/dev/shm", b"/proc", b"/tmp")
"""Where a guest has something of its own, unless it is given something else there."""
_FOR_ALL = 0o1777


def given_tree(specs: Iterable[ViewSpec], budget: Budget) -> Tree:
    """A tree with the given views, and empty directories at OWN_POINTS, in an empty root.

    Raises UsageError for a directory that is not there, HostError.
    """
    root = Directory(budget, 0o755)
    root.owner = root.group = 0
    tree = Tree(LayeredView(budget, root, writable=False))
    try:
        for spec in sorted(specs, key=lambda spec: spec.point):  # of what is given twice, the later counts
            tree.mount(os.fsencode(spec.point), _view(budget, spec))
        for point in OWN_POINTS:
            if point not in tree.mounts:
                tree.mount(point, LayeredView(budget, Directory(budget, _FOR_ALL)))
        for point in tree.mounts:
            _make_way(tree, point)
    except BaseException:
        tree.close()
        raise
    return tree


def _view(budget: Budget, spec: ViewSpec) -> View:
    host = HostView(open_directory(spec), writable=spec.access is Access.PASS)
    if spec.access is not Access.LAYER:
        return host
    facts = host.facts(b"")
    upper = Directory(budget, facts.mode, opaque=False)
    upper.take_identity(facts)
    upper.owner = upper.group = USER
    return LayeredView(budget, upper, host)


def _make_way(tree: Tree, point: bytes) -> None:
    """Have a mount point be seen in what it covers, if that is in memory: directories on the way to it."""
    if not point:
        return
    covered = tree.place(point[: point.rindex(b"/")] or b"/")
    if not isinstance(covered.view, LayeredView) or covered.view.lower is not None:
        return
    node = covered.view.root
    for name in [*covered.inside.split(b"/"), point.rpartition(b"/")[2]]:
        if not name:
            continue
        entry = node.entries.get(name)
        if not isinstance(entry, Directory):
            entry = Directory(node.budget, 0o755)
            entry.owner = entry.group = 0
            node.entries[name] = entry
        node = entry
