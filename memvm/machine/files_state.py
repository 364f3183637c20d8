"""What a checkpoint keeps of a guest's files: its views, what is in memory, and what is open.

What is on the host stays there: an open file of a view is opened again at a restore, and has to be what it was (size
and time of modification). Files in memory, pipes, positions and flags are in the checkpoint.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.machine.enforcing import note_views, require_views
from memvm.machine.fields import I64, Fields, blob, integer, listed, text, truth
from memvm.machine.settings import Name
from memvm.machine.waiting_state import KINDS, WaitingState, check_references, read_waiting, to_fields

if TYPE_CHECKING:
    from memvm.files.description import Description
    from memvm.files.specs import ViewSpec
    from memvm.machine.guest import Guest

_MOST_NODES = 1 << 20
MOST_OPEN = 2048
"""What a guest's descriptors refer to, and messages under way carry."""
_MOST_VIEWS = 256
_MOST_BYTES = 256 << 20
_LONGEST_PATH = 1 << 14
_PIPE_CAPACITY = 65536  # pipe(7)
_GONE = -1
"""In place of a node: the name hides what is below."""


class NodeState(NamedTuple):
    """A file, directory or link in memory; `content` is its bytes, or where it leads."""

    mode: int
    owner: int
    group: int
    device: int
    inode: int
    times: tuple[int, int, int]
    content: bytes = b""
    entries: tuple[tuple[bytes, int], ...] = ()
    """Names, with the index of a node, or _GONE."""
    opaque: bool = True


class OpenState(NamedTuple):
    """An open file description. What is not of its kind is empty."""

    kind: str
    """host, memory, directory, device or pipe, or one of waiting_state.KINDS."""
    path: bytes
    flags: int
    nonblocking: bool
    position: int = 0
    number: int = 0
    """The index of a node in memory, or which pipe."""
    facts: tuple[int, int] = (0, 0)
    """Size and time of modification of a host's file."""
    content: bytes = b""
    """What is in a pipe, with its end for reading."""
    names: tuple[tuple[bytes, int, int], ...] | None = None
    """What a directory had when it was read."""
    waiting: WaitingState | None = None
    """Of what guests wait for, and is the manager's own."""


class FilesState(NamedTuple):
    """A guest's files."""

    views: tuple[tuple[str, str, str], ...] = ()
    """Access, the host's directory, and where it is in the tree."""
    cwd: bytes = b"/"
    hostname: str = "memvm"
    cpus: int = 1
    boot_id: bytes = bytes(16)
    pipes: int = 0
    next_inode: int = 2
    nodes: tuple[NodeState, ...] = ()
    layers: tuple[tuple[bytes, int], ...] = ()
    """The views with a layer in memory, by mount point, and the node of their root."""
    opened: tuple[OpenState, ...] = ()

    @classmethod
    def capture(cls, guest: Guest) -> tuple[FilesState, dict[Description, int]]:
        """The files of a guest that stands still, and the index of each description (the standard streams first)."""
        indices: dict[Description, int] = {stream: index for index, stream in enumerate(guest.files.streams)}
        plain = cls(
            views=tuple((spec.access.value, spec.host, spec.point) for spec in guest.views),
            cwd=guest.cwd,
            hostname=guest.hostname,
            cpus=guest.cpus,
            boot_id=guest.boot_id,
            pipes=guest.pipes,
        )
        if not guest.has_looked_at_files:
            saved = guest.files_before
            if saved is not None:
                plain = plain._replace(nodes=saved.nodes, layers=saved.layers, next_inode=saved.next_inode)
            return plain, indices
        from memvm.machine.files_capture import capture

        return capture(plain, guest, indices), indices

    def adopt_into(self, guest: Guest) -> list[Description]:
        """Give a fresh guest these files; what is open, in order.

        Raises CheckpointError, UsageError, HostError, and SettingRefused for views that its settings do not allow.
        """
        from memvm.files.specs import Access, ViewSpec

        given = guest.views
        before = [ViewSpec(Access(access), host, point) for access, host, point in self.views]
        guest.views = tuple(self._view(view, guest) for view in before)
        require_views(guest.launched.settings.value(Name.FILES), guest.views)
        note_views(guest.launched.settings, before, guest.views)
        for view in given:
            if view not in guest.views:
                guest.tell(f"--{view.access} {view.host}:{view.point} changes nothing: it had no directory there")
        guest.cwd, guest.hostname, guest.cpus, guest.boot_id = self.cwd, self.hostname, self.cpus, self.boot_id
        guest.pipes = self.pipes
        if not self.opened and not self.layers:
            return []
        if not self.opened and not self.views and not any(node.entries for node in self.nodes):
            guest.files_before = self  # a guest that has no files begins the sooner
            return []
        from memvm.machine.files_capture import adopt

        return adopt(self, guest)

    def _view(self, saved: ViewSpec, guest: Guest) -> ViewSpec:
        """The view that takes a saved one's place: one that is given now, or itself."""
        from memvm.errors import CheckpointError
        from memvm.files.specs import Access

        given = {spec.point: spec for spec in guest.views}.get(saved.point, saved)
        if given.access is Access.PASS and given is saved:
            raise CheckpointError(
                f"the guest changes files of this machine, in {saved.host}",
                hint=f"if it may: --pass {saved.host}:{saved.point}; else --rw, and changes stay in memory",
            )
        return given

    def to_json(self) -> dict[str, Any]:
        """As a part of the state section."""
        return {
            "views": [list(view) for view in self.views],
            "cwd": text(self.cwd),
            "hostname": self.hostname,
            "cpus": self.cpus,
            "boot_id": text(self.boot_id),
            "pipes": self.pipes,
            "next_inode": self.next_inode,
            "nodes": [
                [
                    *(node.mode, node.owner, node.group, node.device, node.inode, list(node.times)),
                    *(text(node.content), [[text(name), index] for name, index in node.entries], node.opaque),
                ]
                for node in self.nodes
            ],
            "layers": [[text(point), index] for point, index in self.layers],
            "opened": [
                [
                    *(one.kind, text(one.path), one.flags, one.nonblocking, one.position, one.number),
                    *(list(one.facts), text(one.content)),
                    None if one.names is None else [[text(name), inode, kind] for name, inode, kind in one.names],
                    *([] if one.waiting is None else [to_fields(one.waiting)]),
                ]
                for one in self.opened
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> FilesState:
        """Read and check. Raises ValueError."""
        fields = Fields(value)
        nodes = fields.items("nodes", _MOST_NODES, _node)
        layers = fields.items("layers", _MOST_VIEWS, lambda one: _entry(one, _LONGEST_PATH))
        opened = fields.items("opened", MOST_OPEN, _opened)
        _check_graph(nodes, [index for _, index in layers])
        check_references([one.waiting for one in opened])
        for one in opened:
            if one.kind == "memory" and not (one.number < len(nodes) and nodes[one.number].mode >> 12 == 0o10):
                raise ValueError("an open file that is none")
        boot_id = fields.data("boot_id", 16)
        cwd = _path(fields.data("cwd", _LONGEST_PATH))
        if len(boot_id) != 16:
            raise ValueError("boot_id is not 16 bytes")
        return cls(
            views=fields.items("views", _MOST_VIEWS, _view),
            cwd=cwd,
            hostname=_words(fields.get("hostname"), 64),
            cpus=fields.number("cpus", 64, 1),
            boot_id=boot_id,
            pipes=fields.number("pipes", I64),
            next_inode=fields.number("next_inode", I64),
            nodes=nodes,
            layers=layers,
            opened=opened,
        )


def _words(value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise ValueError("a name that is none")
    return value


def _path(value: bytes) -> bytes:
    """A place: absolute, of plain names."""
    if value != b"/" and (value[:1] != b"/" or any(name in (b"", b".", b"..") for name in value.split(b"/")[1:])):
        raise ValueError("a path that is none")
    if b"\0" in value:
        raise ValueError("a path with a NUL")
    return value


def _view(value: Any) -> tuple[str, str, str]:
    access, host, point = (_words(part, _LONGEST_PATH) for part in listed(value, 3, "view"))
    if access not in ("ro", "rw", "pass") or not host.startswith("/"):
        raise ValueError("a view that is none")
    _path(os.fsencode(point))
    return access, host, point


def _entry(value: Any, longest: int) -> tuple[bytes, int]:
    name, index = listed(value, 2, "entry")
    return blob(name, "name", longest), integer(index, "node", _MOST_NODES, _GONE)


def _node(value: Any) -> NodeState:
    mode, owner, group, device, inode, times, content, entries, opaque = listed(value, 9, "node")
    if integer(mode, "mode", 0o177777) >> 12 not in (0o04, 0o10, 0o12):
        raise ValueError("a node of no kind")
    accessed, modified, changed = (integer(one, "time", I64) for one in listed(times, 3, "times"))
    given = Fields({"entries": entries})
    return NodeState(
        mode,
        integer(owner, "owner"),
        integer(group, "group"),
        integer(device, "device"),
        integer(inode, "inode"),
        (accessed, modified, changed),
        blob(content, "content", _MOST_BYTES),
        given.items("entries", _MOST_NODES, lambda one: _entry(one, 255)),
        truth(opaque, "opaque"),
    )


def _check_graph(nodes: tuple[NodeState, ...], roots: list[int]) -> None:
    """Every entry is a plain name for a node; each directory has one place, so that none is in itself."""
    used = [0] * len(nodes)
    for root in roots:
        if not 0 <= root < len(nodes) or nodes[root].mode >> 12 != 0o04:
            raise ValueError("a layer without a root")
        used[root] += 1
    for node in nodes:
        kind = node.mode >> 12
        if (node.entries and kind != 0o04) or (node.content and kind == 0o04):
            raise ValueError("a node that is two kinds at once")
        if kind == 0o12 and (not 0 < len(node.content) < 4096 or b"\0" in node.content):
            raise ValueError("a link that leads nowhere")
        for name, index in node.entries:
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or index >= len(nodes):
                raise ValueError("an entry that is none")
            if index != _GONE:
                used[index] += 1
    if any(count > 1 for count, node in zip(used, nodes, strict=True) if node.mode >> 12 == 0o04):
        raise ValueError("a directory in two places")


def _opened(value: Any) -> OpenState:
    waiting = None
    if isinstance(value, list) and value and value[0] in KINDS:
        *value, fields = listed(value, 10, "open file")
        waiting = read_waiting(value[0], fields)
    kind, path, flags, nonblocking, position, which, facts, content, names = listed(value, 9, "open file")
    if waiting is None and kind not in ("host", "memory", "directory", "device", "pipe"):
        raise ValueError("an open file of no kind")
    size, modified = (integer(one, "fact", I64) for one in listed(facts, 2, "facts"))
    place = blob(path, "path", _LONGEST_PATH)
    entries = None
    if names is not None:
        entries = Fields({"names": names}).items("names", _MOST_NODES, _listed_name)
    return OpenState(
        kind,
        _path(place) if place else place,
        integer(flags, "flags", (1 << 31) - 1),
        truth(nonblocking, "nonblocking"),
        integer(position, "position", I64),
        integer(which, "number", I64),
        (size, modified),
        blob(content, "content", _PIPE_CAPACITY),
        entries,
        waiting,
    )


def _listed_name(value: Any) -> tuple[bytes, int, int]:
    name, inode, kind = listed(value, 3, "name")
    return blob(name, "name", 255), integer(inode, "inode"), integer(kind, "kind", 0o170000)
