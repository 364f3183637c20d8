"""Takes a guest's files apart for a checkpoint, and makes them again from one; for guests that have looked at any."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from memvm.errors import CheckpointError, MemvmError
from memvm.files.description import Description, HostFile, OpenDirectory
from memvm.files.devices import NUMBERS, Device
from memvm.files.facts import Entry, Facts
from memvm.files.layer import LayeredView
from memvm.files.nodes import Directory, File, Link, Node, OpenFile
from memvm.files.pipes import Pipe, contents, make_pipe, refill
from memvm.files.waitable import Waitable
from memvm.machine.files_state import FilesState, NodeState, OpenState
from memvm.machine.waiting_capture import connect, make_waitable, waiting_state
from memvm.machine.waiting_state import kind_of

if TYPE_CHECKING:
    from memvm.files.nodes import Budget
    from memvm.machine.guest import Guest

_GONE = -1


class _Nodes:
    """Gives each node that is reached an index."""

    def __init__(self) -> None:
        self._indices: dict[Node, int] = {}
        self._found: list[Node] = []

    def index(self, node: Node) -> int:
        if node not in self._indices:
            self._indices[node] = len(self._found)
            self._found.append(node)
        return self._indices[node]

    def states(self) -> tuple[NodeState, ...]:
        states: list[NodeState] = []
        while len(states) < len(self._found):  # more are found while these are taken apart
            states.append(self._state(self._found[len(states)]))
        return tuple(states)

    def _state(self, node: Node) -> NodeState:
        times = (node.accessed, node.modified, node.changed)
        state = NodeState(node.mode, node.owner, node.group, node.device, node.inode, times)
        if isinstance(node, File):
            return state._replace(content=bytes(node.data))
        if isinstance(node, Link):
            return state._replace(content=node.target)
        assert isinstance(node, Directory)
        entries = ((name, _GONE if one is None else self.index(one)) for name, one in node.entries.items())
        return state._replace(entries=tuple(entries), opaque=node.opaque)


def capture(plain: FilesState, guest: Guest, indices: dict[Description, int]) -> FilesState:
    """`plain` with nodes and what is open; `indices` gets the place of each description."""
    nodes = _Nodes()
    layers = tuple(
        (point, nodes.index(view.root))
        for point, view in guest.tree.mounts.items()
        if isinstance(view, LayeredView) and view.writable
    )
    left = [*(file.stream for file in guest.files.table.values()), *guest.shared.descriptions]
    while left:
        stream = left.pop(0)
        if stream not in indices:
            indices[stream] = len(indices)
            left += stream.carried()
    pipes = _pipe_contents(list(indices))
    opened = tuple(_opened(one, nodes, pipes, indices) for one in list(indices)[len(guest.files.streams) :])
    return plain._replace(nodes=nodes.states(), layers=layers, opened=opened, next_inode=guest.budget.next_inode)


def _pipe_contents(streams: list[Description]) -> dict[int, bytes]:
    """What is in the pipes. Looking changes them, which no epoll instance of the guest's may see."""
    pipes = [stream for stream in streams if isinstance(stream, Pipe)]
    for stream in streams:
        stream.collect()
    found = {end.number: contents(end) for end in pipes if not end.writes}
    for stream in streams:
        stream.collect(unless=pipes)
    return found


def _opened(one: Description, nodes: _Nodes, pipes: dict[int, bytes], indices: dict[Description, int]) -> OpenState:
    state = OpenState("device", one.path, one.flags, one.nonblocking)
    if isinstance(one, Device):
        return state
    if isinstance(one, HostFile):
        facts = one.facts()
        position = one.seek(0, os.SEEK_CUR)
        return state._replace(kind="host", position=position, facts=(facts.size, facts.modified))
    if isinstance(one, OpenFile):
        return state._replace(kind="memory", position=one.position, number=nodes.index(one.node))
    if isinstance(one, Pipe):
        content = b"" if one.writes else pipes[one.number]
        return state._replace(kind="pipe", number=one.number, content=content)
    if isinstance(one, Waitable):
        waiting = waiting_state(one, indices)
        return state._replace(kind=kind_of(waiting), waiting=waiting)
    assert isinstance(one, OpenDirectory)
    names = None if one.names is None else tuple((entry.name, entry.inode, entry.kind) for entry in one.names)
    return state._replace(kind="directory", position=one.position, names=names)


def adopt(state: FilesState, guest: Guest) -> list[Description]:
    """Make a guest's files; what is open, in order. Raises CheckpointError, UsageError, HostError."""
    budget = guest.budget
    budget.next_inode = state.next_inode
    try:
        nodes = [_node(one, budget) for one in state.nodes]
    except OSError as error:
        raise CheckpointError(f"the guest has more files in memory than it may: {error.strerror}") from error
    for node, saved in zip(nodes, state.nodes, strict=True):
        for name, index in saved.entries:
            assert isinstance(node, Directory)
            node.entries[name] = None if index == _GONE else nodes[index]
            if index != _GONE:
                nodes[index].names += 1
    mounts = guest.tree.mounts
    for point, index in state.layers:
        view, root = mounts.get(point), nodes[index]
        if isinstance(view, LayeredView) and isinstance(root, Directory):
            view.root = root
            root.names += 1
    made: list[Description] = []
    pipes: dict[int, tuple[Pipe, Pipe]] = {}
    try:
        made.extend(_open_again(one, guest, nodes, pipes) for one in state.opened)
        connect([one.waiting for one in state.opened], made, guest)
    except BaseException:
        for description in made:
            description.close()
        raise
    finally:
        for ends in pipes.values():
            for end in ends:
                if end not in made:
                    end.close()
    for node in nodes:
        if not node.names:
            node.forget()
    return made


def _node(saved: NodeState, budget: Budget) -> Node:
    node: Node
    if stat.S_ISDIR(saved.mode):
        node = Directory(budget, 0, opaque=saved.opaque)
    elif stat.S_ISLNK(saved.mode):
        node = Link(budget, saved.content)
    else:
        node = File(budget, 0)
        node.write(0, [memoryview(saved.content)])
    accessed, modified, changed = saved.times
    numbers = (saved.device, saved.inode, saved.mode, 1, saved.owner, saved.group, 0, 0, 0)
    node.take_identity(Facts(*numbers, accessed, modified, changed))
    node.names = 0
    return node


def _open_again(saved: OpenState, guest: Guest, nodes: list[Node], pipes: dict[int, tuple[Pipe, Pipe]]) -> Description:
    made: Description
    if saved.kind == "device":
        name = saved.path.rpartition(b"/")[2]
        if name not in NUMBERS:
            raise CheckpointError(f"the guest has a device open that there is not: {os.fsdecode(saved.path)}")
        made = Device(name, saved.flags)
    elif saved.kind == "memory":
        node = nodes[saved.number]
        assert isinstance(node, File)
        opened = OpenFile(node, saved.path, saved.flags)
        opened.position = saved.position
        made = opened
    elif saved.kind == "pipe":
        if saved.number not in pipes:
            pipes[saved.number] = make_pipe(0, saved.number)
        reading, writing = pipes[saved.number]
        made = writing if saved.flags & os.O_ACCMODE == os.O_WRONLY else reading
        refill(writing, saved.content)
    elif saved.waiting is not None:
        made = make_waitable(saved.waiting, guest)
    elif saved.kind == "directory":
        made = _directory(saved, guest)
    else:
        made = _host_file(saved, guest)
    made.flags, made.nonblocking = saved.flags, saved.nonblocking
    return made


def _directory(saved: OpenState, guest: Guest) -> OpenDirectory:
    try:
        facts = guest.tree.facts(b"/", saved.path or b"/", follow=False)
    except OSError as error:
        path = os.fsdecode(saved.path)
        raise CheckpointError(f"the guest has directory {path} open, which is not there: {error.strerror}") from error
    names = None if saved.names is None else [Entry(*one) for one in saved.names]
    directory = OpenDirectory(saved.path, saved.flags, facts, names)
    directory.position = saved.position
    return directory


def _host_file(saved: OpenState, guest: Guest) -> Description:
    path = os.fsdecode(saved.path)
    try:
        place = guest.tree.place(saved.path)
        view = place.view
        writes = saved.flags & os.O_ACCMODE != os.O_RDONLY
        # What was open, not the copy made since; a file that was written through may be one of a layer now.
        if isinstance(view, LayeredView) and view.lower is not None and not writes:
            view = view.lower
        file = view.open(place.inside, saved.flags & (os.O_ACCMODE | os.O_APPEND), 0, saved.path)
        facts = file.facts()
    except (OSError, MemvmError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"the guest has {path} open, which cannot be opened now: {reason}") from error
    if (facts.size, facts.modified) != saved.facts:
        if not guest.accepts_changed_files:
            file.close()
            raise CheckpointError(
                f"the guest has {path} open, which has changed since the checkpoint",
                hint="bring the old file back, or let the guest meet the new one: --accept-changed-files",
            )
        guest.changed_files.append(path)
    file.seek(saved.position, os.SEEK_SET)
    return file
