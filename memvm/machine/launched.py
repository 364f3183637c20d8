"""What a guest was launched as, which restores do not change: digest, settings, register, and where it came from; and
how many disks it has.

A checkpoint carries it (machine/state.py). Who can write the file can write anything there; whether a platform vouches
for the file is for memvm/attest/ to find out. (Annotations are not text in this module, as in config.py: each start
would wait for typing to compile them.)
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from memvm.errors import UsageError
from memvm.machine.register import DIGEST_SIZE, Register
from memvm.machine.settings import Behaviour, Name, Setting, Settings, default_settings, parse_value

MOST_ANCESTORS = 64
"""That are kept, the youngest."""


class Ancestor(NamedTuple):
    """A checkpoint that the guest was restored from."""

    checkpoint_id: str
    commit: str
    """SHA-256 of its commit record, which pins the file's contents."""
    saves: int
    """How many saves of the guest there had been, this one included."""


class Launched:
    """A guest's launch and lineage."""

    def __init__(self, settings: Mapping[Name, Setting] | None = None) -> None:
        self.measure: Callable[[], bytes] = lambda: b""
        """Completes the launch's measurement, and tells the digest."""
        self.identity = os.urandom(16)
        """Random, drawn at launch: the same in all that comes from its checkpoints."""
        self.saves = 0
        """Checkpoints that were begun of it, by itself and its ancestors: later ones have higher numbers."""
        self.ancestors: list[Ancestor] = []
        """The checkpoints that it was restored from, the oldest first."""
        self.disks = 0
        """How many it has: whoever restores it has to give it as many, or say that it has to do without."""
        self.settings = Settings(settings or default_settings())

    @property
    def digest(self) -> bytes:
        """The launch digest; empty if nobody measured, as in checkpoints of older versions.

        When it is first asked for, that may take as long as it takes to hash the program.
        """
        return self.measure()

    def came_from(self, checkpoint_id: bytes, commit: bytes) -> None:
        """The guest was restored from a checkpoint."""
        self.ancestors.append(Ancestor(checkpoint_id.hex(), commit.hex(), self.saves))
        del self.ancestors[:-MOST_ANCESTORS]

    def to_fields(self) -> dict[str, Any]:
        """As fields for a checkpoint's state."""
        with self.settings.lock:
            return ({"disks": self.disks} if self.disks else {}) | {
                "digest": self.digest.hex(),
                "identity": self.identity.hex(),
                "saves": self.saves,
                "ancestors": [list(ancestor) for ancestor in self.ancestors],
                "settings": {name: list(setting) for name, setting in self.settings.at_launch.items()},
                "values": {name: setting.value for name, setting in self.settings.now().items()},
                "log": list(self.settings.register.entries),
            }

    @classmethod
    def from_fields(cls, fields: Any) -> "Launched":
        """The opposite. Raises ValueError for what to_fields does not make."""
        wanted = {"digest", "identity", "saves", "ancestors", "settings", "values", "log"}
        if not isinstance(fields, dict) or set(fields) - {"disks"} != wanted:
            raise ValueError("what the guest was launched as is not complete")
        launched = cls(_settings(fields["settings"]))
        digest = _hex(fields["digest"], (0, DIGEST_SIZE))
        launched.measure = lambda: digest
        launched.identity = _hex(fields["identity"], (16,))
        launched.saves = _count(fields["saves"])
        launched.disks = _count(fields.get("disks", 0))
        if not isinstance(fields["ancestors"], list) or len(fields["ancestors"]) > MOST_ANCESTORS:
            raise ValueError("ancestors are no list, or too many")
        launched.ancestors = [_ancestor(value) for value in fields["ancestors"]]
        if not isinstance(fields["log"], list) or not all(isinstance(entry, str) for entry in fields["log"]):
            raise ValueError("the register's log is no list of text")
        launched.settings = Settings(launched.settings.at_launch, Register(fields["log"]))
        values = fields["values"]
        if not isinstance(values, dict) or set(values) != set(Name):
            raise ValueError("values of settings are not complete")
        launched.settings.restore({name: _value(name, values[name]) for name in Name})
        return launched


def _settings(value: Any) -> dict[Name, Setting]:
    if not isinstance(value, dict) or set(value) != set(Name):
        raise ValueError("settings are not complete")
    settings = {}
    for name in Name:
        if not isinstance(value[name], list) or len(value[name]) != 2 or not isinstance(value[name][1], str):
            raise ValueError(f"{name} is no value and behaviour")
        settings[name] = Setting(_value(name, value[name][0]), Behaviour(value[name][1]))
    return settings


def _value(name: Name, value: Any) -> str:
    try:
        if not isinstance(value, str) or parse_value(name, value) != value:
            raise ValueError(f"{name} cannot be {value!r:.80}")
    except UsageError as error:
        raise ValueError(error.message) from None
    return value


def _ancestor(value: Any) -> Ancestor:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("an ancestor is not three things")
    return Ancestor(_hex(value[0], (16,)).hex(), _hex(value[1], (32,)).hex(), _count(value[2]))


def _hex(value: Any, sizes: tuple[int, ...]) -> bytes:
    if not isinstance(value, str) or (data := bytes.fromhex(value)).hex() != value or len(data) not in sizes:
        raise ValueError(f"not {sizes[-1]} bytes in hexadecimal: {value!r:.80}")
    return data


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError(f"not a count: {value!r:.80}")
    return value
