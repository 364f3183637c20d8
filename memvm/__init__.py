"""memvm: a virtual machine monitor for memory.

It runs an ordinary Linux program as a guest whose whole memory it owns, saves it while it runs, and
brings it back lazily. From Python:

    import memvm

    with memvm.Guest(["busybox", "sort"], stdin=subprocess.PIPE) as guest:
        guest.checkpoint("/tmp/sort.ckpt")

    with memvm.restore("/tmp/sort.ckpt") as guest:
        guest.wait()

What is named here is imported when it is first used, so that `memvm --help` need not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memvm.api import Guest, restore
    from memvm.cloning import Clones, restore_clones
    from memvm.disks import Disk
    from memvm.errors import (
        AttestationError,
        BadPage,
        CheckpointError,
        ControlError,
        GuestStateError,
        HostError,
        ImageError,
        MemvmError,
        NoSuchGuest,
        SaveError,
        SettingRefused,
        TimeLimitExceeded,
        UsageError,
    )

__version__ = "0.1.0"

__all__ = [
    "AttestationError",
    "BadPage",
    "CheckpointError",
    "Clones",
    "ControlError",
    "Disk",
    "Guest",
    "GuestStateError",
    "HostError",
    "ImageError",
    "MemvmError",
    "NoSuchGuest",
    "SaveError",
    "SettingRefused",
    "TimeLimitExceeded",
    "UsageError",
    "restore",
    "restore_clones",
]

_MODULES = {
    "Guest": "api",
    "restore": "api",
    "Clones": "cloning",
    "restore_clones": "cloning",
    "Disk": "disks",
}
"""Where they are; all others are errors."""


if not TYPE_CHECKING:  # a type checker would take it to mean that memvm has any attribute

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"memvm.{_MODULES.get(name, 'errors')}"), name)
        globals()[name] = value  # from here on an ordinary attribute
        return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
