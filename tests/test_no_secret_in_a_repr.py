"""No record of memvm's shows a key in its repr: it may come into a traceback, a log, or a failed assertion."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import memvm

_SECRET = re.compile(r"key|secret|passphrase|password|plain")
_BYTES = re.compile(r"bytes|bytearray|memoryview|SecretMemory|Buffer")
NO_SECRETS = {
    ("GuestConfig", "key_keeper"): "the keeper's public key",
    ("EncryptedHeader", "wrapped_key"): "encrypted for the keeper",
    ("Request", "key"): "the public key of a restore",
}
KEPT = b"a secret, which nobody may see"
OTHER = b"what everybody may see"


def records() -> Iterator[tuple[type, dict[str, Any]]]:
    """All named tuples and dataclasses, with their fields' types."""
    for module in pkgutil.walk_packages(memvm.__path__, "memvm."):
        if module.name.endswith("__main__"):
            continue
        for found in vars(import_module(module.name)).values():
            if not inspect.isclass(found) or found.__module__ != module.name:
                continue
            if dataclasses.is_dataclass(found):
                yield found, {field.name: field.type for field in dataclasses.fields(found)}
            elif issubclass(found, tuple) and hasattr(found, "_fields"):
                yield found, {name: inspect.get_annotations(found).get(name) for name in found._fields}


def secrets_of(record: type, fields: dict[str, Any]) -> set[str]:
    """The fields with secrets."""
    return {
        name
        for name, kind in fields.items()
        if _SECRET.search(name) and _BYTES.search(str(kind)) and (record.__name__, name) not in NO_SECRETS
    }


def made(record: type, values: dict[str, bytes]) -> object:
    if issubclass(record, tuple):
        return tuple.__new__(record, values.values())
    instance = object.__new__(record)
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance


def test_no_secret_is_in_a_repr() -> None:
    looked_at = set()
    for record, fields in records():
        if not (secrets := secrets_of(record, fields)):
            continue
        looked_at.add(record.__name__)
        shown = repr(made(record, {name: KEPT if name in secrets else OTHER for name in fields}))
        assert record.__name__ in shown
        for text in (repr(KEPT)[2:-1], KEPT.hex(), KEPT.hex()[:16], str(list(KEPT))[1:-1]):
            assert text not in shown, f"{record.__module__}.{record.__name__} shows {secrets}"
    assert looked_at >= {"Anchored", "CheckpointKey", "KeptKey", "_Room"}, "these have secrets"


def test_what_is_said_to_be_no_secret_is_there() -> None:
    there = {(record.__name__, name) for record, fields in records() for name in fields}
    assert NO_SECRETS.keys() <= there
